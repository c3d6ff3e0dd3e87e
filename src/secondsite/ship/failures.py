"""What can go wrong with a call, as the errors that callers know.

Sockets, TLS and HTTP raise dozens of things; they come out as UnauthenticatedError (certificates: trying again is
of no use until somebody acts) or UnavailableError (try later). What the peer answers with a 4xx or 5xx comes out as
RemoteError with the peer's own code.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from secondsite.errors import (
    InvalidInputError,
    RemoteError,
    SecondSiteError,
    UnauthenticatedError,
    UnavailableError,
)
from secondsite.ship.routing import parse_object

_ERROR_MAX: Final = 1 << 20
_EXPIRED, _NOT_YET, _NAME_DIFFERS = 10, 9, 62  # X509_V_ERR_*
_ALERTS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate and none was shown",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate is revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "the peer does not accept our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "the peer does not accept our certificate",
}
BROKEN = (OSError, http.client.HTTPException)


@contextmanager
def translated(host: str, port: int, peer: str) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP raise into UnauthenticatedError or UnavailableError."""
    try:
        yield
    except SecondSiteError:
        raise
    except BROKEN as error:
        raise _translate(error, host, port, peer) from error


def _translate(
    error: OSError | http.client.HTTPException, host: str, port: int, peer: str
) -> SecondSiteError:
    place: dict[str, Any] = {"host": host, "port": port, "peer": peer}
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return UnauthenticatedError(
                "the peer's certificate has expired", hint="renew it on the peer", **place
            )
        if error.verify_code == _NOT_YET:
            return UnauthenticatedError(
                "the peer's certificate is not valid yet", hint="compare the clocks", **place
            )
        if error.verify_code == _NAME_DIFFERS:
            return UnauthenticatedError(
                f"another node than {peer} answers at {host}:{port}",
                hint="check the node's address",
                **place,
            )
        return UnauthenticatedError(
            "the peer's certificate is not from our authority", reason=error.verify_message, **place
        )
    if isinstance(error, ssl.SSLError) and error.reason in _ALERTS:
        return UnauthenticatedError(_ALERTS[error.reason], hint="enrol or renew this node", **place)
    reason = str(error) or type(error).__name__
    return UnavailableError(f"{host}:{port} does not answer: {reason}", **place)


def is_code(error: BaseException, *codes: str) -> bool:
    """Whether `error` is one of ours, raised here or reported by a peer, with one of `codes`."""
    return isinstance(error, SecondSiteError) and error.code in codes


def raise_refusal(response: http.client.HTTPResponse) -> None:
    """Raise what a 4xx or 5xx carries; a redirect is an error too. Nothing for a 2xx."""
    if response.status // 100 != 2:
        raise _error_of(response)


def _error_of(response: http.client.HTTPResponse) -> SecondSiteError:
    data = response.read(_ERROR_MAX)
    try:
        fields = parse_object(data).get("error")
    except InvalidInputError:
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("code"), str):
        text = data[:200].decode("latin-1")
        return UnavailableError(
            f"the peer answered {response.status} without an error that we know", answer=text
        )
    attributes = fields.get("attributes")
    fields["attributes"] = (
        {str(key): value for key, value in attributes.items() if key not in {"message", "hint", "self"}}
        if isinstance(attributes, dict)
        else {}
    )
    error = RemoteError(fields)
    if error.code == UnauthenticatedError.code:
        return UnauthenticatedError(error.message, hint=error.hint, **error.attributes)
    return error


def is_alert(error: BaseException) -> bool:
    """Whether the peer has said, inside TLS, that it does not accept our certificate."""
    return isinstance(error, ssl.SSLError) and error.reason in _ALERTS
