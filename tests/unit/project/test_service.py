"""The systemd units: valid, and confined."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parents[3] / "packaging" / "systemd"
SERVICES = sorted(DIRECTORY.glob("*.service"))
UNITS = ["quantum-nat-gc.service", "quantum-nat-gc.timer", "quantum-nat-reconcile.service"]
MOST_EXPOSURE = 2.2  # of 10, as rated by systemd


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    there = str(shutil.which("true"))  # the program and its manual are not installed here
    assert sorted(file.name for file in DIRECTORY.iterdir() if file.suffix != ".conf") == UNITS
    units = [tmp_path / name for name in UNITS]
    for unit in units:
        text = re.sub(r"/usr/lib/\S+", there, (DIRECTORY / unit.name).read_text())
        unit.write_text(re.sub(r"^Documentation=.*$", "", text, flags=re.MULTILINE))
    assert analyze("verify", *map(str, units)) == ""


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_it_is_confined(service: Path) -> None:
    level = re.search(r"Overall exposure level .*: ([\d.]+)", analyze("security", "--offline=true", str(service)))
    assert level is not None
    assert float(level[1]) <= MOST_EXPOSURE


def test_the_sysctl_file_turns_on_ipv4_forwarding_and_nothing_else() -> None:
    lines = [line for line in (DIRECTORY / "99-quantum-nat.conf").read_text().splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("#")] == ["net.ipv4.ip_forward = 1"]
