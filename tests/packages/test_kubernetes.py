"""The DaemonSet's install-node, with a directory as the node's root."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_install import PROGRAM, unpacked

ROOT = Path(__file__).parents[2]
# The real command line; without arguments it prints its version.
SCRIPT = f'{PROGRAM.rstrip()}\nexec {shlex.quote(sys.executable)} -I -m cni_quantum_nat "$@"\n'.replace(
    "cat", "[ $# -gt 0 ] || exec cat"
)
PORTMAP = {
    "cniVersion": "1.0.0",
    "name": "containers",
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "hairpinMode": True},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def image(directory: Path, version: str) -> Path:
    """Lay out /quantum-nat as packaging/image does, with a program that prints a version, and return it."""
    root = unpacked(directory / "quantum-nat", version, SCRIPT)
    shutil.copy(ROOT / "packaging" / "kubernetes" / "install-node", root)
    shutil.copy(ROOT / "docs" / "conflists" / "containerd.conflist", root / "10-quantum-nat.conflist")
    return root


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's root, with a configuration directory."""
    (tmp_path / "node" / "etc" / "cni" / "net.d").mkdir(parents=True)
    return tmp_path / "node"


def install_node(source: Path, node: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NODE_ROOT": str(node), **variables}
    line = [str(source / "install-node"), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def lists(node: Path) -> dict[str, list[str]]:
    """Return the plugin types in each list that a runtime would read."""
    files = sorted((node / "etc" / "cni" / "net.d").glob("*.conflist"))
    return {file.name: [plugin["type"] for plugin in json.loads(file.read_text())["plugins"]] for file in files}


def version_of(node: Path) -> str:
    """Run the program in the runtime's plugin directory; its link is relative to the node's root."""
    target = (node / "opt" / "cni" / "bin" / "quantum-nat").readlink()
    return subprocess.run([node / target.relative_to("/")], capture_output=True, text=True, check=True).stdout


def write_list(node: Path, name: str = "10-containers.conflist") -> Path:
    file = node / "etc" / "cni" / "net.d" / name
    file.write_text(json.dumps(PORTMAP))
    return file


def test_a_node_with_portmap_gets_the_program_and_its_list_changed(tmp_path: Path, node: Path) -> None:
    write_list(node)
    write_list(node, "20-other.conflist")
    done = install_node(image(tmp_path / "1", "1.0"), node)
    assert done.returncode == 0, done.stderr
    assert version_of(node) == "1.0"
    assert lists(node) == {
        "10-containers.conflist": ["bridge", "quantum-nat"],
        "20-other.conflist": ["bridge", "portmap"],
    }


def test_pods_of_other_nodes_see_each_others_addresses(tmp_path: Path, node: Path) -> None:
    """At 1.0.0 (defect 2) the program masqueraded pod-to-pod traffic between nodes, on every node that it was installed on."""
    file = write_list(node)
    list_with_flannel = json.loads(file.read_text())
    list_with_flannel["plugins"][0] = {"type": "flannel"}
    file.write_text(json.dumps(list_with_flannel))
    assert install_node(image(tmp_path / "1", "1.0"), node).returncode == 0
    assert json.loads(file.read_text())["plugins"][1]["masquerade"] is False


def test_the_pod_network_of_flannel_is_never_masqueraded_to(tmp_path: Path, node: Path) -> None:
    file = write_list(node)
    list_with_bridge = json.loads(file.read_text())
    list_with_bridge["plugins"][0]["ipMasq"] = True
    file.write_text(json.dumps(list_with_bridge))
    (node / "run" / "flannel").mkdir(parents=True)
    (node / "run" / "flannel" / "subnet.env").write_text(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/56\n"
    )
    assert install_node(image(tmp_path / "1", "1.0"), node).returncode == 0
    assert json.loads(file.read_text())["plugins"][1]["noMasqueradeTo"] == ["10.244.0.0/16", "fd00:10:244::/56"]


def test_a_node_without_a_list_gets_the_example(tmp_path: Path, node: Path) -> None:
    assert install_node(image(tmp_path / "1", "1.0"), node).returncode == 0
    assert lists(node) == {"10-quantum-nat.conflist": ["bridge", "quantum-nat"]}


@pytest.mark.parametrize("has_list", [True, False])
def test_settings_go_into_the_list_and_out_again(tmp_path: Path, node: Path, *, has_list: bool) -> None:
    file = write_list(node) if has_list else node / "etc/cni/net.d/10-quantum-nat.conflist"
    before = lists(node)
    source = image(tmp_path / "1", "1.0")
    done = install_node(source, node, SETTINGS='{"backend": "iptables", "masquerade": false}')
    assert done.returncode == 0, done.stderr
    entry = json.loads(file.read_text())["plugins"][1]
    assert (entry["type"], entry["backend"], entry["masquerade"]) == ("quantum-nat", "iptables", False)
    done = install_node(source, node, "--undo")
    assert done.returncode == 0, done.stderr
    assert lists(node) == before


def test_the_list_can_be_named(tmp_path: Path, node: Path) -> None:
    write_list(node)
    write_list(node, "20-other.conflist")
    source = image(tmp_path / "1", "1.0")
    assert install_node(source, node, CNI_CONFLIST="20-other.conflist").returncode == 0
    assert lists(node)["10-containers.conflist"] == ["bridge", "portmap"]
    assert lists(node)["20-other.conflist"] == ["bridge", "quantum-nat"]
    done = install_node(source, node, CNI_CONFLIST="30-none.conflist")
    assert done.returncode == 1
    assert "30-none.conflist" in done.stderr


def test_a_second_time_changes_nothing_and_a_newer_image_the_program_alone(tmp_path: Path, node: Path) -> None:
    file = write_list(node)
    first = image(tmp_path / "1", "1.0")
    install_node(first, node)
    chained = file.read_text()
    assert install_node(first, node).returncode == 0
    assert install_node(image(tmp_path / "2", "2.0"), node).returncode == 0
    assert (version_of(node), file.read_text()) == ("2.0", chained)


def test_a_damaged_image_changes_nothing(tmp_path: Path, node: Path) -> None:
    file = write_list(node)
    before = file.read_text()
    source = image(tmp_path / "1", "1.0")
    (source / "program" / "_internal").write_text("half")
    done = install_node(source, node)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert file.read_text() == before
    assert not (node / "opt").exists()


@pytest.mark.parametrize("names", [["10-containers.conflist"], []], ids=["with a list", "without"])
def test_undo_leaves_the_node_as_it_was(tmp_path: Path, node: Path, names: list[str]) -> None:
    before = {file: file.read_text() for file in [write_list(node, name) for name in names]}
    source = image(tmp_path / "1", "1.0")
    install_node(source, node)
    done = install_node(source, node, "--undo")
    assert done.returncode == 0, done.stderr
    assert {file: file.read_text() for file in (node / "etc" / "cni" / "net.d").iterdir()} == before
    assert [path for path in node.rglob("*") if path.name.startswith("quantum-nat") and not path.is_dir()] == []


def test_undo_leaves_the_program_as_long_as_containers_need_it(tmp_path: Path, node: Path) -> None:
    write_list(node)
    source = image(tmp_path / "1", "1.0")
    install_node(source, node)
    (node / "run" / "cni" / "quantum-nat" / "attachments" / "container").mkdir(parents=True)
    done = install_node(source, node, "--undo")
    assert "containers are attached" in done.stdout
    assert lists(node) == {"10-containers.conflist": ["bridge", "portmap"]}
    assert version_of(node) == "1.0"
