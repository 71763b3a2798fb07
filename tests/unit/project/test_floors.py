"""The house stands: imports point down the floors, and never in a circle. Imports for type checkers and in functions count."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "cni_quantum_nat"
# From the roof down; rooms of one floor do not know of each other.
FLOORS = (
    ("__main__", "__init__"),
    ("commands",),
    ("api",),
    ("cni",),
    ("nat",),
    ("backends",),
    ("ports", "connections"),
    ("state",),
    ("kernel",),
    ("model",),
    ("version",),
)
HEIGHT = {room: -number for number, floor in enumerate(FLOORS) for room in floor}


def modules() -> dict[str, Path]:
    """Return the files by their dotted names, `__init__` for a package's own."""
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    found = set()
    package = ["", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
        for alias in node.names:
            for parts in ([*base, alias.name], base, [*base, "__init__"]):
                target = ".".join(filter(None, parts))
                if target in known:
                    found.add(target)
                    break
            else:
                pytest.fail(f"{name} imports {alias.name} from {base}, which is not in the package")
    return found


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports_of(name, file, known) for name, file in known.items()}


def test_every_room_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in modules()} == set(HEIGHT)


def test_imports_point_down() -> None:
    climbing = []
    for name, targets in graph().items():
        room = name.partition(".")[0]
        for target in targets:
            other = target.partition(".")[0]
            if other != room and HEIGHT[other] >= HEIGHT[room]:
                climbing.append(f"{name} -> {target}")
    assert not climbing, "imports that climb or stay on their floor:\n" + "\n".join(sorted(climbing))


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_room_says_what_it_is_for() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(file.read_text())
        assert len(ast.get_docstring(tree) or "") > 40, file.parent.name
