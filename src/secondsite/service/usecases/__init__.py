"""What people and nodes may ask of the service. Each function is one request: its own transaction, its own rules."""
