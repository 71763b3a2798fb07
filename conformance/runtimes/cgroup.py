"""A cgroup for all processes that a runtime starts, whichever parent they end up with."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.kernel.topology import wait_until

_PATIENCE_S = 10


class Cgroup:
    """A cgroup in every hierarchy of the host: one with cgroups version 2, one per controller with version 1.

    A runtime's daemon is put into one hierarchy, and its children inherit that; runc puts a container into all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._hierarchies = _hierarchies()
        self._counting = _counting(self._hierarchies) / name

    def entering(self, group: str, *command: str) -> list[str]:
        """Return the command that runs in a group below this one."""
        directory = self._counting / group
        directory.mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{directory}/cgroup.procs", *command]

    def processes(self, group: str = "") -> list[int]:
        """Return the processes in the group or below it, without zombies."""
        return [process for directory in _with_below(self._counting / group) for process in _processes_in(directory)]

    def kill(self, group: str = "") -> None:
        """Kill all processes, including those started meanwhile."""
        wait_until(lambda: not self._kill_once(group), f"the processes of {group or self.name} end", _PATIENCE_S)

    def _kill_once(self, group: str) -> list[int]:
        found = self.processes(group)
        for process in found:
            with suppress(ProcessLookupError):  # it has already ended
                os.kill(process, signal.SIGKILL)
        return found

    def remove(self, group: str = "") -> None:
        """Remove the group and those below it from every hierarchy, after its processes have ended; conmon may take a while."""
        wait_until(lambda: not self.processes(group), f"the processes of {group or self.name} end", _PATIENCE_S)
        for top in self.directories(group):
            for directory in reversed(_with_below(top)):
                with suppress(FileNotFoundError):  # the runtime was faster
                    directory.rmdir()

    def directories(self, group: str = "") -> list[Path]:
        """Return its directories."""
        paths = [hierarchy / self.name / group for hierarchy in self._hierarchies]
        return [path for path in paths if path.is_dir()]


def _hierarchies() -> list[Path]:
    """Return the mount points of cgroups."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2")]


def _counting(hierarchies: list[Path]) -> Path:
    """Return the hierarchy that contains every process: the only one, or that of the controller `pids`."""
    return next((path for path in hierarchies if path.name == "pids"), hierarchies[0])


def _with_below(directory: Path) -> list[Path]:
    """Return a group and those below it, parents first; groups removed meanwhile are left out."""
    return [Path(path) for path, _, _ in os.walk(directory)]


def _processes_in(directory: Path) -> list[int]:
    try:
        return [int(process) for process in (directory / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno != errno.ENODEV:  # removed while we read
            raise
        return []
