"""Servers that answer with the client's address, and a client for them, in any network namespace. Standard library only.

A socket belongs to the namespace that its thread was in when it was opened, so nothing here starts a process.
SCTP is a hand-made INIT over a raw socket, answered by an INIT ACK. This needs no SCTP in the kernel, only
SCTP connection tracking, which is what the tests are about.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import struct
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_SCTP = 132
_INIT, _INIT_ACK = 1, 2
_INIT_TAG = 0x51A7
_COMMON = struct.Struct("!HHLL")  # source port, destination port, verification tag, checksum
_INIT_CHUNK = struct.Struct("!BBHLLHHL")  # type, flags, length, tag, window, streams out, streams in, first TSN
_STATE_COOKIE = struct.Struct("!HH")  # parameter type 7, length
_TEXT_AT = _COMMON.size + _INIT_CHUNK.size + _STATE_COOKIE.size
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The port is closed, and the other end said so at once."""


class TimedOut(Exception):
    """There was no reply in time."""


class Answer(NamedTuple):
    """A server's answer: its own name, and the source address of the request."""

    server: str
    source: str


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """Move this thread to a network namespace."""
    with Path("/proc/thread-self/ns/net").open() as before, namespace.open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_socket(namespace: Path, protocol: str, family: int) -> socket.socket:
    domain = socket.AF_INET6 if family == 6 else socket.AF_INET
    with inside(namespace):
        if protocol == "sctp":
            return socket.socket(domain, socket.SOCK_RAW, _SCTP)
        return socket.socket(domain, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)


class Server:
    """Answers on one port over TCP, UDP and SCTP, IPv4 and IPv6, in a thread; `seen` lists the sources of all requests."""

    def __init__(self, namespace: Path, name: str, port: int, address: str | None = None) -> None:
        self.name = name
        self.port = port
        self.seen: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._stop_read, self._stop_write = os.pipe()
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        self._sockets = list(self._listen(namespace, address))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_write, b".")
        self._thread.join()
        for opened in self._sockets:
            opened.close()
        self._selector.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _listen(self, namespace: Path, address: str | None) -> Iterator[socket.socket]:
        families = (4, 6) if address is None else (6 if ":" in address else 4,)
        for family in families:
            for protocol in ("tcp", "udp", "sctp"):
                opened = open_socket(namespace, protocol, family)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == 6 and protocol != "sctp":
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind((address or ("::" if family == 6 else "0.0.0.0"), 0 if protocol == "sctp" else self.port))
                if protocol == "tcp":
                    opened.listen()
                self._selector.register(opened, selectors.EVENT_READ, (protocol, family))
                yield opened

    def _serve(self) -> None:
        answer = {"tcp": self._answer_tcp, "udp": self._answer_udp, "sctp": self._answer_sctp}
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                protocol, family = key.data
                try:
                    answer[protocol](key.fileobj, family)  # type: ignore[arg-type]
                except OSError:
                    continue  # the client disconnected

    def _text(self, source: str) -> bytes:
        self.seen.append(source)
        return f"{self.name} {source}".encode()

    def _answer_tcp(self, listening: socket.socket, _family: int) -> None:
        connection, peer = listening.accept()
        with connection:
            connection.sendall(self._text(peer[0]))

    def _answer_udp(self, opened: socket.socket, _family: int) -> None:
        _, peer = opened.recvfrom(64)
        opened.sendto(self._text(peer[0]), peer)

    def _answer_sctp(self, opened: socket.socket, family: int) -> None:
        packet, peer = _receive_sctp(opened, family)
        source_port, port, _, _ = _COMMON.unpack_from(packet)
        if port == self.port and packet[_COMMON.size] == _INIT:
            tag = _INIT_CHUNK.unpack_from(packet, _COMMON.size)[3]
            opened.sendto(_sctp_packet(port, source_port, tag, _INIT_ACK, self._text(peer)), (peer, 0))


def ask(
    namespace: Path, protocol: str, address: str, port: int, *, source: str | None = None, timeout: float = 3
) -> Answer:
    """Send a request to address:port from a namespace, and return the answer.

    `timeout` is in seconds; `source` is the address to send from.

    Raises:
        Refused: the port is closed.
        TimedOut: there is no reply.
    """
    family = 6 if ":" in address else 4
    with open_socket(namespace, protocol, family) as opened:
        opened.settimeout(timeout)
        try:
            if source is not None:
                opened.bind((source, 0))
            opened.connect((address, 0 if protocol == "sctp" else port))
            text = _EXCHANGES[protocol](opened, family, port)
        except ConnectionRefusedError as error:
            raise Refused(f"{address}:{port}/{protocol}") from error
        except TimeoutError as error:
            raise TimedOut(f"{address}:{port}/{protocol}") from error
    return Answer(*text.decode().split(" "))


def _ask_tcp(opened: socket.socket, _family: int, _port: int) -> bytes:
    text = b""
    while part := opened.recv(256):
        text += part
    return text


def _ask_udp(opened: socket.socket, _family: int, _port: int) -> bytes:
    opened.send(b"?")
    return opened.recv(256)


def _ask_sctp(opened: socket.socket, family: int, port: int) -> bytes:
    own_port = 20000 + os.urandom(1)[0]
    opened.send(_sctp_packet(own_port, port, 0, _INIT, b""))
    while True:  # a raw socket also receives other flows, and our own INIT if we send to ourselves
        packet, _ = _receive_sctp(opened, family)
        if _COMMON.unpack_from(packet)[:3] == (port, own_port, _INIT_TAG) and packet[_COMMON.size] == _INIT_ACK:
            length = _STATE_COOKIE.unpack_from(packet, _COMMON.size + _INIT_CHUNK.size)[1]
            return packet[_TEXT_AT : _TEXT_AT + length - _STATE_COOKIE.size]


_EXCHANGES = {"tcp": _ask_tcp, "udp": _ask_udp, "sctp": _ask_sctp}


def _receive_sctp(opened: socket.socket, family: int) -> tuple[bytes, str]:
    packet, peer = opened.recvfrom(2048)
    header_bytes = (packet[0] & 0xF) * 4 if family == 4 else 0  # IPv6 raw sockets leave the header out
    return packet[header_bytes:], peer[0]


def _sctp_packet(source_port: int, port: int, tag: int, kind: int, text: bytes) -> bytes:
    """Return an INIT or INIT ACK with a text as its state cookie."""
    cookie = _STATE_COOKIE.pack(7, _STATE_COOKIE.size + len(text)) + text if text else b""
    chunk = _INIT_CHUNK.pack(kind, 0, _INIT_CHUNK.size + len(cookie), _INIT_TAG, 65536, 1, 1, 1) + cookie
    chunk += bytes(-len(chunk) % 4)
    checksum = _crc32c(_COMMON.pack(source_port, port, tag, 0) + chunk)
    header = struct.pack("!HHL", source_port, port, tag) + struct.pack("<L", checksum)
    return header + chunk


def _crc32c(content: bytes) -> int:
    table, crc = _crc32c_table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> list[int]:
    table = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table
