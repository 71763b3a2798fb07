"""Writes the C header with the modules that the frozen program has in itself, compiled and without docstrings.

They are what the interpreter imports to start and does not bring along itself, what a runtime's call loads, and
PyInstaller's importer, for the rest.
"""

from __future__ import annotations
import __future__

import encodings
import marshal
import struct
import sys
from pathlib import Path

import PyInstaller

LAUNCHER = Path(__file__).parent
HOT_MODULES = LAUNCHER.parent / "hot-modules.txt"
PACKAGE = LAUNCHER.parents[1] / "cni_quantum_nat"
_BYTES_PER_LINE = 32


def modules() -> dict[str, Path]:
    """Return the source of each, by name."""
    codecs = Path(encodings.__file__).parent
    loader = Path(PyInstaller.__file__).parent / "loader"
    found = {
        "encodings": codecs / "__init__.py",
        "encodings.aliases": codecs / "aliases.py",
        "encodings.utf_8": codecs / "utf_8.py",
        "__future__": Path(__future__.__file__),
        "struct": Path(struct.__file__),
        "pyimod01_archive": loader / "pyimod01_archive.py",
        "pyimod02_importers": loader / "pyimod02_importers.py",
        "start": LAUNCHER / "start.py",
    }
    for name in filter(None, (line.partition("#")[0].strip() for line in HOT_MODULES.read_text().splitlines())):
        if name.startswith(PACKAGE.name):
            place = PACKAGE.parent.joinpath(*name.split("."))
            found[name] = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return found


def header(sources: dict[str, Path]) -> str:
    """Write the array that CPython calls frozen modules, and what the launcher has to know of the interpreter."""
    arrays, entries = [], []
    for number, (name, source) in enumerate(sources.items()):
        code = marshal.dumps(
            compile(source.read_text(), f"{name.replace('.', '/')}.py", "exec", dont_inherit=True, optimize=2)
        )
        arrays.append(f"static const unsigned char module_{number}[] = {{\n{_numbers(code)}\n}};")
        is_package = int(source.name == "__init__.py")
        entries.append(f'    {{"{name}", module_{number}, {len(code)}, {is_package}, NULL}},')
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join(
        [
            f'#define EXTENSIONS_OF "{version}"',
            *arrays,
            "static const struct _frozen frozen_modules[] = {",
            *entries,
            "    {NULL, NULL, 0, 0, NULL},",
            "};",
            "",
        ]
    )


def _numbers(code: bytes) -> str:
    lines = (code[start : start + _BYTES_PER_LINE] for start in range(0, len(code), _BYTES_PER_LINE))
    return "\n".join(",".join(map(str, line)) + "," for line in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(header(modules()))
