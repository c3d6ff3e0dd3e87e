"""The source's role: capture, ship and seal, every copy-frequency seconds, for every item."""
