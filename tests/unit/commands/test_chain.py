"""`quantum-nat chain`: add the plugin to a configuration list, and undo it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cni_quantum_nat.commands.chain import chained

if TYPE_CHECKING:
    from pathlib import Path

BRIDGE = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
BRIDGE_ALONE = {key: value for key, value in BRIDGE.items() if key != "ipMasq"}  # which then leaves masquerading to us
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
TUNING = {"type": "tuning"}
OURS = {"type": "quantum-nat", "capabilities": {"portMappings": True}}


def conflist(*plugins: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "containers", "plugins": list(plugins)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A hand-written list with portmap."""
    made = tmp_path / "10-containers.conflist"
    made.write_text(json.dumps(conflist(BRIDGE, PORTMAP, TUNING), indent=2))
    made.chmod(0o640)
    return made


def chain(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = os.environ.get("QUANTUM_NAT_PLUGIN")
    command = [binary] if binary else [sys.executable, "-I", "-m", "cni_quantum_nat"]
    return subprocess.run([*command, "chain", *arguments], capture_output=True, text=True, check=False)


def types(file: Path) -> list[str]:
    return [plugin["type"] for plugin in json.loads(file.read_text())["plugins"]]


def test_it_replaces_portmap_and_keeps_its_keys(file: Path) -> None:
    done = chain(str(file))
    assert done.returncode == 0, done.stderr
    assert '+      "type": "quantum-nat"' in done.stdout
    assert json.loads(file.read_text()) == conflist(BRIDGE_ALONE, {**PORTMAP, "type": "quantum-nat"}, TUNING)
    assert file.stat().st_mode & 0o777 == 0o640


def test_without_portmap_it_goes_after_the_interface_plugin() -> None:
    assert chained(conflist(BRIDGE, TUNING)) == conflist(BRIDGE_ALONE, OURS, TUNING)


FLANNEL = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}


@pytest.mark.parametrize("maker", [FLANNEL, {**BRIDGE, "ipMasq": False}, {"type": "ptp"}])
def test_it_masquerades_nothing_that_was_not_masqueraded_before(maker: dict[str, Any]) -> None:
    """At 1.0.0 (defect 2) traffic between the pods of a cluster got the node's address."""
    ours = {**PORTMAP, "type": "quantum-nat", "masquerade": False}
    assert chained(conflist(maker, PORTMAP), ["10.244.0.0/16"]) == conflist(maker, ours)


def test_what_ip_masq_masqueraded_goes_on_but_to_pod_networks() -> None:
    networks = ["10.244.0.0/16", "fd00:10:244::/56"]
    ours = chained(conflist(BRIDGE, PORTMAP), networks)["plugins"][1]
    assert ours == {**PORTMAP, "type": "quantum-nat", "noMasqueradeTo": networks}


def test_after_a_plugin_with_outbound_nat_of_its_own_it_only_publishes_ports() -> None:
    assert chained(conflist(FLANNEL))["plugins"][1] == {**OURS, "masquerade": False}
    assert chained(conflist({"type": "bridge"}))["plugins"][1] == OURS


def test_pod_networks_are_options_and_invalid_ones_are_refused(file: Path) -> None:
    before = file.read_text()
    done = chain("--pod-network", "10.244.0.0/16", "--pod-network", "10.96.0.1/12", str(file))
    assert done.returncode == 1
    assert "10.96.0.1/12" in done.stderr
    assert file.read_text() == before
    assert chain("--pod-network", "10.244.0.0/16", "--pod-network", "10.96.0.0/12", str(file)).returncode == 0
    assert json.loads(file.read_text())["plugins"][1]["noMasqueradeTo"] == ["10.244.0.0/16", "10.96.0.0/12"]
    assert chain("--undo", str(file)).returncode == 0
    assert file.read_text() == before


@pytest.mark.parametrize("maker", [FLANNEL, BRIDGE])
def test_a_list_that_1_0_0_changed_is_undone(file: Path, maker: dict[str, Any]) -> None:
    before = conflist(maker, PORTMAP)
    file.with_name(f"{file.name}.before-quantum-nat").write_text(json.dumps(before))
    file.write_text(json.dumps(conflist(maker, {**PORTMAP, "type": "quantum-nat"}), indent=2) + "\n")
    assert chain("--undo", str(file)).returncode == 0
    assert json.loads(file.read_text()) == before


def test_iptables_conditions_of_portmap_set_the_backend() -> None:
    portmap = {**PORTMAP, "conditionsV4": ["!", "-s", "192.0.2.0/24"]}
    assert chained(conflist(BRIDGE, portmap))["plugins"][1]["backend"] == "iptables"


