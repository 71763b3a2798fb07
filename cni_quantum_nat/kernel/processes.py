"""Find the processes that use a socket or hold a lock, from /proc. Used only to explain an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_SHORTEST_ID = 12  # that people and runtimes abbreviate an ID to
_NERDCTL = "/run/nerdctl"


class Process(NamedTuple):
    """A process: its ID, name and command line."""

    number: int
    name: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.name} (process {self.number})"

    def serves_container(self, container_id: str) -> bool:
        """Return whether it runs for this container: podman's and CRI-O's conmon, or what nerdctl reserves a port with."""
        return self._has_id(container_id) or self.number == _port_reserver(container_id)

    def _has_id(self, container_id: str) -> bool:
        """Return whether the container ID is on its command line: alone, or in a path.

        A short one is a word like others, and counts only for conmon. For CNI, nerdctl prefixes the ID with its namespace.
        """
        if len(container_id) < _SHORTEST_ID and self.name != "conmon":
            return False
        words = {word for argument in self.arguments for word in (argument, *argument.split("/"))}
        return any(
            word == container_id or (len(word) >= _SHORTEST_ID and container_id.endswith(f"-{word}")) for word in words
        )


def _port_reserver(container_id: str) -> int:
    """Return the ID of the process that nerdctl (2.1.6 and newer) holds the container's ports with: `sleep infinity`; 0 if none."""
    namespace, _, own_id = container_id.rpartition("-")
    try:
        return int(Path(_NERDCTL, namespace, own_id, "port-reserver.pid").read_text())
    except (OSError, ValueError):
        return 0


def holders_of(inode: int) -> list[Process]:
    """Return the visible processes that have the socket open."""
    target = f"socket:[{inode}]"
    numbered = [directory for directory in Path("/proc").iterdir() if directory.name.isdecimal()]
    return [_describe(directory) for directory in numbered if _holds(directory, target)]


def holders_of_lock(descriptor: int) -> list[Process]:
    """Return the visible processes that hold an flock(2) on an open file."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    # NUMBER: FLOCK ADVISORY WRITE PROCESS DEVICE:INODE START END. A waiting process has an arrow before FLOCK; the process
    # ID is 0 if it is in another PID namespace.
    numbers = {words[4] for words in lines if words[1] == "FLOCK" and words[5] == file and words[4] != "0"}
    return [_describe(Path("/proc", number)) for number in sorted(numbers)]


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
