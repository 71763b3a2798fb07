"""What /proc says of a process."""

from __future__ import annotations

from pathlib import Path


def runs(process: int) -> bool:
    """Whether it is there, and not a zombie that its parent has yet to read."""
    try:
        return _status(process)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(process: int) -> int:
    """Return the process ID of its parent."""
    return int(_status(process)[1])


def _status(process: int) -> list[str]:
    """Return what comes behind the name: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
