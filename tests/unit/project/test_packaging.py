"""The helpers in packaging/: the required glibc, and the parts removed from libraries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_quantum_nat import __version__

PACKAGING = Path(__file__).parents[3] / "packaging"
LISTING = """
 0x0000000000000001 (NEEDED)             Shared library: [libgmp.so.10]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 7
  0x0020:   Name: GLIBC_2.34  Flags: none  Version: 6
  0x0030:   Name: GLIBC_2.2.5  Flags: none  Version: 5
"""


def loaded(name: str) -> Any:
    """Load a module of packaging/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"packaging_{name}", PACKAGING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


elf = loaded("elf")
trim = loaded("trim")


def test_glibc_versions_are_compared_as_numbers() -> None:
    binary = elf.parse(Path("program"), LISTING)
    assert (binary.glibc, binary.needed) == ((2, 34), {"libgmp.so.10", "libc.so.6"})


def test_relative_relocations_need_the_first_glibc_that_supports_them() -> None:
    assert elf.parse(Path("program"), f"{LISTING}  0x0040:   Name: GLIBC_ABI_DT_RELR  Flags: none").glibc == (2, 36)


@pytest.mark.parametrize(
    ("stated", "said"),
    [((2, 33), "program needs glibc 2.34, and 2.33 is stated"), ((2, 35), "glibc 2.35 is stated, and 2.34 would do")],
)
def test_a_glibc_other_than_the_stated_one_is_a_problem(stated: tuple[int, int], said: str) -> None:
    gmp = elf.Binary(Path("libgmp.so.10"), (2, 14), frozenset())
    assert elf.problems([elf.parse(Path("program"), LISTING), gmp], stated) == [said]


def test_a_library_missing_from_the_bundle_is_a_problem() -> None:
    assert elf.problems([elf.parse(Path("program"), LISTING)], (2, 34)) == [
        "program needs libgmp.so.10, which is not there"
    ]


def test_code_to_remove_must_be_there_exactly_once() -> None:
    rules = ((r"^import ssl$", "ssl = None"),)
    assert trim.trim("import os\nimport ssl\n", rules, "module") == "import os\nssl = None\n"
    for text in ("import os\n", "import ssl\nimport ssl\n"):
        with pytest.raises(trim.NotAsExpected, match=r"module: .* is there [02] times and not once"):
            trim.trim(text, rules, "module")


def test_the_daemonsets_image_has_this_version() -> None:
    assert f"newTag: {__version__}\n" in (PACKAGING / "kubernetes" / "base" / "kustomization.yaml").read_text()
