"""The lock of the state directory: one exclusive flock(2), waited for so long and no longer."""

from __future__ import annotations

import posix
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from ..model.errors import TRY_AGAIN_LATER, CniError

LOCK_TIMEOUT_S = 60
# Those that this process holds. A program that it starts must hold them too: when we are killed, it goes on, and
# whoever came next would find its changes among their own.
held: set[int] = set()
_POLL_S = 0.01


class Lock:
    """A file that is never removed: whoever waits for it holds the old inode."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> None:
        """Wait, at most LOCK_TIMEOUT_S; CniError(11) after that says who holds it, OSError when it can't be made."""
        flags = posix.O_CREAT | posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW
        self._descriptor = posix.open(self._path, flags, 0o600)
        try:
            self._lock()
        except BaseException:
            self.release()  # the alarm may come when the lock has just been had
            raise
        held.add(self._descriptor)

    def release(self) -> None:
        """Let the next one in; nothing happens when it was not held."""
        if self._descriptor >= 0:
            held.discard(self._descriptor)
            posix.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        try:
            flock(self._descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            self._wait()

    def _wait(self) -> None:
        from _signal import ITIMER_REAL, SIGALRM, setitimer, signal  # only when two calls meet

        def give_up(_number: int, _frame: object) -> None:
            raise TimeoutError

        try:
            previous = signal(SIGALRM, give_up)
        except ValueError:  # the main thread alone has alarms, and a program may use the Python API from another
            self._poll()
            return
        setitimer(ITIMER_REAL, LOCK_TIMEOUT_S)
        try:
            flock(self._descriptor, LOCK_EX)
        except TimeoutError:
            raise self._held_too_long() from None
        finally:
            setitimer(ITIMER_REAL, 0)
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
        raise self._held_too_long()

    def _held_too_long(self) -> CniError:
        from ..kernel.processes import holders_of_lock  # only after a minute in vain

        holders = " and ".join(map(str, holders_of_lock(self._descriptor)))
        return CniError(
            TRY_AGAIN_LATER,
            f"{holders or 'another process'} has held {self._path} for {LOCK_TIMEOUT_S} seconds",
            "Find out what keeps it; when it ends, however it ends, the lock is free."
            + ("" if holders else " It is in another PID namespace: lslocks on the host names it."),
        )
