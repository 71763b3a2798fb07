"""Checks the program's binaries: no newer glibc than is stated, and no library that neither comes along nor is every host's.

Usage: elf.py DIRECTORY STATED_GLIBC
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# What glibc itself brings.
OF_THE_HOST = frozenset(
    ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2")
)
OF_THE_HOST_ON_ARM = "ld-linux-aarch64.so.1"
_MARKED_RELATIVE = (2, 36)  # GLIBC_ABI_DT_RELR: relative relocations, understood since
_NAMED = re.compile(r"Name: GLIBC_(?:(\d+)\.(\d+)|ABI_DT_RELR)")
_NEEDED = re.compile(r"\(NEEDED\)\s+Shared library: \[(.+?)\]")


class Binary(NamedTuple):
    """What one ELF file asks of others: the highest (major, minor) of glibc, and libraries."""

    path: Path
    glibc: tuple[int, int]
    needed: frozenset[str]


def parse(path: Path, listing: str) -> Binary:
    """Read what `readelf --wide --dynamic --version-info` printed of a file."""
    versions = [(int(match[1]), int(match[2])) if match[1] else _MARKED_RELATIVE for match in _NAMED.finditer(listing)]
    return Binary(path, max(versions, default=(0, 0)), frozenset(_NEEDED.findall(listing)))


def read(directory: Path) -> list[Binary]:
    """Return what all ELF files below the directory ask for."""
    found = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()):
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        line = ["readelf", "--wide", "--dynamic", "--version-info", str(path)]
        found.append(parse(path, subprocess.run(line, capture_output=True, text=True, check=True).stdout))
    return found


def problems(binaries: list[Binary], stated: tuple[int, int]) -> list[str]:
    """Say what is not as stated: a newer glibc, a lower one than stated, or a library that is missing."""
    brought = {binary.path.name for binary in binaries} | OF_THE_HOST | {OF_THE_HOST_ON_ARM}
    said = []
    for binary in binaries:
        if binary.glibc > stated:
            said.append(f"{binary.path.name} needs glibc {_dotted(binary.glibc)}, and {_dotted(stated)} is stated")
        said += [f"{binary.path.name} needs {name}, which is not there" for name in sorted(binary.needed - brought)]
    highest = max((binary.glibc for binary in binaries), default=(0, 0))
    if highest < stated:
        said.append(f"glibc {_dotted(stated)} is stated, and {_dotted(highest)} would do")
    return said


def _dotted(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)


def main(directory: Path, statement: Path) -> int:
    """Print the problems, and return whether there are any."""
    major, minor = statement.read_text().strip().split(".")
    said = problems(read(directory), (int(major), int(minor)))
    for line in said:
        print(f"{directory}: {line}; see {statement}", file=sys.stderr)
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
