"""Find the processes that use a socket or hold a lock, from /proc. Used only to explain an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_SHORTEST_ID = 12


class Process(NamedTuple):
    """A process: its ID, name and command line."""

    number: int
    name: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.name} (process {self.number})"

    def serves_container(self, container_id: str) -> bool:
        """Return whether it runs for this container: conmon (podman, CRI-O) has the container ID on its command line.

        nerdctl's CNI container ID is the ID with its namespace as a prefix.
        """
        return any(
            container_id in argument or (len(argument) >= _SHORTEST_ID and container_id.endswith(f"-{argument}"))
            for argument in self.arguments
        )


def holders_of(inode: int) -> list[Process]:
    """Return the visible processes that have the socket open."""
    target = f"socket:[{inode}]"
    numbered = [directory for directory in Path("/proc").iterdir() if directory.name.isdecimal()]
    return [_describe(directory) for directory in numbered if _holds(directory, target)]


def holders_of_lock(descriptor: int) -> list[Process]:
    """Return the visible processes that hold an flock(2) on an open file."""
    try:
        file = f"{_file_system_of(descriptor)}:{os.fstat(descriptor).st_ino}"
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    # NUMBER: FLOCK ADVISORY WRITE PROCESS DEVICE:INODE START END. A waiting process has an arrow before FLOCK; the process
    # ID is 0 if it is in another PID namespace.
    numbers = {words[4] for words in lines if words[1] == "FLOCK" and words[5] == file and words[4] != "0"}
    return [_describe(Path("/proc", number)) for number in sorted(numbers)]


def _file_system_of(descriptor: int) -> str:
    """Return the device as /proc/locks has it: st_dev is another one on overlayfs and Btrfs."""
    information = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split()
    mount = information[information.index("mnt_id:") + 1]
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    major, minor = next(words[2].split(":") for words in mounts if words[0] == mount)
    return f"{int(major):02x}:{int(minor):02x}"


def _holds(directory: Path, target: str) -> bool:
    try:
        return any(str(link.readlink()) == target for link in (directory / "fd").iterdir())
    except OSError:
        return False  # it has ended, or we may not inspect it


def _describe(directory: Path) -> Process:
    try:
        name = (directory / "comm").read_text().strip()
        arguments = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        name, arguments = "a process that has ended", []
    return Process(int(directory.name), name, [argument for argument in arguments if argument])
