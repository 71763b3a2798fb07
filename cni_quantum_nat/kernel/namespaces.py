"""Network namespaces.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix


def namespace_identity(path: str) -> tuple[int, int] | None:
    """Return the device and inode of the network namespace at a path; None if the path does not exist."""
    try:
        status = posix.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
