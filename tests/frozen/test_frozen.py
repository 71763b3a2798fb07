"""The frozen program in a root directory with only the C library and /proc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.frozen

PROGRAM = Path(os.environ.get("QUANTUM_NAT_PLUGIN", "dist/quantum-nat/quantum-nat")).resolve()
SYSTEM_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "libutil.so.1",
    "librt.so.1",
)
CONFIGURATION = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "quantum-nat",
    "masquerade": True,
    "ipForwarding": False,
    "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.2/24"}]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with the program and the host libraries that it needs."""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    for library in (loader, *(Path("/lib/x86_64-linux-gnu") / name for name in SYSTEM_LIBRARIES)):
        target = tmp_path / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    shutil.copytree(PROGRAM.parent, tmp_path / "opt", symlinks=True)
    # Only the path of the namespace matters here.
    (tmp_path / "run").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "run" / "container").touch()
    return tmp_path


def run(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    enter = 'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'
    line = ["unshare", "--net", "--mount", "sh", "-c", enter, str(root), "/opt/quantum-nat", *arguments]
    variables = {"PATH": os.environ["PATH"], **environment}
    request = json.dumps(CONFIGURATION)
    return subprocess.run(line, env=variables, input=request, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["VERSION", "STATUS", "ADD", "DEL"])
def test_it_needs_no_python_and_no_nft(root: Path, verb: str) -> None:
    """A first ADD validates with pydantic and builds the table with the libnftables in the bundle."""
    process = run(
        root,
        CNI_COMMAND=verb,
        CNI_CONTAINERID="container",
        CNI_NETNS="/run/container",
        CNI_IFNAME="eth0",
        CNI_PATH="/opt",
    )
    assert (process.returncode, process.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(process.stdout or "{}")
    if verb == "ADD":
        assert answer == CONFIGURATION["prevResult"]
        assert list(root.glob("run/cni/quantum-nat/attachments/container/net:eth0.json"))


def test_its_command_line_answers(root: Path) -> None:
    assert run(root, "--version").stdout.startswith("quantum-nat ")
    assert "usage: quantum-nat" in run(root, "--help").stdout
    assert run(root, "list").stdout.startswith("NETWORK")
    bare = run(root)
    assert bare.returncode == 2
    assert "CNI plugin" in bare.stderr
    assert "Operators run it" in bare.stderr


def test_an_error_is_one_json_object(root: Path) -> None:
    process = run(root, CNI_COMMAND="ADD")
    assert process.returncode == 1
    assert json.loads(process.stdout)["code"] == 4
