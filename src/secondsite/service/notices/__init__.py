"""Tells people what happens, by mail, webhook and whatever else apprise knows: composing, sending, and the outbox's thread."""
