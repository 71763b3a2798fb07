"""The iptables backend only; tests for all backends are marked `behaviour` elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .peer import Refused
from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from pathlib import Path

both_variants = pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"], indirect=True)
nft_variant = pytest.mark.parametrize("backend", ["iptables-nft"], indirect=True)
GUARDED = ("-D PREROUTING -j QUANTUM-GUARD", "QUANTUM-GUARD")


def count_calls(plugin: Plugin, directory: Path) -> Path:
    """Wrap the iptables programs to log each call, and return the log file."""
    assert plugin.programs is not None
    calls, wrapped = directory / "calls", directory / "wrapped"
    wrapped.mkdir()
    for program in plugin.programs.iterdir():
        script = wrapped / program.name
        script.write_text(
            f'#!/bin/sh\necho {program.name} >> {calls}\nexec {program.resolve().parent}/{program.readlink().name} "$@"\n'
        )
        script.chmod(0o755)
    plugin.programs = wrapped
    return calls


@both_variants
def test_a_call_lists_the_rules_of_a_family_once_and_changes_them_once(
    host: Host, container: Container, other_container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.add(other_container, publish(9000))
    calls = count_calls(plugin, tmp_path)
    web = plugin.attachment(container, publish(8080), publish(8081, hostIP="127.0.0.1"))
    once = ["ip6tables-restore", "ip6tables-save", "iptables-restore", "iptables-save"]
    for step, started in ((web.add, once), (web.check, ["ip6tables-restore", "iptables-restore"]), (web.delete, once)):
        step()
        assert sorted(calls.read_text().split()) == started
        calls.unlink()
    only_ipv4 = host.container(families=(4,))
    plugin.add(only_ipv4, publish(8080))
    assert sorted(calls.read_text().split()) == ["iptables-restore", "iptables-save"]


@both_variants
def test_after_del_only_the_fixed_chains_remain(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080), publish(8081, hostIP="127.0.0.1")).delete()
    assert host.installed() == set()
    assert not [line for line in host.iptables_rules() if "QUANTUM-IN-" in line or "QUANTUM-OUT-" in line]


@both_variants
@pytest.mark.parametrize(
    ("table", "damage", "named"),
    [
        (
            "nat",
            ["-D", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "QUANTUM-PREROUTING"],
            "PREROUTING",
        ),
        ("nat", ["-D", "POSTROUTING", "-j", "QUANTUM-POSTROUTING"], "QUANTUM-POSTROUTING"),
        ("raw", ["-D", "PREROUTING", "-j", "QUANTUM-GUARD"], "QUANTUM-GUARD"),
        ("raw", ["-F", "QUANTUM-GUARD"], "QUANTUM-GUARD"),
        ("nat", ["-F", "QUANTUM-ANY-IP"], "QUANTUM-ANY-IP"),
        ("nat", ["-F"], "QUANTUM"),
    ],
)
def test_check_reports_missing_rules_and_add_repairs_them(
    host: Host, client: Namespace, container: Container, plugin: Plugin, table: str, damage: list[str], named: str
) -> None:
    web = plugin.add(container, publish(8080))
    before = sorted(host.iptables_rules())
    host.run(host.backend, "-t", table, *damage)
    with pytest.raises(PluginError, match=named) as caught:
        web.check()
    assert caught.value.code == 103
    web.add().check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert sorted(host.iptables_rules()) == before


@both_variants
def test_lost_chains_are_restored_for_every_container(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    client.serve("outside", 80)
    web = plugin.add(container, publish(8080))
    for prefix in ("iptables", "ip6tables"):
        for table in ("nat", "raw", "filter"):
            command = f"{prefix}-{host.backend.removeprefix('iptables-')}"
            host.run(command, "-t", table, "-F")
            host.run(command, "-t", table, "-X")
    plugin.add(other_container, publish(8081))
    web.check()
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
        assert container.ask(CLIENT[family], 80).source == HOST[family]


@nft_variant
def test_del_removes_the_rest_if_some_rules_are_missing(host: Host, container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080), publish(8081))
    host.run(host.backend, "-t", "nat", "-F", "QUANTUM-ANY-IP")
    web.delete()
    assert host.installed() == set()


@nft_variant
def test_gc_removes_rules_without_a_record(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    kept = plugin.add(container, publish(8080))
    lost = plugin.add(other_container, publish(8081))
    (plugin.state_directory / "attachments" / other_container.id / "net:eth0.json").unlink()
    plugin.gc({"cni.dev/valid-attachments": [{"containerID": container.id, "ifname": "eth0"}]})
    assert host.owners() == {kept.owner}
    assert lost.owner not in host.owners()
    kept.check()


@pytest.mark.frozen
@both_variants
def test_a_network_moves_when_its_configuration_names_another_backend(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    iptables = host.backend
    other_container.serve("other", 80)
    web = plugin.add(container, publish(8080))
    for name in ("nftables", iptables):
        web.configuration = {**web.configuration, "backend": name.partition("-")[0]}
        other = plugin.add(other_container, publish(8081), backend=name.partition("-")[0])
        for attachment, server, port in ((web, "web", 8080), (other, "other", 8081)):
            attachment.check()
            assert client.ask(HOST[4], port).server == server
            assert client.ask(HOST[6], port).server == server
        for backend in ("nftables", iptables):
            host.backend = backend
            assert bool(host.installed()) == (backend == name)
        other.delete()


@nft_variant
def test_del_moves_the_network_too(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    gone = plugin.add(other_container, publish(8081))
    gone.configuration = {**gone.configuration, "backend": "nftables"}
    gone.delete()
    assert host.installed() == set()
    host.backend = "nftables"
    assert host.owners() == {web.owner}


@nft_variant
def test_a_port_in_use_by_a_container_with_another_backend_is_refused(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    with pytest.raises(PluginError, match="host port 8080/tcp is already in use by container"):
        plugin.add(other_container, publish(8080), network="nftables", backend="nftables")
    plugin.add(other_container, publish(8081), network="nftables", backend="nftables")
    with pytest.raises(PluginError, match="host port 8081/tcp is already in use by container"):
        plugin.add(host.container(), publish(8081), network="iptables", backend="iptables")
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.frozen
@both_variants
@pytest.mark.parametrize("keys", [{"markMasqBit": 5}, {"externalSetMarkChain": "MARK-MASQ"}])
def test_marked_packets_are_masqueraded(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    keys: dict[str, str],
) -> None:
    if "externalSetMarkChain" in keys:
        for prefix in ("iptables", "ip6tables"):
            command = f"{prefix}-{host.backend.removeprefix('iptables-')}"
            host.run(command, "-t", "nat", "-N", "MARK-MASQ")
            host.run(command, "-t", "nat", "-A", "MARK-MASQ", "-j", "MARK", "--or-mark", "0x4000")
            host.run(
                command, "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE"
            )
    web = plugin.add(container, publish(8080), **keys)
    assert host.ask("127.0.0.1", 8080) == ("web", "10.88.0.1")
    for family, gateway in ((4, "10.88.0.1"), (6, "fd88::1")):
        assert client.ask(HOST[family], 8080) == ("web", CLIENT[family])
        assert other_container.ask(HOST[family], 8080) == ("web", gateway)
        assert container.ask(HOST[family], 8080) == ("web", gateway)
    web.check()
    web.delete()
    assert client.is_refused(HOST[4], 8080)


@nft_variant
def test_a_missing_external_chain_is_reported_and_nothing_changes(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(other_container, publish(9000))
    before = host.installed()
    with pytest.raises(PluginError, match="NO-SUCH-CHAIN"):
        plugin.add(container, publish(8080), network="other", externalSetMarkChain="NO-SUCH-CHAIN")
    assert host.installed() == before
    assert not (plugin.state_directory / "attachments" / container.id).exists()


@both_variants
def test_conditions_let_only_matching_connections_in(client: Namespace, container: Container, plugin: Plugin) -> None:
    client.ip("address add 198.51.100.77/24 dev uplink")
    plugin.add(container, publish(8080), conditionsV4=["!", "-s", "198.51.100.77"])
    assert client.ask(HOST[4], 8080, source=CLIENT[4]).server == "web"
    assert client.ask(HOST[6], 8080).server == "web"
    with pytest.raises(Refused):
        client.ask(HOST[4], 8080, source="198.51.100.77")


@nft_variant
@pytest.mark.parametrize(
    "keys",
    [
        {"sharedPorts": [8080]},
        {"conntrackTimeout": 60},
        {"udpTimeout": 60},
        {"udpStreamTimeout": 60},
        {"ipv6Localhost": True},
        {"conditionsV4": ["ip", "saddr", "10.0.0.1"]},
    ],
)
def test_keys_that_iptables_does_not_support_are_refused(
    container: Container, plugin: Plugin, keys: dict[str, str]
) -> None:
    with pytest.raises(PluginError, match=next(iter(keys))) as caught:
        plugin.add(container, publish(8080), **keys)
    assert caught.value.code == 7


@nft_variant
def test_status_reports_a_broken_iptables(plugin: Plugin, tmp_path: Path) -> None:
    plugin.status()
    broken = tmp_path / "broken"
    broken.mkdir()
    for prefix in ("iptables", "ip6tables"):
        (broken / f"{prefix}-restore").symlink_to("/bin/false")
    plugin.programs = broken
    with pytest.raises(PluginError, match="iptables-restore refused our rules"):
        plugin.status()
