"""A mail server on this machine, in place of the user's own: it keeps each message that it gets."""

from __future__ import annotations

import socketserver
import threading
from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from email.message import EmailMessage


class _Conversation(socketserver.StreamRequestHandler):
    """One client, by RFC 5321: no extensions, no login."""

    def handle(self) -> None:
        self._answer("220 mail")
        for line in self.rfile:
            command = line.split(None, 1)[0].upper() if line.strip() else b""
            if command == b"QUIT":
                self._answer("221 bye")
                return
            if command == b"DATA":
                self._answer("354 go on")
                self._keep()
            self._answer("250 ok")

    def _keep(self) -> None:
        lines = []
        for line in self.rfile:
            if line == b".\r\n":
                break
            lines.append(line.removeprefix(b"."))
        message = message_from_bytes(b"".join(lines), policy=policy.default)
        self.server.messages.append(message)  # type: ignore[attr-defined]

    def _answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class MailServer(socketserver.ThreadingTCPServer):
    """A context manager: listens on a free port of this machine until it is closed."""

    daemon_threads = True

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        super().__init__(("127.0.0.1", 0), _Conversation)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def connection(self) -> dict[str, object]:
        """The Airflow connection of Airflow's SMTP provider to it."""
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com", "retry_limit": 1}
        return {"conn_type": "smtp", "host": "127.0.0.1", "port": self.server_address[1], "extra": extra}

    def close(self) -> None:
        """Stop to listen; may be repeated."""
        self.shutdown()
        self.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
