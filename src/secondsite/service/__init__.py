"""The service: the vault's configuration and history, the people's API, the nodes' face and the durable workflows."""
