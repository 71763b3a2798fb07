"""Serve metrics over HTTP."""

from __future__ import annotations

import socket
import sys
from http import HTTPStatus
from signal import SIGINT, SIGTERM, signal
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ...model.errors import IO_FAILURE, CniError
from ...version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

_PATH = "/metrics"


def serve(address: tuple[str, int], registry: CollectorRegistry) -> None:
    """Serve until SIGTERM or Ctrl-C; raise CniError(5) if it cannot listen on the address."""
    for number in (SIGINT, SIGTERM):
        signal(number, _end)
    with _listen(address) as server:
        server.set_app(_application(registry))
        host, port = server.server_address[:2]
        where = f"[{host!s}]" if server.address_family == socket.AF_INET6 else host
        print(f"quantum-nat: serving http://{where!s}:{port}{_PATH}", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _listen(address: tuple[str, int]) -> _Server:
    host, port = address
    try:
        family, _, _, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind = _Server6 if family == socket.AF_INET6 else _Server
        return kind((str(resolved[0]), port), _Handler)
    except OSError as error:
        raise CniError(
            IO_FAILURE, f"cannot listen on {host} port {port}: {error.strerror}", "Choose another address or port."
        ) from error


class _Server(ThreadingMixIn, WSGIServer):
    """Serves each request in a thread, so that a slow client does not block others."""

    daemon_threads = True

    def server_bind(self) -> None:
        # Not HTTPServer's, which does a reverse DNS look-up of the address.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, _request: object, client_address: Any) -> None:
        """Print one line instead of a traceback: clients may disconnect."""
        print(f"quantum-nat: {client_address[0]}: {sys.exception()}", file=sys.stderr)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's name
        """Log nothing: there is a request every few seconds."""


def _application(registry: CollectorRegistry) -> WSGIApplication:
    from prometheus_client import make_wsgi_app

    expose = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/":
            return _answer(start_response, HTTPStatus.OK, f"quantum-nat {__version__}: the metrics are at {_PATH}.")
        if environ["PATH_INFO"] != _PATH:
            return _answer(start_response, HTTPStatus.NOT_FOUND, f"The metrics are at {_PATH}.")
        try:
            answered: Iterable[bytes] = expose(environ, start_response)
        except CniError as error:
            print(f"quantum-nat: {error.message}. {error.details}", file=sys.stderr)
            return _answer(start_response, HTTPStatus.INTERNAL_SERVER_ERROR, error.message)
        return answered

    return answer


def _answer(start_response: StartResponse, status: HTTPStatus, text: str) -> Iterable[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
