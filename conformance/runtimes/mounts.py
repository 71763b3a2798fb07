"""What is mounted below a directory, and how it is unmounted."""

from __future__ import annotations

import subprocess
from pathlib import Path


def unmount_below(directory: Path) -> None:
    """Unmount what is mounted below a directory, the newest first."""
    for target in reversed(mounts_below(directory)):
        subprocess.run(["umount", target], check=True)


def mounts_below(directory: Path) -> list[str]:
    """Return where something is mounted below a directory, in the order in which it was."""
    targets = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [target for target in targets if target.startswith(f"{directory}/")]
