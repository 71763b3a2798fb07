"""Ranges of ports: host ports in a row that lead to the same ports of a container are one element, one rule, one unit."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.sequences import as_of_1_0_0

from .plugin import Plugin, PluginError, publish
from .topology import HOST, HOST_SECONDARY, Container, Host, Namespace, connect_second_network

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST, MIDDLE, LAST = 20000, 30123, 47999
both_families = pytest.mark.parametrize("family", [4, 6])


def ports(first: int = FIRST, last: int = LAST, **more: Any) -> list[dict[str, Any]]:
    """Return the entries of a range, as a runtime writes them."""
    return [publish(port, port, **more) for port in range(first, last + 1)]


def serve(container: Container, *numbers: int, name: str = "web") -> None:
    for number in numbers:
        container.serve(name, number)


def assert_served(client: Namespace, numbers: Iterable[int], name: str = "web", family: int = 4) -> None:
    for number in numbers:
        for protocol in ("tcp", "udp"):
            assert client.ask(HOST[family], number, protocol).server == name, (number, protocol)


def ranges(host: Host) -> dict[str, int]:
    return {name: len(found) for name, found in host.elements().items() if "ranges" in name and found}


@pytest.mark.behaviour
@both_families
def test_both_ends_and_the_middle_reach_the_container_until_del(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, family: int
) -> None:
    serve(container, FIRST, MIDDLE, LAST)
    web = plugin.add(container, *ports(protocol="tcp"), *ports(protocol="udp"))
    assert_served(client, (FIRST, MIDDLE, LAST), family=family)
    assert other_container.ask(HOST[family], MIDDLE).server == "web", "a container of the same network"
    assert container.ask(HOST[family], MIDDLE).server == "web", "itself"
    if family == 4:
        assert host.ask("127.0.0.1", MIDDLE).server == "web"
    for outside in (FIRST - 1, LAST + 1):
        assert client.is_refused(HOST[family], outside)
    web.check()
    web.delete()
    assert client.is_refused(HOST[family], MIDDLE)
    assert host.owners() == set()


def test_a_range_is_one_element_and_shifted_ports_are_single_ones(
    host: Host, container: Container, plugin: Plugin
) -> None:
    plugin.add(container, *ports(), *(publish(port, port + 1) for port in range(1000, 1032)))
    found = ranges(host)
    assert found == {"endpoints_ranges4": 1, "endpoints_ranges6": 1, "published_ranges4": 1, "published_ranges6": 1}
    assert len(host.elements()["endpoints4"]) == 32
    (record,) = (plugin.state_directory / "attachments" / container.id).iterdir()
    assert len(json.loads(record.read_text())["portMappings"]) == 33


@pytest.mark.behaviour
@pytest.mark.parametrize("host_ip", ["", HOST[4]])
@pytest.mark.parametrize(
    ("held", "wanted", "named"),
    [
        ((FIRST, LAST), (MIDDLE, MIDDLE), f"{MIDDLE}"),
        ((MIDDLE, MIDDLE), (FIRST, LAST), f"{MIDDLE}"),
        ((20100, 20200), (20000, 20300), "20100-20200"),
        ((20000, 20300), (20100, 20200), "20100-20200"),
        ((20000, 20300), (20200, 20400), "20200-20300"),
        ((20050, 20050), (20000, 20100), "20050"),
        ((20000, 20300), (20000, 20300), "20000-20300"),
    ],
)
def test_a_conflict_names_the_ports_and_their_owner(
    host: Host,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    held: tuple[int, int],
    wanted: tuple[int, int],
    named: str,
    host_ip: str,
) -> None:
    first = plugin.add(container, *ports(*held, hostIP=host_ip))
    before = host.ruleset()
    with pytest.raises(PluginError) as refusal:
        plugin.add(other_container, *ports(*wanted, hostIP=host_ip))
    assert refusal.value.code == 100
    assert f"host port {named}/tcp" in refusal.value.message
    assert container.id in refusal.value.message
    assert host.ruleset() == before
    first.check()
    first.delete()
    plugin.add(other_container, *ports(*wanted, hostIP=host_ip)).check()


@pytest.mark.behaviour
def test_a_port_on_one_address_goes_before_a_range_on_all(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    serve(container, 20001, 20002)
    serve(other_container, 20001, name="other")
    plugin.add(container, *ports(20000, 20100))
    plugin.add(other_container, publish(20001, 20001, hostIP=HOST_SECONDARY[4]))
    assert client.ask(HOST_SECONDARY[4], 20001).server == "other"
    assert client.ask(HOST[4], 20001).server == "web"
    assert client.ask(HOST_SECONDARY[4], 20002).server == "web"


@pytest.mark.behaviour
@pytest.mark.parametrize("lost", [False, True], ids=["recorded", "record lost"])
@pytest.mark.parametrize(("held", "wanted"), [((FIRST, LAST), (MIDDLE, MIDDLE)), ((MIDDLE, MIDDLE), (FIRST, LAST))])
def test_ports_of_a_dead_owner_are_taken_over_whole(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    held: tuple[int, int],
    wanted: tuple[int, int],
    lost: bool,
) -> None:
    serve(other_container, MIDDLE, name="successor")
    former = plugin.add(container, *ports(*held))
    if lost:
        for record in (plugin.state_directory / "attachments" / container.id).iterdir():
            record.unlink()
        with pytest.raises(PluginError, match="no record"):
            plugin.add(other_container, *ports(*wanted))
        assert plugin.operate("reconcile").returncode == 0
    container.remove()
    plugin.add(other_container, *ports(*wanted)).check()
    assert client.ask(HOST[4], MIDDLE).server == "successor"
    former.delete_again_like_containerd()
    assert client.ask(HOST[4], MIDDLE).server == "successor"
    assert host.owners() == {f"net/{other_container.id}/eth0"}


@pytest.mark.behaviour
def test_a_sibling_waits_for_a_range_and_gets_it(client: Namespace, container: Container, plugin: Plugin) -> None:
    serve(container, FIRST, MIDDLE)
    first = plugin.add(container, *ports(), network="one")
    second = plugin.add(connect_second_network(container), *ports(), network="two")
    first.check()
    second.check()
    first.delete()
    second.check()
    assert client.ask(HOST[4], MIDDLE).server == "web"
    assert plugin.operate("reconcile", "--dry-run").returncode == 0


@pytest.mark.behaviour
def test_a_flush_is_healed_and_reconcile_agrees(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    serve(container, FIRST, LAST)
    web = plugin.add(container, *ports())
    plugin.add(other_container, publish(80))
    assert plugin.operate("reconcile", "--dry-run").returncode == 0
    host.run("nft", "flush", "ruleset")
    with pytest.raises(PluginError):
        web.check()
    assert plugin.operate("reconcile").returncode == 0
    web.check()
    assert client.ask(HOST[4], LAST).server == "web"
    assert plugin.operate("reconcile", "--dry-run").returncode == 0
    plugin.gc({"cni.dev/valid-attachments": []})
    assert host.owners() == set()


@pytest.mark.nftables
@pytest.mark.parametrize(("ours", "theirs"), [((20050, 20050), (20000, 20099)), ((20000, 20099), (20050, 20050))])
def test_healing_takes_what_overlaps_from_an_owner_without_a_record(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    ours: tuple[int, int],
    theirs: tuple[int, int],
) -> None:
    """A state directory that was restored from a copy: the table has an attachment that the copy does not know."""
    serve(container, 20050)
    web = plugin.add(container, *ports(*ours))
    directory = plugin.state_directory / "attachments"
    kept = {file: file.read_bytes() for file in (directory / container.id).iterdir()}
    web.delete()
    plugin.add(other_container, *ports(*theirs))
    shutil.rmtree(directory / other_container.id)
    (directory / container.id).mkdir()
    for file, content in kept.items():
        file.write_bytes(content)
    host.run("nft", "flush chain inet quantum postrouting")
    plugin.add(host.container(), publish(80))  # builds the table anew
    assert client.ask(HOST[4], 20050).server == "web"
    web.check()


@pytest.mark.nftables
def test_single_ports_on_a_record_of_1_0_0_become_a_range_with_the_new_table(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    serve(container, 20000, 20099)
    web = plugin.add(container, *ports(20000, 20099))
    (record,) = (plugin.state_directory / "attachments" / container.id).iterdir()
    content = json.loads(record.read_text())
    (mapping,) = content["portMappings"]
    del mapping["range"]
    content["portMappings"] = [{**mapping, "hostPort": port, "containerPort": port} for port in range(20000, 20100)]
    record.write_text(json.dumps(as_of_1_0_0(content)))
    host.run("nft", "delete set inet quantum layout")
    plugin.add(other_container, publish(80))
    assert ranges(host)["endpoints_ranges4"] == 1
    assert len(host.elements()["endpoints4"]) == 1
    for port in (20000, 20099):
        assert client.ask(HOST[4], port).server == "web"
    web.check()
    web.add()
    assert len(json.loads(record.read_text())["portMappings"]) == 1
    web.delete()
    assert client.is_refused(HOST[4], 20000)
    assert host.owners() == {f"net/{other_container.id}/eth0"}


def test_reconcile_repairs_a_range_that_somebody_changed(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    serve(container, FIRST)
    web = plugin.add(container, *ports())
    host.run("nft", "delete element inet quantum endpoints_ranges4 { tcp . 20000-47999 }")
    host.run("nft", "add element inet quantum endpoints_ranges4 { tcp . 20000-30000 : 10.9.9.9 }")
    with pytest.raises(PluginError, match="endpoints_ranges4"):
        web.check()
    assert plugin.operate("reconcile").returncode == 0
    web.check()
    assert client.ask(HOST[4], FIRST).server == "web"


@pytest.mark.behaviour
def test_ports_are_shown_as_a_range_and_its_connections_are_counted(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    serve(container, FIRST, LAST)
    plugin.add(container, *ports())
    for port in (FIRST, LAST, LAST):
        client.ask(HOST[4], port)
    shown = plugin.operate("port", container.id).stdout.splitlines()
    assert shown == ["20000-47999/tcp -> 0.0.0.0:20000-47999", "20000-47999/tcp -> [::]:20000-47999"]
    assert plugin.operate("port", container.id, str(MIDDLE)).stdout.splitlines() == [
        f"0.0.0.0:{MIDDLE}",
        f"[::]:{MIDDLE}",
    ]
    assert json.loads(plugin.operate("port", container.id, "--json").stdout)[0]["range"] == "20000-47999"
    assert "20000-47999->20000-47999/tcp" in plugin.operate("list").stdout
    (listed,) = json.loads(plugin.operate("list", "--json").stdout)
    assert listed["connections"] == 3
    assert listed["portMappings"][0]["range"] == "20000-47999"


def test_doctor_traces_a_packet_to_a_range(container: Container, plugin: Plugin) -> None:
    serve(container, MIDDLE)
    plugin.add(container, *ports())
    traced = plugin.operate("doctor", "--packet", f"tcp:{HOST[4]}:{MIDDLE}")
    assert traced.returncode == 0, traced.stdout
    assert "endpoints_ranges4 { tcp . 20000-47999" in traced.stdout
    assert f"{container.address[4]} port {MIDDLE}/tcp" in traced.stdout


@pytest.mark.parametrize(
    ("chain", "rule", "said"),
    [
        ("filter hook forward priority 0", "tcp dport 30123 drop", "connections to host port 30123/tcp"),
        ("filter hook forward priority 0", "tcp dport 30000-30099 drop", "connections to host port 30000-30099/tcp"),
        ("filter hook forward priority 0", "tcp dport > 20000 accept", ""),
        (
            "nat hook prerouting priority -100",
            "tcp dport 30123 dnat to 10.9.9.9",
            "also translates host port 30123/tcp",
        ),
    ],
)
def test_doctor_finds_what_concerns_a_part_of_a_range(
    host: Host, container: Container, plugin: Plugin, chain: str, rule: str, said: str
) -> None:
    plugin.add(container, *ports())
    host.run("nft", f"add table ip other; add chain ip other c {{ type {chain}; }}; add rule ip other c {rule}")
    found = plugin.operate("doctor").stdout
    assert said in found
    assert bool(said) == ("chain c in table ip other" in found)


def test_who_has_a_port_of_a_range(container: Container, plugin: Plugin) -> None:
    plugin.add(container, *ports())
    shown = plugin.operate("who", str(MIDDLE)).stdout
    assert f"tcp 0.0.0.0: container {container.id} (eth0 on network net), its port {MIDDLE}\n" in shown
    assert plugin.operate("who", str(LAST + 1)).returncode == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"sharedPorts": [20050]},
        {"snat": False},
        {"masqAll": True},
        {"ipv6Localhost": True},
        {"conditionsV4": ["ip saddr != 192.0.2.77"], "conditionsV6": ["ip6 saddr != 2001:db8::77"]},
        {"isolate": True},
    ],
)
@pytest.mark.parametrize("host_ip", ["", HOST[4], "127.0.0.1"])
def test_every_setting_works_for_ranges(
    host: Host, client: Namespace, container: Container, plugin: Plugin, keys: dict[str, Any], host_ip: str
) -> None:
    numbers = (20000, 20050, 20100)
    serve(container, *numbers)
    web = plugin.add(container, *ports(20000, 20100, hostIP=host_ip), **keys)
    web.check()
    for number in numbers:
        if host_ip != "127.0.0.1":
            assert client.ask(HOST[4], number).server == "web"
        elif "snat" not in keys:
            assert host.ask("127.0.0.1", number).server == "web"
        if "ipv6Localhost" in keys and not host_ip:
            assert host.ask("::1", number).server == "web"
    if host_ip == "127.0.0.1":
        host.add_client_routes()
        assert client.cannot_reach(container.address[4], 20050)
    web.delete()
    assert host.owners() == set()


def test_ranges_that_overlap_on_different_addresses_and_a_port_open_to_all(
    client: Namespace, host: Host, container: Container, plugin: Plugin
) -> None:
    serve(container, 20000, 20050, 20150)
    web = plugin.add(
        container,
        *ports(20000, 20100, hostIP="127.0.0.1"),
        *ports(20090, 20200, hostIP=HOST[4]),
        publish(9000, 20050),
    )
    web.check()
    assert host.ask("127.0.0.1", 20000).server == "web"
    assert client.ask(HOST[4], 20150).server == "web"
    host.add_client_routes()
    assert client.ask(container.address[4], 20050).server == "web", "it is published on all addresses too"
    assert client.cannot_reach(container.address[4], 20000)
    web.delete()
    assert host.owners() == set()
