"""Checks the release's binaries: nothing of the host's is loaded.

Usage: elf.py DIRECTORY. The plugin is a static program. Every library that a binary of the full program needs is there beside it, and those of the C library are of use.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PLUGIN = "quantum-nat"
LOADER = re.compile(r"ld-linux-[a-z0-9-]+\.so\.\d")
_NEEDED = re.compile(r"\(NEEDED\)\s+Shared library: \[(.+?)\]")
_INTERPRETER = re.compile(r"\[Requesting program interpreter: (.+?)\]")
_C_LIBRARY = re.compile(r"lib(c|m|dl|pthread|rt)\.so\.\d")


class Binary(NamedTuple):
    """What one ELF file asks of others: the loader, and libraries."""

    path: Path
    interpreter: str
    needed: frozenset[str]


def parse(path: Path, listing: str) -> Binary:
    """Read what `readelf --wide --dynamic --program-headers` printed of a file."""
    interpreter = _INTERPRETER.search(listing)
    return Binary(path, interpreter[1] if interpreter else "", frozenset(_NEEDED.findall(listing)))


def read(directory: Path) -> list[Binary]:
    """Return what all ELF files below the directory ask for."""
    found = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()):
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        line = ["readelf", "--wide", "--dynamic", "--program-headers", str(path)]
        found.append(parse(path, subprocess.run(line, capture_output=True, text=True, check=True).stdout))
    return found


def problems(binaries: list[Binary]) -> list[str]:
    """Say what is not as it must be: a plugin that is not static, a library that is missing, or one that nobody needs."""
    brought = {binary.path.name for binary in binaries}
    needed = {name for binary in binaries for name in binary.needed}
    said = []
    if PLUGIN not in brought:
        said.append(f"{PLUGIN} is not there")
    for binary in binaries:
        if binary.path.name == PLUGIN and (binary.interpreter or binary.needed):
            said.append(f"{PLUGIN} is not static: it asks for {', '.join({binary.interpreter, *binary.needed})}")
        said += [f"{binary.path.name} needs {name}, which is not there" for name in sorted(binary.needed - brought)]
    if not any(LOADER.fullmatch(name) for name in brought):
        said.append("the loader is not there")
    said += [f"nothing needs {name}" for name in sorted(brought - needed) if _C_LIBRARY.fullmatch(name)]
    return said


def main(directory: Path) -> int:
    """Print the problems, and return whether there are any."""
    said = problems(read(directory))
    for line in said:
        sys.stderr.write(f"{directory}: {line}\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
