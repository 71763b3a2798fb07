"""How many attachments on record have each host port: a byte a port, a file a protocol, read and written in place.

    claims/PROTOCOL    byte N: how many hold port N, 255 is 255 or more; after the last port, the one allocated last (2 bytes)

It is a hint that may only be too high: ports are counted before the record is written, and taken off after it is removed. A
zero means that no record has the port. Whatever was cut off leaves a port counted too high, and when the range
seems to be full, all of it is counted again.
"""

from __future__ import annotations

import posix

from .errors import IO_FAILURE, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .model import Attachment, PortMapping

_PORTS = 65536
_MOST = 255
_CURSOR_BYTES = 2


class PortClaims:
    """The counts in one directory, used under its lock."""

    __slots__ = ("_directory",)

    def __init__(self, state_directory: str) -> None:
        self._directory = f"{state_directory}/claims"

    def add(self, mappings: Iterable[PortMapping]) -> None:
        """Count the host ports of a record that is about to be written."""
        self._change(mappings, 1)

    def remove(self, mappings: Iterable[PortMapping]) -> None:
        """Take the host ports of a record that is gone off the count."""
        self._change(mappings, -1)

    def count(self, mapping: PortMapping) -> int:
        """Say how many attachments have the host port, on whatever address."""
        return self._read(mapping.protocol, mapping.host_port, 1)[0]

    def counts(self, protocol: str) -> bytes:
        """Return the counts of all ports, by port."""
        return self._read(protocol, 0, _PORTS)

    def last_allocated(self, protocol: str) -> int:
        """Return the port that was allocated last, 0 when there is none."""
        return int.from_bytes(self._read(protocol, _PORTS, _CURSOR_BYTES), "big")

    def note_allocated(self, protocol: str, port: int) -> None:
        """Remember that this port was allocated last."""
        self._write([(protocol, _PORTS, port.to_bytes(_CURSOR_BYTES, "big"))])

    def count_again(self, attachments: Iterable[Attachment]) -> None:
        """Count all records anew."""
        counts: dict[str, bytearray] = {}
        for attachment in attachments:
            for mapping in attachment.port_mappings:
                of_protocol = counts.setdefault(mapping.protocol, bytearray(_PORTS))
                of_protocol[mapping.host_port] = min(_MOST, of_protocol[mapping.host_port] + 1)
        try:
            found = posix.listdir(self._directory)
        except FileNotFoundError:
            found = []
        for protocol in {*found, *counts}:
            self._write([(protocol, 0, bytes(counts.get(protocol, bytes(_PORTS))))])

    def _change(self, mappings: Iterable[PortMapping], change: int) -> None:
        changed = []
        for mapping in mappings:
            count = self.count(mapping)
            if count != _MOST:
                changed.append((mapping.protocol, mapping.host_port, bytes((max(0, min(_MOST, count + change)),))))
        self._write(changed)

    def _read(self, protocol: str, offset: int, length: int) -> bytes:
        try:
            descriptor = posix.open(f"{self._directory}/{protocol}", posix.O_RDONLY | posix.O_CLOEXEC)
        except FileNotFoundError:
            return bytes(length)
        try:
            return posix.pread(descriptor, length, offset).ljust(length, b"\0")
        finally:
            posix.close(descriptor)

    def _write(self, changes: Iterable[tuple[str, int, bytes]]) -> None:
        try:
            for protocol, offset, content in changes:
                descriptor = self._open(protocol)
                try:
                    posix.pwrite(descriptor, content, offset)
                finally:
                    posix.close(descriptor)
        except OSError as error:
            raise CniError(
                IO_FAILURE, f"cannot count host ports in {self._directory}: {posix.strerror(error.errno or 0)}"
            ) from error

    def _open(self, protocol: str) -> int:
        flags = posix.O_CREAT | posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW
        try:
            return posix.open(f"{self._directory}/{protocol}", flags, 0o600)
        except FileNotFoundError:
            posix.mkdir(self._directory, 0o700)
            return posix.open(f"{self._directory}/{protocol}", flags, 0o600)


def free_ports(counts: bytes, first: int, last: int, after: int, excluded: set[int]) -> Iterator[int]:
    """Yield the free ports of a range, each once, from the one that follows `after` on and round to it."""
    start = after + 1 if first <= after < last else first
    for low, high in ((start, last), (first, start - 1)):
        port = counts.find(0, low, high + 1)
        while port != -1:
            if port not in excluded:
                yield port
            port = counts.find(0, port + 1, high + 1)
