"""The system calls of one call of the plugin, and strace's options to interrupt it at one of them.

Only system calls after the opening of the lock file matter: before that, the process changes nothing. strace counts each kind
of system call separately, so a point is its name and number.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

KILL = "SIGKILL"
ERRORS = ("ENOSPC", "EIO", "EINTR", "EAGAIN", "ENOMEM")
# System calls that can fail because of a full disk, lack of memory or a signal.
FAILING = frozenset(
    [
        "open",
        "openat",
        "creat",
        "read",
        "pread64",
        "write",
        "pwrite64",
        "rename",
        "mkdir",
        "rmdir",
        "unlink",
        "stat",
        "lstat",
        "newfstatat",
        "fstat",
        "getdents64",
        "ftruncate",
        "flock",
        "chmod",
        "socket",
        "bind",
        "setsockopt",
        "sendto",
        "sendmsg",
        "recvfrom",
        "recvmsg",
    ]
)
_SHOWN = 110
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
_LIBRARY = re.compile(
    r'/site-packages/|base_library\.zip|/_internal-|/quantum-nat/quantum-nat>|/lib/python3|\.py"|\.pyc|/cni_quantum_nat[/"]|\.so[.\d]*[>"]|/lib/[a-z0-9_]+-linux-gnu'
)
_MARK = '/lock"'


class Point(NamedTuple):
    """The `number`th system call `name` of the process; `what` is strace's line."""

    name: str
    number: int
    what: str

    def __str__(self) -> str:
        return f"{self.name} {self.number} ({self.what})"

    @property
    def faults(self) -> tuple[str, ...]:
        """The faults to inject here. Errors in loading the program's own code are left out."""
        return (KILL, *ERRORS) if self.name in FAILING and not _LIBRARY.search(self.what) else (KILL,)


def tracer(trace: Path) -> tuple[str, ...]:
    """Return the command that records a call."""
    return ("strace", "-f", "-y", "-s", "80", "-o", str(trace))


def injector(trace: Path, point: Point, fault: str) -> tuple[str, ...]:
    """Return the command that makes a point fail, or kills the process there."""
    how = f"signal={fault}" if fault == KILL else f"error={fault}"
    return (
        "strace", "-f", "-o", str(trace), f"--trace={point.name}",
        f"--inject={point.name}:{how}:when={point.number}",
    )  # fmt: skip


def points_of(trace: Path, mark: str = _MARK) -> list[Point]:
    """Return the points of the process itself after it opens the lock, or names `mark`, without those of programs that it starts."""
    counted: Counter[str] = Counter()
    points: list[Point] = []
    own, marked = "", False
    for line in trace.read_text(errors="replace").splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        process, name, rest = call.groups()
        own = own or process
        if process != own:
            continue
        counted[name] += 1
        marked = marked or mark in rest
        if marked and name not in ("exit_group", "execve"):
            points.append(Point(name, counted[name], rest[:_SHOWN]))
    return points


def was_injected(trace: Path) -> bool:
    """Return whether the point was reached."""
    text = trace.read_text(errors="replace")
    return "(INJECTED)" in text or f"killed by {KILL}" in text
