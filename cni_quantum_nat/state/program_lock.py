"""The lock of the state directory, for the Python API and the operator's commands: the same flock(2) on the same file, by filelock.

It needs no signal handler and no timer, which belong to the program that uses the API, and a child of fork(2) does not keep it.
"""

from __future__ import annotations

import posix

from filelock import FileLock, Timeout

from . import lock
from .lock import Lock, held, held_too_long

_POLL_S = 0.01


class ProgramLock(Lock):
    """The lock, taken by filelock."""

    __slots__ = ("_filelock",)

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._filelock: FileLock | None = None

    def acquire(self) -> None:
        """Take the lock, as Lock does."""
        taken = FileLock(
            self._path,
            timeout=lock.LOCK_TIMEOUT_S,
            mode=0o600,
            thread_local=False,
            poll_interval=_POLL_S,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=self._note,
        )
        try:
            taken.acquire()
        except Timeout:
            descriptor = posix.open(self._path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
            try:
                raise held_too_long(self._path, descriptor) from None
            finally:
                posix.close(descriptor)
        self._filelock = taken

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._filelock is not None:
            held.discard(self._descriptor)
            self._descriptor = -1
            self._filelock.release()
            self._filelock = None

    def _note(self, descriptor: int) -> None:
        """Remember the descriptor, for programs that are started meanwhile."""
        self._descriptor = descriptor
        held.add(descriptor)
