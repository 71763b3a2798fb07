"""Puts a snapshot of the plugin, after its start, into the plugin's file.

Usage: snapshot.py PLUGIN. The plugin writes it (plugin.c, record). It is one section of the file, so the kernel maps it where it
was when it executes the program. It is taken twice, in surroundings that differ in all that must not be in it: addresses of stack and
heap, environment, time, directory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECTION = ".snapshot"
_RANDOMIZATION = Path("/proc/sys/kernel/randomize_va_space")
SURROUNDINGS = (
    {},
    {
        "TZ": "Asia/Tokyo",
        "LANG": "de_DE.UTF-8",
        "HOME": "/nowhere",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": "/nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
    },
)


class Unfit(Exception):
    """The snapshot has something in it that belongs to the process that took it."""


def take(plugin: Path, environment: dict[str, str]) -> bytes:
    """Have the plugin write a snapshot, and return it."""
    with tempfile.TemporaryDirectory() as directory:
        snapshot = Path(directory) / "snapshot"
        line = [str(plugin.resolve()), "--record-snapshot", str(snapshot)]
        nothing = subprocess.DEVNULL  # the interpreter looks at what its descriptors are
        surroundings: dict[str, Any] = {"env": environment, "cwd": directory}
        done = subprocess.run(line, **surroundings, stdin=nothing, stdout=nothing, stderr=nothing, check=False)
        if done.returncode:
            done = subprocess.run(line, **surroundings, capture_output=True, text=True, check=False)
            raise Unfit(f"the plugin cannot start:\n{done.stderr}")
        return snapshot.read_bytes()


def place_of_section(listing: str) -> tuple[int, int]:
    """Return offset and size of the section in the file, from what `readelf --wide --sections` printed."""
    for line in listing.splitlines():
        words = line.partition("]")[2].split()
        if words[:2] == [SECTION, "PROGBITS"]:
            return int(words[3], 16), int(words[4], 16)
    raise Unfit(f"the program has no section {SECTION} with contents")


def difference(first: bytes, second: bytes) -> str:
    """Say where two snapshots differ; nothing when they do not."""
    offsets = [at for at in range(0, len(first), 8) if first[at : at + 8] != second[at : at + 8]]
    if not offsets:
        return ""
    shown = ", ".join(f"{at:#x}: {first[at : at + 8].hex()} {second[at : at + 8].hex()}" for at in offsets[:10])
    return f"{len(offsets)} words differ between two snapshots: {shown}"


def insert(plugin: Path) -> None:
    """Take the snapshot, and write it into the plugin."""
    if _RANDOMIZATION.read_text().strip() == "0":
        raise Unfit(f"addresses are the same in each process, so none would be seen: set {_RANDOMIZATION} to 2")
    first, second = (take(plugin, environment) for environment in SURROUNDINGS)
    if len(first) != len(second) or (said := difference(first, second)):
        raise Unfit(said)
    listing = subprocess.run(
        ["readelf", "--wide", "--sections", str(plugin)], capture_output=True, text=True, check=True
    )
    offset, size = place_of_section(listing.stdout)
    if size != len(first):
        raise Unfit(f"the snapshot has {len(first)} bytes, its section {size}")
    with plugin.open("r+b") as file:
        file.seek(offset)
        file.write(first)


if __name__ == "__main__":
    insert(Path(sys.argv[1]))
