"""Find the processes that use a socket or hold a lock, from /proc. Used only to explain an error.

It needs posix alone, so that a call that has waited for the lock in vain says who holds it without the full program.
"""

from __future__ import annotations

import posix

_SHORTEST_ID = 12  # that people and runtimes abbreviate an ID to
_NERDCTL = "/run/nerdctl"
_CHUNK_BYTES = 1 << 16


class Process:
    """A process: its ID, name and command line."""

    __slots__ = ("arguments", "name", "number")

    def __init__(self, number: int, name: str, arguments: list[str]) -> None:
        self.number = number
        self.name = name
        self.arguments = arguments

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
        return int(_read(f"{_NERDCTL}/{namespace}/{own_id}/port-reserver.pid"))
    except (OSError, ValueError):
        return 0


def holders_of(inode: int) -> list[Process]:
    """Return the visible processes that have the socket open."""
    target = f"socket:[{inode}]"
    numbers = [name for name in posix.listdir("/proc") if name.isdecimal()]
    return [_describe(number) for number in numbers if _holds(number, target)]


def holders_of_lock(descriptor: int) -> list[Process]:
    """Return the visible processes that hold an flock(2) on an open file."""
    try:
        file = f"{_file_system_of(descriptor)}:{posix.fstat(descriptor).st_ino}"
        lines = [line.split() for line in _read("/proc/locks").decode().splitlines()]
    except OSError:
        return []
    # NUMBER: FLOCK ADVISORY WRITE PROCESS DEVICE:INODE START END. A waiting process has an arrow before FLOCK; the process
    # ID is 0 if it is in another PID namespace.
    numbers = {words[4] for words in lines if words[1] == "FLOCK" and words[5] == file and words[4] != "0"}
    return [_describe(number) for number in sorted(numbers)]


def _file_system_of(descriptor: int) -> str:
    """Return the device as /proc/locks has it: st_dev is another one on overlayfs and Btrfs."""
    information = _read(f"/proc/self/fdinfo/{descriptor}").decode().split()
    mount = information[information.index("mnt_id:") + 1]
    mounts = (line.split() for line in _read("/proc/self/mountinfo").decode().splitlines())
    major, minor = next(words[2].split(":") for words in mounts if words[0] == mount)
    return f"{int(major):02x}:{int(minor):02x}"


def _holds(number: str, target: str) -> bool:
    directory = f"/proc/{number}/fd"
    try:
        return any(posix.readlink(f"{directory}/{name}") == target for name in posix.listdir(directory))
    except OSError:
        return False  # it has ended, or we may not inspect it


def _describe(number: str) -> Process:
    try:
        name = _read(f"/proc/{number}/comm").decode().strip()
        arguments = _read(f"/proc/{number}/cmdline").decode(errors="replace").split("\0")
    except OSError:
        name, arguments = "a process that has ended", []
    return Process(int(number), name, [argument for argument in arguments if argument])


def _read(path: str) -> bytes:
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(descriptor, _CHUNK_BYTES):
            chunks.append(chunk)
    finally:
        posix.close(descriptor)
    return b"".join(chunks)
