"""List and unmount the mounts below a directory."""

from __future__ import annotations

import subprocess
from pathlib import Path


def unmount_below(directory: Path) -> None:
    """Unmount all mounts below a directory, newest first."""
    for target in reversed(mounts_below(directory)):
        subprocess.run(["umount", target], check=True)


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory, oldest first."""
    targets = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [target for target in targets if target.startswith(f"{directory}/")]
