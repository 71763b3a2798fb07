"""Clients that keep sending: flows that already exist when something changes."""

from __future__ import annotations

import socket
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


class Line:
    """A TCP connection that stays open, from a client to a port of a server that listens for it alone."""

    def __init__(
        self, stack: ExitStack, client: Namespace, server: Namespace, port: int, *, to: tuple[str, int]
    ) -> None:
        family = 6 if ":" in to[0] else 4
        listening = stack.enter_context(open_socket(server.path, "tcp", family))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("::" if family == 6 else "0.0.0.0", port))
        listening.listen()
        self._client = stack.enter_context(open_socket(client.path, "tcp", family))
        self._client.settimeout(NO_REPLY_TIMEOUT_S)
        self._client.connect(to)
        listening.settimeout(NO_REPLY_TIMEOUT_S)
        self._server = stack.enter_context(listening.accept()[0])
        self._server.settimeout(NO_REPLY_TIMEOUT_S)
        listening.close()

    def is_open(self) -> bool:
        """Whether a byte arrives, and one returns."""
        try:
            self._client.sendall(b"?")
            if self._server.recv(1) != b"?":
                return False
            self._server.sendall(b"!")
            return self._client.recv(1) == b"!"
        except OSError:
            return False
