"""A user's program, checked by mypy --strict as an installed package is: by py.typed, not by this project's configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio
from datetime import datetime

from cni_quantum_nat import NatConfig, NatManager, NatRule, Network, PortInUse, PortMapping, Protocol


def main() -> int:
    network = Network(id="net-1", name="fabric", cidr="172.20.0.0/16", gateway="172.20.0.1")
    with NatManager(NatConfig(port_range="40000-40999")) as nat_manager:
        rule: NatRule = nat_manager.enable_outbound_connectivity(network)
        port: int | None = rule.destination_port
        mapping: PortMapping = nat_manager.create_port_mapping("container123", "172.20.0.2", 80, 8080)
        made: tuple[str, datetime, Protocol] = mapping.id, mapping.created_at, mapping.protocol
        print(port, made)
        nat_manager.remove_port_mapping(mapping.id)
        nat_manager.disable_outbound_connectivity(network.id)
    try:
        NatManager({"portRange": "1-2"}).create_port_mapping("web", "172.20.0.2", 80, protocol="udp")
    except PortInUse as error:
        return error.code
    return 0


async def create(manager: NatManager) -> PortMapping:
    return await asyncio.to_thread(manager.create_port_mapping, "web", "172.20.0.2", 80)
"""


def check(directory: Path, program: str) -> str:
    file = directory / "program.py"
    file.write_text(program)
    line = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={ROOT}/.cache/mypy-user",
        str(file),
    ]
    return subprocess.run(line, cwd=directory, capture_output=True, text=True, check=False, timeout=300).stdout


def test_a_users_program_passes_and_a_mistake_does_not(tmp_path: Path) -> None:
    assert check(tmp_path, PROGRAM) == "Success: no issues found in 1 source file\n"
    wrong = check(tmp_path, PROGRAM.replace("port_range=", "portrange=").replace("PortInUse, P", "PortTaken, P"))
    assert 'Unexpected keyword argument "portrange"' in wrong
    assert 'has no attribute "PortTaken"' in check(tmp_path, PROGRAM.replace("PortInUse", "PortTaken"))


@pytest.mark.parametrize("example", sorted((ROOT / "docs" / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_pass(example: Path, tmp_path: Path) -> None:
    assert check(tmp_path, example.read_text()).startswith("Success")
