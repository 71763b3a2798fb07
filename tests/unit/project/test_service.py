"""The systemd unit: valid, and confined."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

SERVICE = Path(__file__).parents[3] / "packaging" / "systemd" / "quantum-nat-reconcile.service"
MOST_EXPOSURE = 2.2  # of 10, as rated by systemd


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / SERVICE.name
    there = str(shutil.which("true"))  # the program and its manual are not installed here
    unit.write_text(
        re.sub(r"^Documentation=.*$", "", re.sub(r"/usr/lib/\S+", there, SERVICE.read_text()), flags=re.MULTILINE)
    )
    assert analyze("verify", str(unit)) == ""


def test_it_is_confined() -> None:
    level = re.search(r"Overall exposure level .*: ([\d.]+)", analyze("security", "--offline=true", str(SERVICE)))
    assert level is not None
    assert float(level[1]) <= MOST_EXPOSURE
