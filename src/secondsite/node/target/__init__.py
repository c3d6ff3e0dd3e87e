"""The target's role: journals, the listener's receiver, views, replicas and their upkeep."""
