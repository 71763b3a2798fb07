"""Imports point down the layers, without circles; those for type checkers and inside functions count too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "cni_quantum_nat"
# From top to bottom; packages in one layer do not import each other.
LAYERS = (
    ("__main__", "__init__"),
    ("commands",),
    ("api",),
    ("exceptions",),
    ("cni",),
    ("nat",),
    ("backends",),
    ("ports", "connections"),
    ("state",),
    ("kernel",),
    ("model",),
    ("version",),
)
HEIGHT = {package: -number for number, layer in enumerate(LAYERS) for package in layer}


def modules() -> dict[str, Path]:
    """Return all files by dotted name, including `__init__`."""
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports anywhere."""
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


def test_every_package_has_a_layer() -> None:
    assert {name.partition(".")[0] for name in modules()} == set(HEIGHT)


def test_imports_point_down() -> None:
    climbing = []
    for name, targets in graph().items():
        package = name.partition(".")[0]
        for target in targets:
            other = target.partition(".")[0]
            if other != package and HEIGHT[other] >= HEIGHT[package]:
                climbing.append(f"{name} -> {target}")
    assert not climbing, "imports that point up or stay in their layer:\n" + "\n".join(sorted(climbing))


def test_there_is_no_import_cycle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_package_has_a_docstring() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(file.read_text())
        assert len(ast.get_docstring(tree) or "") > 40, file.parent.name
