"""What packaging/ works out: what the release's binaries ask for, what the programs have in them, what is left out of libraries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_quantum_nat import __version__

PACKAGING = Path(__file__).parents[3] / "packaging"
LISTING = """
      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libgmp.so.10]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
"""


def loaded(name: str) -> Any:
    """Load a module of packaging/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"packaging_{Path(name).name}", PACKAGING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


elf = loaded("elf")
frozen_modules = loaded("launcher/frozen_modules")
snapshot = loaded("launcher/snapshot")
trim = loaded("trim")


def binary(name: str, *needed: str) -> Any:
    return elf.Binary(Path(name), "", frozenset(needed))


SOUND = [
    binary("quantum-nat"),
    binary("quantum-nat-full", "libm.so.6", "libc.so.6"),
    binary("libm.so.6", "libc.so.6"),
    binary("libc.so.6", "ld-linux-x86-64.so.2"),
    binary("ld-linux-x86-64.so.2"),
]


def test_what_a_binary_asks_for_is_read() -> None:
    read = elf.parse(Path("program"), LISTING)
    assert read == (Path("program"), "/lib64/ld-linux-x86-64.so.2", {"libgmp.so.10", "libc.so.6"})


def test_a_release_that_has_all_that_it_needs_is_sound() -> None:
    assert elf.problems(SOUND) == []


@pytest.mark.parametrize(
    ("binaries", "said"),
    [
        (SOUND[1:], "quantum-nat is not there"),
        (
            [elf.parse(Path("quantum-nat"), LISTING.replace("gmp.so.10", "c.so.6")), *SOUND[1:]],
            "quantum-nat is not static",
        ),
        (
            [*SOUND, binary("libnftables.so.1", "libgmp.so.10")],
            "libnftables.so.1 needs libgmp.so.10, which is not there",
        ),
        (SOUND[:-1], "libc.so.6 needs ld-linux-x86-64.so.2, which is not there"),
        ([*SOUND, binary("librt.so.1")], "nothing needs librt.so.1"),
    ],
)
def test_what_would_be_had_of_the_host_or_of_nobody_is_a_problem(binaries: list[Any], said: str) -> None:
    found = elf.problems(binaries)
    assert found
    assert found[0].startswith(said)


def test_modules_are_listed_by_name_place_or_in_another_list() -> None:
    found = frozen_modules.modules(
        "# comment\nstart packaging/launcher/start.py\nencodings\n@packaging/hot-modules.txt\n"
    )
    assert found["start"] == PACKAGING / "launcher" / "start.py"
    assert found["encodings"].name == "__init__.py"
    package = PACKAGING.parent / "cni_quantum_nat"
    assert found["cni_quantum_nat.cni"] == package / "cni" / "__init__.py"
    assert found["cni_quantum_nat.cni.entry"] == package / "cni" / "entry.py"
    assert "_json" not in found
    with pytest.raises(frozen_modules.NoSource, match="_json"):
        frozen_modules.modules("_json\n")


def test_two_snapshots_must_not_differ() -> None:
    same = bytes(range(32))
    assert snapshot.difference(same, same) == ""
    assert "1 words differ" in snapshot.difference(same, same[:9] + b"!" + same[10:])
    assert "0x8" in snapshot.difference(same, same[:9] + b"!" + same[10:])


def test_the_section_is_found_in_the_file_and_must_have_contents() -> None:
    line = "  [20] .snapshot  PROGBITS  00000000008f8000 4f8000 579000 00  WA  0   0 16384\n"
    assert snapshot.place_of_section(f"{line}  [21] .data PROGBITS 00 1 2 00\n") == (0x4F8000, 0x579000)
    with pytest.raises(snapshot.Unfit, match="no section"):
        snapshot.place_of_section(line.replace("PROGBITS", "NOBITS"))


def test_code_to_remove_must_be_there_exactly_once() -> None:
    rules = ((r"^import ssl$", "ssl = None"),)
    assert trim.trim("import os\nimport ssl\n", rules, "module") == "import os\nssl = None\n"
    for text in ("import os\n", "import ssl\nimport ssl\n"):
        with pytest.raises(trim.NotAsExpected, match=r"module: .* is there [02] times and not once"):
            trim.trim(text, rules, "module")


def test_the_daemonsets_image_has_this_version() -> None:
    assert f"newTag: {__version__}\n" in (PACKAGING / "kubernetes" / "base" / "kustomization.yaml").read_text()
    chart = (PACKAGING / "kubernetes" / "chart" / "Chart.yaml").read_text()
    assert f"\nversion: {__version__}\nappVersion: {__version__}\n" in chart
