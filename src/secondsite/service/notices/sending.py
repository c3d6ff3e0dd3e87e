"""Sends one message to one receiver with apprise, and says in one line why it did not arrive, without any secret in it.

apprise is imported when something is sent for the first time: that takes a second or two, and most commands never send.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from secondsite.service.notices.composing import Message
from secondsite.service.vocabulary import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

_KINDS: Final = {Severity.CRITICAL: "failure", Severity.WARNING: "warning", Severity.INFO: "info"}
_SECRET_MIN: Final = 4


def kind_of(url: str) -> str:
    """Return what may be shown of a receiver's address: its scheme. In some schemes even the host is a token."""
    return url.partition("://")[0][:40]


def understood(url: str) -> bool:
    """Whether apprise knows what to do with the address."""
    return _receiver(url) is not None


def send(url: str, message: Message) -> str | None:
    """Send; None if the receiver has taken the message, else why not. Returns within the receiver's own time limits."""
    import apprise

    receiver = _receiver(url)
    if receiver is None:
        return "the address is not understood"
    with _Overheard() as overheard:
        group = apprise.Apprise()
        group.add(receiver)
        taken = group.notify(
            body=message.body,
            title=message.title,
            notify_type=_KINDS[message.severity],
            body_format=apprise.NotifyFormat.TEXT,
        )
    if taken:
        return None
    return scrubbed(overheard.last or "the receiver did not answer, or refused it", url)


def scrubbed(text: str, url: str) -> str:
    """Return the text without any part of the address but its scheme."""
    for secret in sorted(_parts(url), key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def _parts(url: str) -> Iterator[str]:
    rest = url.partition("://")[2]
    for part in re.split(r"[:/@?&=,;#]", rest):
        for form in {part, unquote(part)}:
            if len(form) >= _SECRET_MIN:
                yield form


def _receiver(url: str) -> Any:
    import apprise

    asset = apprise.AppriseAsset(app_id="Second Site", app_desc="Second Site", app_url="")
    return apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)


class _Overheard(logging.Handler):
    """Hears what apprise logs in this thread: it returns no reason, it only logs one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: str | None = None
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the newest line of this thread."""
        if record.thread == self._thread:
            self.last = record.getMessage()

    def __enter__(self) -> _Overheard:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeHandler(self)
