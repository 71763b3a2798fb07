"""Which processes hold a socket or a lock: looked up in /proc, where one is in somebody's way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_SHORTEST_ID = 12


class Process(NamedTuple):
    """A process: its number, its name, its command line."""

    number: int
    name: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.name} (process {self.number})"

    def serves_container(self, container_id: str) -> bool:
        """Whether it runs for this container: conmon has its ID on the command line, podman's and CRI-O's alike.

        nerdctl prefixes the ID for CNI with its namespace.
        """
        return any(
            container_id in argument or (len(argument) >= _SHORTEST_ID and container_id.endswith(f"-{argument}"))
            for argument in self.arguments
        )


def holders_of(inode: int) -> list[Process]:
    """Return the processes that have the socket open, those that can be seen."""
    target = f"socket:[{inode}]"
    numbered = [directory for directory in Path("/proc").iterdir() if directory.name.isdecimal()]
    return [_describe(directory) for directory in numbered if _holds(directory, target)]


def holders_of_lock(descriptor: int) -> list[Process]:
    """Return the processes that have an open file locked by flock(2); none where they cannot be seen."""
    try:
        file = f"{_file_system_of(descriptor)}:{os.fstat(descriptor).st_ino}"
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    # NUMBER: FLOCK ADVISORY WRITE PROCESS DEVICE:INODE START END; who waits has an arrow before FLOCK, who is not
    # in this PID namespace the number 0.
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
        return False  # it has ended, or is not ours to look at


def _describe(directory: Path) -> Process:
    try:
        name = (directory / "comm").read_text().strip()
        arguments = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        name, arguments = "a process that has ended", []
    return Process(int(directory.name), name, [argument for argument in arguments if argument])
