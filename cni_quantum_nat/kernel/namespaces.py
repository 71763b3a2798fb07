"""Network namespaces."""

from __future__ import annotations

import posix


def namespace_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the network namespace that a path names, None when the path is gone."""
    try:
        status = posix.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
