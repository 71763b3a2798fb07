"""Which state directories a command is about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cni_quantum_nat", *arguments]
    variables = {key: value for key, value in os.environ.items() if key != "QUANTUM_NAT_STATE_DIR"}
    return subprocess.run(line, env={**variables, **environment}, capture_output=True, text=True, check=False)


def write(file: Path, **keys: Any) -> None:
    plugins = [{"type": "bridge", "hairpinMode": True}, {"type": "quantum-nat", "masquerade": True, **keys}]
    plugins[1]["capabilities"] = {"portMappings": True}
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": file.stem, "plugins": plugins}))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    (directory / "lock").touch()
    return directory


def test_the_option_may_stand_before_the_command_and_after_it(made: Path) -> None:
    for line in (["--state-dir", str(made), "list", "--json"], ["list", "--json", "--state-dir", str(made)]):
        assert (run(*line).returncode, run(*line).stdout) == (0, "[]\n")


def test_the_variable_names_it_and_the_option_wins(made: Path, tmp_path: Path) -> None:
    assert run("list", "--json", QUANTUM_NAT_STATE_DIR=str(made)).stdout == "[]\n"
    done = run("list", "--json", "--state-dir", str(tmp_path / "typo"), QUANTUM_NAT_STATE_DIR=str(made))
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("command", ["list", "show x", "port x", "connections", "gc", "metrics", "reconcile"])
def test_one_that_does_not_exist_is_an_error(command: str, tmp_path: Path) -> None:
    by_option = run(*command.split(), "--state-dir", f"{tmp_path}/typo/")
    by_variable = run(*command.split(), QUANTUM_NAT_STATE_DIR=f"{tmp_path}/typo")
    for done in (by_option, by_variable):
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"quantum-nat: there is no state directory {tmp_path}/typo\n")
    assert not (tmp_path / "typo").exists()


def test_those_that_installed_networks_name_are_found(made: Path, tmp_path: Path) -> None:
    networks = tmp_path / "net.d"
    networks.mkdir()
    write(networks / "10-a.conflist", stateDir=str(made))
    (networks / "20-broken.conflist").write_text("{")
    done = run("show", "nobody", NETCONFPATH=str(networks))
    assert "no container ID begins with 'nobody'" in done.stderr
    assert f"cannot tell which state directory {networks}/20-broken.conflist names: Expecting" in done.stderr
    missing = run("list", "--state-dir", f"{tmp_path}/typo", NETCONFPATH=str(networks))
    assert f"This host has {made}" in missing.stderr


def test_podmans_directory_of_networks_is_read(made: Path, tmp_path: Path) -> None:
    networks, configuration = tmp_path / "podman", tmp_path / ".config" / "containers"
    networks.mkdir()
    configuration.mkdir(parents=True)
    (configuration / "containers.conf").write_text(f'[network]\nnetwork_config_dir = "{networks}"\n')
    write(networks / "10-a.conflist", stateDir=f"{made}/")
    assert f"This host has {made}" in run("list", "--state-dir", f"{tmp_path}/typo", HOME=str(tmp_path)).stderr


def test_validate_of_a_directory_checks_its_files_and_warns_of_several_state_directories(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist")
    write(tmp_path / "20-b.conflist", stateDir="/run/b")
    (tmp_path / "README").write_text("no network")
    done = run("validate", str(tmp_path))
    assert done.returncode == 0, done.stdout
    first, second, warning = done.stdout.splitlines()
    assert (first, second) == (f"{tmp_path}/10-a.conflist: ok", f"{tmp_path}/20-b.conflist: ok")
    assert warning.startswith(f"{tmp_path}: warning: the networks use different state directories: /run/b (")
    (tmp_path / "20-b.conflist").unlink()
    assert len(run("validate", str(tmp_path)).stdout.splitlines()) == 1


def test_validate_of_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    done = run("validate", str(tmp_path))
    assert done.returncode == 1
    assert "no network configuration is in this directory" in done.stdout
