"""Numbers that continue from record to record, in a small file that is changed in place, under the lock.

    numbers    8 bytes: the last sequence number; then 2 bytes each for tcp, udp and sctp: the last allocated port

A pod's start waits for this module.
"""

from __future__ import annotations

import posix
from _struct import Struct

from ..model.attachments import PROTOCOLS
from ..model.errors import IO_FAILURE, CniError
from .files import Foreign, io_failure, open_own, remove_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FILE = Struct("=QHHH")


class Numbers:
    """The numbers of a state directory. `close` writes them."""

    __slots__ = ("_before", "_descriptor", "_path", "last_ports", "sequence")

    def __init__(self, path: str, highest_on_record: Callable[[], int]) -> None:
        """Read the numbers. If the file is lost, `highest_on_record` finds the last sequence number. CniError(5) if it cannot be read."""
        self._path = path
        self._before = b""
        try:
            self._descriptor = self._open()
            self._before = posix.pread(self._descriptor, _FILE.size + 1, 0)
        except OSError as error:
            raise io_failure("read", path, error) from error
        except Foreign as why:  # a directory, which we do not remove
            raise CniError(
                IO_FAILURE, f"cannot read {path}: {why}", f"Move it out of the way: mv {path} {path}.old"
            ) from why
        ports: tuple[int, ...] = (0, 0, 0)
        if len(self._before) == _FILE.size:
            self.sequence, *ports_read = _FILE.unpack(self._before)
            ports = tuple(ports_read)
        else:
            self.sequence = highest_on_record()
        self.last_ports = dict(zip(PROTOCOLS, ports))

    def _open(self) -> int:
        try:
            return open_own(self._path, posix.O_RDWR | posix.O_CREAT)
        except Foreign:
            remove_file(self._path)
            return open_own(self._path, posix.O_RDWR | posix.O_CREAT)

    def next_sequence(self) -> int:
        """Return a number higher than that of any record."""
        self.sequence += 1
        number: int = self.sequence
        return number

    def close(self) -> None:
        """Write the numbers if they have changed. CniError(5) if that fails."""
        content = _FILE.pack(self.sequence, *self.last_ports.values())
        try:
            if content != self._before:
                if len(self._before) > _FILE.size:
                    posix.ftruncate(self._descriptor, 0)
                posix.pwrite(self._descriptor, content, 0)
        except OSError as error:
            raise io_failure("write", self._path, error) from error
        finally:
            posix.close(self._descriptor)
