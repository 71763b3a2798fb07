"""The lock of the state directory: one exclusive flock(2), with a time-out.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from ..model.errors import TRY_AGAIN_LATER, CniError

LOCK_TIMEOUT_S = 60
# Descriptors of the locks that this process holds. Programs that it starts inherit them: if this process is killed while
# such a program still runs, no other call may start.
held: set[int] = set()
# A descriptor that the plugin handed on to the full program, which goes on with its call.
inherited = -1
_POLL_S = 0.01


class Lock:
    """A lock on a file, which is never removed: a waiting process would lock the old inode."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock, and wait up to LOCK_TIMEOUT_S for it.

        Raises:
            CniError: (11) timed out; the message names the process that holds the lock.
            OSError: the file cannot be opened.
        """
        flags = posix.O_CREAT | posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW
        while True:
            self._descriptor = posix.open(self._path, flags, 0o600)
            if inherited >= 0:
                self._take_over()
            try:
                self._lock()
                is_there = posix.fstat(self._descriptor).st_nlink
            except BaseException:
                self.release()  # the alarm may come right after the lock was taken
                raise
            if is_there:
                break
            self.release()  # the directory was removed while we waited, and others lock a new file
        held.add(self._descriptor)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._descriptor >= 0:
            held.discard(self._descriptor)
            posix.close(self._descriptor)
            self._descriptor = -1

    def _take_over(self) -> None:
        """Go on with the descriptor that was handed on, if it is of this file: it has the lock already, or gets it like any other."""
        global inherited  # noqa: PLW0603
        given, own = posix.fstat(inherited), posix.fstat(self._descriptor)
        if (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino):
            posix.dup2(inherited, self._descriptor, inheritable=False)
        posix.close(inherited)
        inherited = -1

    def _lock(self) -> None:
        try:
            flock(self._descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            self._wait()

    def _wait(self) -> None:
        from _signal import (  # rare: only if another call holds the lock
            ITIMER_REAL,
            SIG_SETMASK,
            SIG_UNBLOCK,
            SIGALRM,
            pthread_sigmask,
            setitimer,
            signal,
        )

        def give_up(_number: int, _frame: object) -> None:
            raise TimeoutError

        try:
            previous = signal(SIGALRM, give_up)
        except ValueError:  # only the main thread gets alarms, and the Python API may be used from any
            self._poll()
            return
        blocked = pthread_sigmask(SIG_UNBLOCK, {SIGALRM})  # whoever started us may have blocked it
        setitimer(ITIMER_REAL, LOCK_TIMEOUT_S)
        try:
            flock(self._descriptor, LOCK_EX)
        except TimeoutError:
            raise held_too_long(self._path, self._descriptor) from None
        finally:
            setitimer(ITIMER_REAL, 0)
            pthread_sigmask(SIG_SETMASK, blocked)
            signal(SIGALRM, previous)

    def _poll(self) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                flock(self._descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                time.sleep(_POLL_S)
            else:
                return
        raise held_too_long(self._path, self._descriptor)


def held_too_long(path: str, descriptor: int) -> CniError:
    """Return what a call is told that could not have the lock; the descriptor is of its file."""
    from ..kernel.processes import holders_of_lock  # rare: only after a time-out

    holders = holders_of_lock(descriptor)
    names = " and ".join(map(str, holders)) or "another process"
    look = f"ps -f {' '.join(str(holder.number) for holder in holders)}" if holders else "lslocks"
    return CniError(
        TRY_AGAIN_LATER,
        f"{names} has held {path} for {LOCK_TIMEOUT_S} seconds",
        f"Find out why with `{look}`{'' if holders else ' on the host'}; the lock is released when the process ends.",
    )
