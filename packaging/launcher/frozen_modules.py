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
    """A module that is listed is not written in Python, or not there."""


def modules(listing: str) -> dict[str, Path]:
    """Return the source of each module in a list, by name."""
    found: dict[str, Path] = {}
    for line in _lines(listing):
        if line.startswith("@"):
            names = _lines((PROJECT / line[1:]).read_text())
            found.update({name: source for name in names if (source := _source(name))})
            continue
        name, _, place = line.partition(" ")
        source = PROJECT / place if place.endswith(".py") else _source(place or name)
        if source is None:
            raise NoSource(f"{name} has no source that could be compiled")
        found[name] = source
    return found


def _lines(listing: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in listing.splitlines())
    return [line for line in lines if line]


def _source(name: str) -> Path | None:
    """Return where a module is written in Python; None when it is not."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
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
