"""A cgroup for all that a runtime starts: it says which processes those are, whoever their parent is by then."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.kernel.world import wait_until

_PATIENCE_S = 10


class Cgroup:
    """One name in every hierarchy of the host: a single one with cgroups version 2, one a controller with version 1.

    A runtime's daemon is put into one hierarchy, and what it starts inherits that; a container is put by runc into all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._hierarchies = hierarchies()
        self._counting = _counting(self._hierarchies) / name

    def entering(self, group: str, *command: str) -> list[str]:
        """Return the command that runs in a group below this one."""
        directory = self._counting / group
        directory.mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{directory}/cgroup.procs", *command]

    def processes(self, group: str = "") -> list[int]:
        """Return who is in it, or in a group below it. Zombies are not."""
        lists = (self._counting / group).rglob("cgroup.procs")
        return [int(process) for processes in lists for process in _lines(processes)]

    def kill(self, group: str = "") -> None:
        """End its processes, also those that they start meanwhile."""
        wait_until(lambda: not self._kill_once(group), f"the processes of {group or self.name} end", _PATIENCE_S)

    def _kill_once(self, group: str) -> list[int]:
        found = self.processes(group)
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has ended by itself
        return found

    def remove(self, group: str = "") -> None:
        """Remove it and what is below it from every hierarchy; it has no processes any more."""
        for directory in self.directories(group):
            for below in sorted(directory.rglob("*/"), reverse=True):
                below.rmdir()
            directory.rmdir()

    def directories(self, group: str = "") -> list[Path]:
        """Return where it is."""
        paths = [hierarchy / self.name / group for hierarchy in self._hierarchies]
        return [path for path in paths if path.is_dir()]


def hierarchies() -> list[Path]:
    """Return where cgroups are mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2")]


def _counting(mounted: list[Path]) -> Path:
    """Return the hierarchy that every process is put into: the only one, or else that of the controller `pids`."""
    return next((path for path in mounted if path.name == "pids"), mounted[0])


def _lines(processes: Path) -> list[str]:
    try:
        return processes.read_text().split()
    except (FileNotFoundError, OSError):
        return []  # the group has been removed