def test_a_second_run_changes_nothing_and_undo_restores_the_exact_text(file: Path) -> None:
    before = file.read_text()
    chain(str(file))
    after = file.read_text()
    assert chain(str(file)).stdout == f"{file}: unchanged\n"
    assert file.read_text() == after
    assert chain("--undo", str(file)).returncode == 0
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_only_the_lines_that_must_are_changed_and_who_masquerades_is_said(file: Path) -> None:
    """At 1.0.0 (defect 54) the whole file was written anew, and ipMasq stayed, of which `validate` warned."""
    bridge = '{"type": "bridge", "ipMasq": true, "ranges": [ 1,2 ],\n     "hairpinMode": true}'
    portmap = '{ "type": "portmap", "capabilities": { "portMappings": true } }'
    before = f'{{ "cniVersion":"1.0.0",\n\t"name": "n",\n  "plugins": [ {bridge},\n    {portmap} ]\n}}'
    file.write_text(before)
    done = chain(str(file))
    assert done.returncode == 0
    assert file.read_text() == before.replace('"ipMasq": true, ', "").replace("portmap", "quantum-nat")
    assert done.stderr.startswith("quantum-nat: quantum-nat masquerades instead of bridge, whose ipMasq is removed; ")
    again = chain(str(file))
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{file}: unchanged\n", "")


def test_a_list_that_has_our_entry_and_ip_masq_loses_ip_masq(file: Path) -> None:
    file.write_text(json.dumps(conflist(BRIDGE, OURS)))
    assert "masquerades instead of bridge" in chain(str(file)).stderr
    assert json.loads(file.read_text()) == conflist(BRIDGE_ALONE, OURS)
    assert chain("--undo", str(file)).returncode == 0
    assert json.loads(file.read_text()) == conflist(BRIDGE, OURS)


def test_ip_masq_stays_where_our_entry_does_not_masquerade() -> None:
    ours = {**OURS, "masquerade": False}
    assert chained(conflist(BRIDGE, ours)) == conflist(BRIDGE, ours)


def test_what_validate_would_warn_of_is_said(file: Path) -> None:
    """Defect 73: without hairpinMode, a container cannot reach itself where br_netfilter is on."""
    file.write_text(json.dumps(conflist({"type": "bridge"}, PORTMAP)))
    assert 'add "hairpinMode": true' in chain(str(file)).stderr


def test_a_dry_run_changes_nothing(file: Path) -> None:
    before = file.read_text()
    done = chain("--dry-run", "--json", str(file))
    told = json.loads(done.stdout)
    assert (done.returncode, told["changed"], told["before"]) == (1, True, before)
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_symbolic_link_is_followed_and_kept(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.conflist"
    link.symlink_to(file)
    chain(str(link))
    assert link.is_symlink()
    assert types(file) == ["bridge", "quantum-nat", "tuning"]


def test_undo_refuses_a_list_that_has_changed_since(file: Path) -> None:
    chain(str(file))
    changed = file.read_text().replace("cni0", "cni7")
    file.write_text(changed)
    done = chain("--undo", str(file))
    assert done.returncode == 1
    assert "has changed since" in done.stderr
    assert file.read_text() == changed


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", ":1:2: not JSON"),
        ('{"name": "a", "name": "b", "plugins": [{}]}', ":1:15: name is there twice"),
        ('{"type": "bridge"}', "is not a configuration list"),
        (json.dumps(conflist(BRIDGE, PORTMAP, PORTMAP)), "portmap is in the list more than once"),
        (json.dumps(conflist(BRIDGE, {**PORTMAP, "snat": 3})), "snat is 3"),
    ],
)
def test_an_invalid_list_is_refused_and_unchanged(file: Path, content: str, told: str) -> None:
    file.write_text(content)
    done = chain(str(file))
    assert done.returncode == 1
    assert told in done.stderr
    assert file.read_text() == content
    assert list(file.parent.iterdir()) == [file]


def test_a_missing_file_is_an_error_in_words(tmp_path: Path) -> None:
    done = chain(str(tmp_path / "10-typo.conflist"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"quantum-nat: cannot read {tmp_path}/10-typo.conflist: No such file or directory\n")
    assert "Errno" not in done.stderr


def test_undo_without_an_earlier_change_is_refused(file: Path) -> None:
    done = chain("--undo", str(file))
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_settings_are_keys_of_the_entry_whether_or_not_it_is_there(file: Path) -> None:
    original = file.read_text()
    for settings in ({"snatAddress": "192.0.2.1"}, {"snatAddress": "192.0.2.1"}, {"snatAddress": "192.0.2.2"}):
        done = chain("--settings", json.dumps(settings), str(file))
        assert done.returncode == 0, done.stderr
        entry = {**PORTMAP, "type": "quantum-nat", **settings}
        assert json.loads(file.read_text()) == conflist(BRIDGE_ALONE, entry, TUNING)
    assert chain("--undo", str(file)).returncode == 0
    assert file.read_text() == original


@pytest.mark.parametrize("settings", ["{", "[]", '{"type": "portmap"}', '{"snatAddress": 1}', '{"SnatAddress": "::1"}'])
def test_settings_that_are_wrong_change_nothing(file: Path, settings: str) -> None:
    original = file.read_text()
    done = chain("--settings", settings, str(file))
    assert done.returncode != 0
    assert done.stderr
    assert file.read_text() == original
