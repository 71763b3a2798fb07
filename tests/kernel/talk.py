"""Clients that keep sending: flows that already exist when something changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .peer import open_socket
from .topology import NO_REPLY_TIMEOUT_S, Namespace

if TYPE_CHECKING:
    from contextlib import ExitStack


class Talk:
    """A UDP socket that keeps sending from one port, as a DNS resolver or a phone does."""

    def __init__(self, stack: ExitStack, namespace: Namespace, address: str, port: int) -> None:
        self._to = (address, port)
        self._socket = stack.enter_context(open_socket(namespace.path, "udp", 6 if ":" in address else 4))
        self._socket.settimeout(NO_REPLY_TIMEOUT_S)
        self._socket.bind(("::" if ":" in address else "0.0.0.0", 0))
        self.port: int = self._socket.getsockname()[1]

    def ask(self) -> str | None:
        """Send a datagram, and return the name of the server that answers; None if none does."""
        self._socket.sendto(b"?", self._to)
        return self.hear()

    def hear(self) -> str | None:
        try:
            return self._socket.recv(256).decode().split(" ")[0]
        except (TimeoutError, ConnectionRefusedError):
            return None
