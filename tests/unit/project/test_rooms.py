"""Whoever opens a module finds its tests: by the same name in tests/unit, or by a line in the README.md of its room there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE, UNIT = ROOT / "cni_quantum_nat", ROOT / "tests" / "unit"
LINE = re.compile(r"^\| `([\w/]+\.py)` \| (.+) \|$", re.MULTILINE)
FILE = re.compile(r"`(tests/[\w/]+\.py)`")
MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def readme_of(module: Path) -> Path:
    """Return the README.md of the module's room; of a module outside the rooms, that of all."""
    room = module.parts[0] if len(module.parts) > 1 else "."
    return UNIT / room / "README.md"


def has_namesake(module: Path) -> bool:
    return (UNIT / module.parent / f"test_{module.name}").exists()


def lines_of(readme: Path) -> dict[str, str]:
    return dict(LINE.findall(readme.read_text())) if readme.exists() else {}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_its_test_or_a_line_says_where_it_is_tested(module: Path) -> None:
    name = str(module.relative_to(module.parts[0])) if len(module.parts) > 1 else str(module)
    said = lines_of(readme_of(module)).get(name)
    if has_namesake(module):
        assert said is None, f"{readme_of(module)} speaks of {name}, which has a test by its name"
        return
    assert said is not None, f"{readme_of(module)} has no line for {name}"
    files = FILE.findall(said)
    assert files, f"{name}: {said}"
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_no_line_is_about_a_module_that_is_not_there() -> None:
    for readme in UNIT.rglob("README.md"):
        room = readme.parent.relative_to(UNIT)
        assert [name for name in lines_of(readme) if not (PACKAGE / room / name).exists()] == [], readme
