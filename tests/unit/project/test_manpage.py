"""The man page is built from the commands, and man and mandoc read it without warnings."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cni_quantum_nat.commands.cli import _COMMANDS

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "dist" / "quantum-nat.8"


def test_the_man_page_has_every_command_and_no_warnings() -> None:
    subprocess.run([ROOT / "packaging" / "manpage"], check=True, capture_output=True)
    content = PAGE.read_text()
    names = [command.__name__.rpartition(".")[2] for command in _COMMANDS]
    assert [line.removeprefix(".SS ") for line in content.splitlines() if line.startswith(".SS ")] == names
    shown = subprocess.run(["man", "--warnings", "-l", str(PAGE)], check=True, capture_output=True, text=True)
    assert shown.stderr == ""
    assert "SEE ALSO" in shown.stdout
    lint = subprocess.run(["mandoc", "-Tlint", "-W", "warning", str(PAGE)], capture_output=True, text=True, check=False)
    assert lint.stdout == ""
