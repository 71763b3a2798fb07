"""Writes a C header with modules that a program has in itself, compiled and without docstrings: frozen_modules.py LIST HEADER.

The list's form is described in plugin.modules.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_BYTES_PER_LINE = 32


class NoSource(Exception):
    """A module that is listed has no source."""


def modules(listing: str) -> dict[str, Path]:
    """Return the source of each module in a list, by name."""
    found: dict[str, Path] = {}
    for line in listing.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, place = line.partition(" ")
        if name.endswith(".*"):
            package = name.removesuffix(".*")
            initial = _source(package)
            found[package] = initial
            for path in sorted(initial.parent.glob("*.py")):
                if path != initial:
                    found[f"{package}.{path.stem}"] = path
        else:
            found[name] = _source(place or name)
    return found


def _source(place: str) -> Path:
    """Return the file of a module, or the one that is meant itself."""
    if place.endswith(".py"):
        return PROJECT / place
    spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise NoSource(f"{place} has no source that could be compiled")
    return Path(spec.origin)


def header(name: str, sources: dict[str, Path]) -> str:
    """Write the array that CPython calls frozen modules, and what a program has to know of the interpreter."""
    arrays, entries = [], []
    for number, (module, source) in enumerate(sources.items()):
        code = marshal.dumps(
            compile(source.read_text(), f"{module.replace('.', '/')}.py", "exec", dont_inherit=True, optimize=2)
        )
        arrays.append(f"static const unsigned char module_{number}[] = {{\n{_numbers(code)}\n}};")
        is_package = int(source.name == "__init__.py")
        entries.append(f'    {{"{module}", module_{number}, {len(code)}, {is_package}, NULL}},')
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join(
        [
            f'#define EXTENSIONS_OF "{version}"',
            *arrays,
            f"static const struct _frozen {name}[] = {{",
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
    given, written = map(Path, sys.argv[1:])
    written.write_text(header(written.stem, modules(given.read_text())))
