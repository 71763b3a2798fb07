"""Network namespaces, and whether a container's still exists.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix

from ..model.attachments import ALIVE, CANNOT_TELL, GONE, NOWHERE

_OWN_NAMESPACE = "/proc/self/ns/net"


def identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at a path, None if there is none. OSError if the system cannot tell."""
    try:
        status = posix.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return status.st_dev, status.st_ino


def own_namespace() -> tuple[int, int]:
    """Return the identity of the network namespace that this process is in."""
    return identity(_OWN_NAMESPACE) or NOWHERE


def is_namespace(candidate: tuple[int, int]) -> bool:
    """Whether a file is a namespace: all namespaces of a host are files of one device, nsfs."""
    return candidate[0] == own_namespace()[0]


def directory_of(path: str) -> tuple[int, int]:
    """Return the identity of the directory that contains a namespace's path.

    A process that finds another directory there, or none, is in another mount namespace, and cannot tell whether the path was removed.
    For /proc/PID/ns/net the directory is /proc, which differs between PID namespaces and remains when the process ends.
    """
    directory = "/proc" if path.startswith("/proc/") else path.rpartition("/")[0] or "/"
    return identity(directory) or NOWHERE


def life(path: str, recorded: tuple[int, int], directory: tuple[int, int]) -> str:
    """Return whether the namespace recorded with this path and identity exists: ALIVE, GONE or CANNOT_TELL.

    directory: `directory_of` the path at that time, NOWHERE if it was not recorded.
    """
    try:
        found = identity(path)
        if found == recorded:
            return ALIVE
        if found is not None:
            return GONE if is_namespace(found) else CANNOT_TELL
        seen = directory_of(path)
    except OSError:  # no memory, no right to look: that is no sign that it is gone
        return CANNOT_TELL
    return GONE if seen != NOWHERE and directory in (seen, NOWHERE) else CANNOT_TELL
