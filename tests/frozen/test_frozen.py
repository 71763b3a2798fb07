"""The release alone: its directory in a root directory where nothing else is, but for /proc."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .release import CONFIGURATION, Release, succeeds

pytestmark = pytest.mark.frozen

# What a person may ask for, with the exit status where it is not 0.
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "list": 0,
    "show container": 0,
    "port container": 1,  # it publishes none
    "connections": 0,
    "who 8080": 1,  # nobody
    "publish container 8080:80": 1,  # the host has no route to it
    "unpublish container 8080": 1,  # it publishes none
    "status": 0,
    "doctor": 1,  # packets are not forwarded
    "reconcile": 0,
    "gc": 0,
    "metrics": 0,
    "validate /opt/net.conflist": 0,
    "chain /opt/bridge.conflist": 0,
    "schema": 0,
    "completion bash": 0,
    "": 2,
    "nonsense": 2,
}


def test_every_verb(alone: Release) -> None:
    """The first STATUS rehearses the table with the libnftables that came along; no other call needs it."""
    assert "1.1.0" in json.loads(succeeds(alone.call("VERSION")))["supportedVersions"]
    assert succeeds(alone.call("STATUS")) == ""
    record = alone.state / "attachments/container/net:eth0.json"
    for _ in range(2):
        assert json.loads(succeeds(alone.call("ADD"))) == CONFIGURATION["prevResult"]
        assert record.is_file()
        assert succeeds(alone.call("CHECK")) == ""
        assert succeeds(alone.call("DEL")) == ""
        assert not record.exists()
    succeeds(alone.call("ADD"))
    valid: dict[str, Any] = {"cni.dev/valid-attachments": []}
    succeeds(alone.call("GC", **valid))
    assert not record.exists()


@pytest.mark.parametrize("start", ["snapshot"])  # of a command the plugin does nothing
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(alone: Release, command: str) -> None:
    plugins = [{"type": "bridge", "bridge": "cni0"}, {"type": "quantum-nat", "capabilities": {"portMappings": True}}]
    for name, listed in (("net", plugins), ("bridge", plugins[:1])):
        text = json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": listed})
        (alone.root / f"opt/{name}.conflist").write_text(text)
    succeeds(alone.call("ADD"))
    process = alone.run(*command.split())
    assert process.returncode == COMMANDS[command], process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout or process.stderr


def test_a_command_that_is_not_there_is_not_tried(alone: Release) -> None:
    """Every command that the help names is among those that are tried here."""
    text = alone.run("--help").stdout.partition("\n  COMMAND\n")[2]
    named = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4:5].isalpha()}
    assert named
    assert named <= {command.partition(" ")[0] for command in COMMANDS}


def test_an_error_is_one_json_object(alone: Release) -> None:
    process = alone.run(CNI_COMMAND="ADD")
    assert process.returncode == 1
    assert json.loads(process.stdout)["code"] == 4
