"""Stop a call behind one of its system calls, and let it go on. strace does the stopping."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conformance.faults_driver.injection import Point

_FLOCK = {"x86_64": "73", "aarch64": "32"}[os.uname().machine]
_PATIENCE_S = 30
_PAUSE_S = 0.002


def stopper(trace: Path, point: Point) -> tuple[str, ...]:
    """Return the command that stops the process behind a system call."""
    return (
        "strace", "-f", "-o", str(trace), f"--trace={point.name}",
        f"--inject={point.name}:signal=SIGSTOP:when={point.number}",
    )  # fmt: skip


class Stopped:
    """A call that was started with `stopper`: in `with` it stands still, if it gets there at all."""

    def __init__(self, process: subprocess.Popen[str], trace: Path) -> None:
        self.process = process
        self._trace = trace
        self.was_stopped = False

    def __enter__(self) -> Self:
        end = time.monotonic() + _PATIENCE_S
        while not self._stands_still() and self.process.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError("the call neither stops nor ends")
            time.sleep(_PAUSE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()

    def go_on(self) -> None:
        """Let it go on; nothing happens when it does already."""
        if self.was_stopped and self.process.poll() is None:
            os.kill(self._traced(), signal.SIGCONT)

    def _stands_still(self) -> bool:
        if not self._trace.exists() or "--- stopped by SIGSTOP ---" not in self._trace.read_text(errors="replace"):
            return False
        self.was_stopped = True
        return True

    def _traced(self) -> int:
        """Return the process that strace has started and still has."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


def waits_for_lock(process: subprocess.Popen[str]) -> bool:
    """Whether a call stands in flock(2)."""
    try:
        return Path(f"/proc/{process.pid}/syscall").read_text().split()[0] == _FLOCK
    except (OSError, IndexError):
        return False  # it has ended


def wait_until_ended_or(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until a call has ended, or something else is true: both of them for a while, since calls wait for short times too."""
    end = time.monotonic() + _PATIENCE_S
    true_since = 0.0
    while process.poll() is None:
        now = time.monotonic()
        true_since = (true_since or now) if condition() else 0.0
        if true_since and now - true_since > 0.05:
            return
        if now > end:
            raise TimeoutError("the second call does not end")
        time.sleep(_PAUSE_S)
