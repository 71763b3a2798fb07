"""A TCP connection through another container's host port that stays open."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Self

from tests.kernel.peer import open_socket

if TYPE_CHECKING:
    from tests.kernel.topology import Container, Namespace

ECHO_PORT = 7
_ANSWER_TIMEOUT_S = 5


class Echo:
    """An echo server in a container."""

    def __init__(self, container: Container) -> None:
        self._listening = open_socket(container.path, "tcp", 4)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind(("0.0.0.0", ECHO_PORT))  # noqa: S104 - the container's own
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return  # closed
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        while message := connection.recv(64):
            connection.sendall(message)


class Flow:
    """A client's connection to an Echo; `messages` is the number of answers so far."""

    def __init__(self, client: Namespace, address: str, host_port: int) -> None:
        self._socket = open_socket(client.path, "tcp", 4)
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        self._socket.connect((address, host_port))
        self.messages = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self) -> None:
        """Send a message and read it back; raise OSError if the connection is broken."""
        message = b"%8d" % self.messages
        self._socket.sendall(message)
        answer = b""
        while len(answer) < len(message):
            part = self._socket.recv(64)
            if not part:
                raise ConnectionError("the connection was closed")
            answer += part
        if answer != message:
            raise ConnectionError(f"{answer!r} is not {message!r}")
        self.messages += 1
