"""The node: one daemon that plays the roles source (host agent) and target (master target) for its site.

Everything that it must do while the service is away is in its state folder; the service only configures, watches and
orchestrates.
"""
