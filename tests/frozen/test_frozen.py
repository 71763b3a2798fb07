"""The release alone: its directory in a root directory where nothing else is, but for /proc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.frozen

PROGRAM = Path(os.environ.get("QUANTUM_NAT_PLUGIN", "dist/quantum-nat/quantum-nat")).resolve()
OTHER_NAMESPACE = f"/proc/{os.getpid()}/ns/net"
CONFIGURATION = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "quantum-nat",
    "masquerade": True,
    "ipForwarding": False,
    "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.2/24"}]},
}
# What a person may ask for, with the exit status where it is not 0.
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "list": 0,
    "show container": 0,
    "port container": 1,  # it publishes none
    "connections": 0,
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


class Alone:
    """A root directory with the release in /opt, and a network namespace, both of one process that stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(PROGRAM.parent, path / "opt", symlinks=True)
        (path / "proc").mkdir()
        enter = 'mount --rbind /proc "$0/proc" && echo && exec sleep infinity'
        line = ["unshare", "--net", "--mount", "sh", "-c", enter, str(path)]
        self.keeper = subprocess.Popen(line, stdout=subprocess.PIPE)
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == b"\n"

    def close(self) -> None:
        self.keeper.kill()
        self.keeper.communicate()

    def run(self, *arguments: str, request: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the release in it."""
        line = ["nsenter", f"--target={self.keeper.pid}", "--net", "--mount", "chroot", str(self.path)]
        return subprocess.run(
            [*line, "/opt/quantum-nat", *arguments],
            env={"PATH": os.environ["PATH"], **environment},
            input=request,
            capture_output=True,
            text=True,
            check=False,
        )

    def call(self, verb: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Call it as a runtime does."""
        return self.run(
            request=json.dumps({**CONFIGURATION, **more}),
            CNI_COMMAND=verb,
            CNI_CONTAINERID="container",
            CNI_NETNS=OTHER_NAMESPACE,
            CNI_IFNAME="eth0",
            CNI_PATH="/opt",
        )


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    made = Alone(tmp_path / "root")
    yield made
    made.close()


def succeeds(process: subprocess.CompletedProcess[str]) -> str:
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    return process.stdout


def test_every_verb(alone: Alone) -> None:
    """The first ADD validates with pydantic and builds the table with the libnftables that came along; the others need neither."""
    assert "1.1.0" in json.loads(succeeds(alone.call("VERSION")))["supportedVersions"]
    assert succeeds(alone.call("STATUS")) == ""
    record = alone.path / "run/cni/quantum-nat/attachments/container/net:eth0.json"
    for _ in range(2):
        assert json.loads(succeeds(alone.call("ADD"))) == CONFIGURATION["prevResult"]
        assert record.is_file()
        assert succeeds(alone.call("CHECK")) == ""
        assert succeeds(alone.call("DEL")) == ""
        assert not record.exists()
    succeeds(alone.call("ADD"))
    succeeds(alone.call("GC", **{"cni.dev/valid-attachments": []}))
    assert not record.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(alone: Alone, command: str) -> None:
    plugins = [{"type": "bridge", "bridge": "cni0"}, {"type": "quantum-nat", "capabilities": {"portMappings": True}}]
    for name, listed in (("net", plugins), ("bridge", plugins[:1])):
        text = json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": listed})
        (alone.path / f"opt/{name}.conflist").write_text(text)
    succeeds(alone.call("ADD"))
    process = alone.run(*command.split())
    assert process.returncode == COMMANDS[command], process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout or process.stderr


def test_a_command_that_is_not_there_is_not_tried(alone: Alone) -> None:
    """Every command that the help names is among those that are tried here."""
    text = alone.run("--help").stdout.partition("\n  COMMAND\n")[2]
    named = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4:5].isalpha()}
    assert named
    assert named <= {command.partition(" ")[0] for command in COMMANDS}


def test_an_error_is_one_json_object(alone: Alone) -> None:
    process = alone.run(CNI_COMMAND="ADD")
    assert process.returncode == 1
    assert json.loads(process.stdout)["code"] == 4
