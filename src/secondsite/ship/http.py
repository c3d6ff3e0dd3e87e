"""HTTPS between nodes and with the service: one import for the server, its routing and the client.

The parts live in `server` (threads, TLS, bounds), `routing` (paths, bodies, errors) and `client` (kept
connections, errors as exceptions, the pinned first contact).
"""

from __future__ import annotations

from secondsite.ship.body import Body, TooLargeError
from secondsite.ship.client import (
    CA_PATH,
    Answer,
    Endpoint,
    JsonClient,
    add_ca_route,
    fetch_ca,
)
from secondsite.ship.failures import is_code
from secondsite.ship.routing import (
    Request,
    Response,
    Router,
    WsgiApp,
    error_response,
    parse_object,
)
from secondsite.ship.server import HttpsServer, Limits

__all__ = [
    "CA_PATH",
    "Answer",
    "Body",
    "Endpoint",
    "HttpsServer",
    "JsonClient",
    "Limits",
    "Request",
    "Response",
    "Router",
    "TooLargeError",
    "WsgiApp",
    "add_ca_route",
    "error_response",
    "fetch_ca",
    "is_code",
    "parse_object",
]
