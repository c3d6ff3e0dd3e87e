"""The network: identity (mutual TLS), the HTTPS server and client, and the shipping of parts between sites.

`identity` and `http` are shared with the control plane; `listener` and `sender` belong to the data plane alone.
This package knows nothing of journals: the listener speaks to a `Receiver` that its caller brings.
"""
