"""The release in a directory of its own, in a root directory where nothing else is or in this host's, and how it is called there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ORDINARY_START = Path(__file__).parents[2] / "dist/plugin-without-snapshot"
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


class Release:
    """A copy of the release, and a network namespace of a process that stays.

    root: the directory in whose /opt it is. is_alone: whether that is the root directory of all that is run, with /proc and nothing else in it.
    has_snapshot: whether the plugin goes on from its snapshot, or starts the interpreter. before: a command that starts the release, if any.
    """

    def __init__(self, root: Path, *, is_alone: bool, has_snapshot: bool) -> None:
        self.root = root
        shutil.copytree(PROGRAM.parent, root / "opt", symlinks=True)
        if not has_snapshot:
            shutil.copy(ORDINARY_START, root / "opt/quantum-nat")
        (root / "proc").mkdir()
        enter = 'mount --rbind /proc "$0/proc" && echo && exec sleep infinity'
        line = ["unshare", "--net", "--mount", "sh", "-c", enter, str(root)]
        self.keeper = subprocess.Popen(line, stdout=subprocess.PIPE)
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == b"\n"
        self.descriptors: tuple[int, ...] = ()  # what is inherited beside the standard ones
        self.namespaces = ["nsenter", f"--target={self.keeper.pid}", "--net", "--mount"]
        self.program = "/opt/quantum-nat" if is_alone else str(root / "opt/quantum-nat")
        self.before: list[str] = []
        self._enter = [*self.namespaces, *(["chroot", str(root)] if is_alone else [])]
        self.state_directory = "/run/cni/quantum-nat" if is_alone else str(root / "state")
        self.state = root / self.state_directory.lstrip("/") if is_alone else root / "state"

    def close(self) -> None:
        self.keeper.kill()
        self.keeper.communicate()

    @property
    def internal(self) -> Path:
        """The directory of the full program."""
        (found,) = self.root.glob("opt/_internal-*")
        return found

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the release."""
        return subprocess.Popen(
            [*self._enter, *self.before, self.program, *arguments],
            env={"PATH": os.environ["PATH"], **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=self.descriptors,
            text=True,
        )

    def run(self, *arguments: str, request: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the release."""
        process = self.start(*arguments, **environment)
        output, errors = process.communicate(request)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a person's command."""
        return self.run("--state-dir", self.state_directory, *arguments)

    def request(self, **keys: Any) -> dict[str, Any]:
        """Return a network configuration; `keys` are more of it."""
        return {**CONFIGURATION, "stateDir": self.state_directory, **keys}

    def call(self, verb: str, container: str = "container", **keys: Any) -> subprocess.CompletedProcess[str]:
        """Call it as a runtime does."""
        return self.run(
            request=json.dumps(self.request(**keys)),
            CNI_COMMAND=verb,
            CNI_CONTAINERID=container,
            CNI_NETNS=OTHER_NAMESPACE,
            CNI_IFNAME="eth0",
            CNI_PATH="/opt",
        )


def succeeds(process: subprocess.CompletedProcess[str]) -> str:
    """Return what it printed, which must be all."""
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    return process.stdout
