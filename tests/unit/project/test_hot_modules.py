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
# Modules that lack the line so far. Remove them from this set together with adding the line.
NOT_YET = {
    "cni_quantum_nat.backends",
    "cni_quantum_nat.backends.base",
    "cni_quantum_nat.backends.nftables",
    "cni_quantum_nat.backends.nftables.counts",
    "cni_quantum_nat.backends.nftables.distribution",
    "cni_quantum_nat.backends.nftables.encoding",
    "cni_quantum_nat.backends.nftables.full_plan",
    "cni_quantum_nat.backends.nftables.layout",
    "cni_quantum_nat.backends.nftables.provider",
    "cni_quantum_nat.backends.nftables.rules",
    "cni_quantum_nat.backends.nftables.sharing",
    "cni_quantum_nat.backends.nftables.table",
    "cni_quantum_nat.connections",
    "cni_quantum_nat.connections.counts",
    "cni_quantum_nat.connections.tracker",
    "cni_quantum_nat.model.attachments",
    "cni_quantum_nat.nat.manager",
    "cni_quantum_nat.ports.allocation",
    "cni_quantum_nat.state.claims",
    "cni_quantum_nat.state.directory",
    "cni_quantum_nat.state.record",
}


@pytest.mark.parametrize("module", sorted(set(LISTED) - NOT_YET))
def test_the_docstring_ends_with_the_line(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    assert docstring.splitlines()[-1:] == [LINE]
