"""The DaemonSet's image, unpacked as a runtime unpacks it, and run in the root directory that this makes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cni_quantum_nat import __version__

IMAGE = Path(os.environ.get("QUANTUM_NAT_IMAGE", ""))
MANIFEST = Path(__file__).parents[2] / "packaging" / "kubernetes" / "base" / "daemonset.yaml"
LARGEST = 30_000_000  # bytes
_CHROOT = '/bin/mount --rbind /proc "$0/proc" && exec /usr/sbin/chroot "$0" "$@"'


class Layout:
    """The archive's blobs; each is compared with its descriptor when it is read."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            self._files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
        self.index: dict[str, Any] = json.loads(self._files["index.json"])

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        algorithm, digest = descriptor["digest"].split(":")
        content = self._files[f"blobs/{algorithm}/{digest}"]
        assert hashlib.sha256(content).hexdigest() == digest
        assert len(content) == descriptor["size"]
        return content

    def document(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.blob(descriptor))
        return read

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Return the manifest for each architecture."""
        (described,) = self.index["manifests"]
        found = [described]
        if described["mediaType"].endswith("index.v1+json"):
            found = self.document(described)["manifests"]
        return {entry["platform"]["architecture"]: self.document(entry) for entry in found}


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(IMAGE)


@pytest.fixture
def root(layout: Layout, tmp_path: Path) -> Path:
    """The image's root directory for this machine."""
    manifest = layout.manifests()[_architecture()]
    configuration = layout.document(manifest["config"])
    made = tmp_path / "root"
    made.mkdir()
    digests = []
    for descriptor in manifest["layers"]:
        content = gzip.decompress(layout.blob(descriptor))
        digests.append(f"sha256:{hashlib.sha256(content).hexdigest()}")
        subprocess.run(["tar", "-C", made, "-xf", "-"], input=content, check=True)
    assert configuration["rootfs"]["diff_ids"] == digests
    return made


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def inside(root: Path, *command: str, **environment: str) -> str:
    """Run a command in the root directory, with /proc and the environment of the image alone, and return what it prints."""
    (root / "proc").mkdir(exist_ok=True)
    done = subprocess.run(
        ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", _CHROOT, root, *command],
        env={"PATH": "/bin", **environment},
        input="{}",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_small(layout: Layout) -> None:
    for architecture, manifest in layout.manifests().items():
        assert sum(layer["size"] for layer in manifest["layers"]) < LARGEST, architecture


def test_it_has_the_name_that_the_daemonset_uses(layout: Layout) -> None:
    names = set(layout.index["manifests"][0]["annotations"].values())
    assert names == {f"quantum-nat:{__version__}"}


def test_it_has_each_command_of_the_daemonset(layout: Layout, root: Path) -> None:
    configuration = layout.document(layout.manifests()[_architecture()]["config"])
    manifest = MANIFEST.read_text()
    commands = [*configuration["config"]["Entrypoint"], *re.findall(r"command: \[([^,\]]*)", manifest)]
    assert len(commands) > 1
    for command in commands:
        assert os.access(f"{root}{command}", os.X_OK), command


def test_it_installs_the_program_on_a_node(root: Path) -> None:
    """The node has portmap in its list, and neither a shell nor a C library."""
    lists = root / "host/etc/cni/net.d"
    lists.mkdir(parents=True)
    plugins = [{"type": "bridge", "bridge": "cni0"}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    document = {"cniVersion": "1.0.0", "name": "containers", "plugins": plugins}
    (lists / "10-containers.conflist").write_text(json.dumps(document))
    inside(root, "/quantum-nat/install-node")
    changed = json.loads((lists / "10-containers.conflist").read_text())
    assert [plugin["type"] for plugin in changed["plugins"]] == ["bridge", "quantum-nat"]
    answer = json.loads(inside(root / "host", "/opt/cni/bin/quantum-nat", CNI_COMMAND="VERSION"))
    assert "1.1.0" in answer["supportedVersions"]


def test_a_person_gets_an_answer(root: Path) -> None:
    assert inside(root, "/quantum-nat/program/quantum-nat", "list").startswith("NETWORK")
