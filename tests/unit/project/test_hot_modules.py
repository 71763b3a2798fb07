"""Every module of ours on packaging/hot-modules.txt says so in its docstring. Real calls are in tests/kernel/test_hot_modules.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINE = "A pod's start waits for this module."
LISTED = [
    line
    for line in (ROOT / "packaging" / "hot-modules.txt").read_text().splitlines()
    if line.startswith("cni_quantum_nat")
]


@pytest.mark.parametrize("module", LISTED)
def test_the_docstring_ends_with_the_line(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    assert docstring.splitlines()[-1:] == [LINE]
