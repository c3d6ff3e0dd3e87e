"""Receivers of notices that really listen: a webhook and a mail server, each in a thread, each keeping what it was sent.

A test can let them fail: the webhook answers with `status`, and `close` makes either of them a dead one.
"""

from __future__ import annotations

import json
import socketserver
import threading
from email import message_from_bytes
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """Takes JSON by POST."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.hold: threading.Event | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.hold is not None:
                    outer.hold.wait(30)
                if outer.status == 200:
                    outer.bodies.append(json.loads(body))
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address for apprise, with a secret in its path."""
        return f"json://127.0.0.1:{self._server.server_address[1]}/hook/s3cr3t-token"

    def close(self) -> None:
        """End: from now on nobody answers there."""
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class MailServer:
    """Speaks as much SMTP as a client needs to deliver."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.say("220 sink")
                for line in self.rfile:
                    word = line.strip().upper()
                    if word.startswith(b"DATA"):
                        self.say("354 go on")
                        outer.mails.append(message_from_bytes(self.data(), policy=default))
                        self.say("250 taken")
                    elif word.startswith(b"QUIT"):
                        self.say("221 bye")
                        return
                    else:
                        self.say("250 sink")

            def data(self) -> bytes:
                lines = []
                for line in self.rfile:
                    if line == b".\r\n":
                        break
                    lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
                return b"".join(lines)

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address for apprise."""
        port = self._server.server_address[1]
        return f"mailto://127.0.0.1:{port}?from=vault@example.com&to=team@example.com&mode=insecure"

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
