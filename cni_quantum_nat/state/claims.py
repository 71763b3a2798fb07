"""How many attachments on record have each host port: a byte a port, a file a protocol, read and written in place.

    claims/PROTOCOL    byte N: how many hold port N, 255 is 255 or more; after the last port, the one allocated last (2 bytes)

It is a hint that may only be too high: ports are counted before the record is written, and taken off after it is removed. A
zero means that no record has the port. Whatever was cut off leaves a port counted too high, and when the range
seems to be full, all of it is counted again: as also where a file is not there, or is not what we made.
"""

from __future__ import annotations

import posix

from ..model.attachments import PROTOCOLS
from ..model.errors import IO_FAILURE, CniError
from .files import Foreign, list_directory, make_directory, open_own, write_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..model.attachments import PortMapping
    from .directory import State

_PORTS = 65536
_MOST = 255
_CURSOR_BYTES = 2
_FILE_BYTES = _PORTS + _CURSOR_BYTES


class PortClaims:
    """The counts of one state directory, used under its lock."""

    __slots__ = ("_directory", "_made", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._made: set[str] = set()  # protocols that were counted from the records, because there was nothing to read
        self._directory = f"{state.directory}/claims"

    def add(self, mappings: Iterable[PortMapping]) -> None:
        """Count the host ports of a record that is about to be written."""
        self._change(mappings, 1)

    def remove(self, mappings: Iterable[PortMapping]) -> None:
        """Take the host ports of a record that is gone off the count, unless that was taken when it was gone already."""
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

    def count_again(self) -> None:
        """Count all records anew, for every protocol."""
        protocols = {*list_directory(self._directory), *PROTOCOLS}
        for protocol, counts in self._counted().items():
            protocols.discard(protocol)
            self._write([(protocol, 0, bytes(counts))])
        for protocol in protocols.intersection(list_directory(self._directory)):
            self._write([(protocol, 0, bytes(_PORTS))])

    def _counted(self) -> dict[str, bytearray]:
        counts: dict[str, bytearray] = {}
        for attachment in self._state.attachments([]):
            for mapping in attachment.port_mappings:
                of_protocol = counts.setdefault(mapping.protocol, bytearray(_PORTS))
                of_protocol[mapping.host_port] = min(_MOST, of_protocol[mapping.host_port] + 1)
        return counts

    def _change(self, mappings: Iterable[PortMapping], change: int) -> None:
        changed = []
        for mapping in mappings:
            count = self.count(mapping)
            if count != _MOST and (change > 0 or mapping.protocol not in self._made):
                changed.append((mapping.protocol, mapping.host_port, bytes((max(0, min(_MOST, count + change)),))))
        self._write(changed)

    def _read(self, protocol: str, offset: int, length: int) -> bytes:
        try:
            descriptor = self._open(protocol)
            try:
                return posix.pread(descriptor, length, offset)
            finally:
                posix.close(descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, changes: Iterable[tuple[str, int, bytes]]) -> None:
        try:
            for protocol, offset, content in changes:
                descriptor = self._open(protocol)
                try:
                    posix.pwrite(descriptor, content, offset)
                finally:
                    posix.close(descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def _open(self, protocol: str) -> int:
        """Open a file of the right size; one that is not there, or is another, is made from the records."""
        path = f"{self._directory}/{protocol}"
        try:
            return open_own(path, posix.O_RDWR, _FILE_BYTES)
        except (FileNotFoundError, Foreign):
            self._make_files()
        return open_own(path, posix.O_RDWR, _FILE_BYTES)

    def _make_files(self) -> None:
        """Count all records; for all protocols at once, so that it is done when there are few of them."""
        counted = self._counted()
        make_directory(self._directory)
        for protocol in PROTOCOLS:
            path = f"{self._directory}/{protocol}"
            try:
                posix.close(open_own(path, posix.O_RDWR, _FILE_BYTES))
            except (FileNotFoundError, Foreign):
                self._made.add(protocol)
                counts = bytes(counted.get(protocol, bytes(_PORTS)))
                write_whole(f"{self._state.directory}/pending", path, counts + bytes(_CURSOR_BYTES))

    def _failure(self, error: OSError) -> CniError:
        return CniError(IO_FAILURE, f"cannot count host ports in {self._directory}: {posix.strerror(error.errno or 0)}")


def free_ports(counts: bytes, first: int, last: int, after: int, excluded: set[int]) -> Iterator[int]:
    """Yield the free ports of a range, each once, from the one that follows `after` on and round to it."""
    start = after + 1 if first <= after < last else first
    for low, high in ((start, last), (first, start - 1)):
        port = counts.find(0, low, high + 1)
        while port != -1:
            if port not in excluded:
                yield port
            port = counts.find(0, port + 1, high + 1)
