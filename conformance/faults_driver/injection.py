"""System calls of one call of the plugin, and strace's options to interrupt it at one of them.

Only what comes after the lock file is opened is of interest: until then the process has not touched anything. strace counts
each kind of system call by itself, so a point is its name and its number.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

KILL = "SIGKILL"
ERRORS = ("ENOSPC", "EIO", "EINTR", "EAGAIN", "ENOMEM")
# What a full disk, a tired kernel or a signal can make fail.
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
    """The `number`th `name` of the process; `what` is how strace shows it."""

    name: str
    number: int
    what: str

    def __str__(self) -> str:
        return f"{self.name} {self.number} ({self.what})"

    @property
    def faults(self) -> tuple[str, ...]:
        """What is injected here. A program that cannot read its own code is nobody's to save."""
        return (KILL, *ERRORS) if self.name in FAILING and not _LIBRARY.search(self.what) else (KILL,)


def tracer(trace: Path) -> tuple[str, ...]:
    """Return the command that records a call."""
    return ("strace", "-f", "-y", "-s", "80", "-o", str(trace))


def injector(trace: Path, point: Point, fault: str) -> tuple[str, ...]:
    """Return the command that makes a point fail, or kills the process as it gets there."""
    how = f"signal={fault}" if fault == KILL else f"error={fault}"
    return (
        "strace", "-f", "-o", str(trace), f"--trace={point.name}",
        f"--inject={point.name}:{how}:when={point.number}",
    )  # fmt: skip


def points_of(trace: Path, mark: str = _MARK) -> list[Point]:
    """Return the points of the process itself, after the lock is opened, or `mark` is seen; not those of programs that it starts."""
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
    """Whether the point was reached."""
    text = trace.read_text(errors="replace")
    return "(INJECTED)" in text or f"killed by {KILL}" in text
