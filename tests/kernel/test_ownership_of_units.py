"""A host port and an address are units: taken, refused and released whole, whatever rules they take in the kernel.

Each test names a defect of 1.0.0, where ownership was decided element by element.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from .plugin import Attachment, Plugin, PluginError, publish
from .talk import Talk
from .topology import CLIENT, HOST, HOST_SECONDARY, Container, Host, Namespace, connect_second_network

if TYPE_CHECKING:
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])
SHARED: dict[str, Any] = {"sharedPorts": [8080]}
CLOSED: dict[str, Any] = {"conditionsV4": ["ip saddr 192.0.2.77"]}
CLOSED_BY_IPTABLES: dict[str, Any] = {"conditionsV4": ["-s", "192.0.2.77"]}


def closed(plugin: Plugin) -> dict[str, Any]:
    """Return conditions that no client matches, in the backend's syntax."""
    return CLOSED if plugin.programs is None else CLOSED_BY_IPTABLES


def give_address_away(host: Host, container: Container) -> Container:
    """Let the container lose its addresses, without DEL, and start another one with them."""
    container.ip("link del eth0")
    newcomer = host.container(number=int(container.address[4].rpartition(".")[2]))
    newcomer.serve("newcomer", 80)
    return newcomer


def record_of(attachment: Attachment) -> dict[str, Any]:
    directory = attachment.plugin.state_directory / "attachments" / attachment.container.id
    path = directory / f"{attachment.configuration['name']}:{attachment.container.interface}.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.behaviour
def test_conditions_of_an_attachment_that_waits_for_a_port_do_not_close_it(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 3a) the policy of a waiting attachment applied to the port of its container's other network."""
    first = plugin.add(container, publish(8080), network="bb")
    second = plugin.add(connect_second_network(container), publish(8080), network="aa", **closed(plugin))
    assert client.ask(HOST[4], 8080).server == "web"
    first.check()
    second.check()
    first.delete()
    assert client.is_refused(HOST[4], 8080), "the port is the second network's now, with its conditions"
    second.check()


@pytest.mark.behaviour
@pytest.mark.parametrize("lost", [False, True])
def test_conditions_of_a_dead_owner_go_with_its_port(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, lost: bool
) -> None:
    """At 1.0.0 (defect 3b) they stayed when the port was taken over, and healing repeated them."""
    other_container.serve("successor", 80)
    plugin.add(container, publish(8080), network="guarded", **closed(plugin))
    container.remove()
    successor = plugin.add(other_container, publish(8080))
    if lost:
        host.run("nft", "flush", "ruleset")
        assert plugin.operate("reconcile").returncode == 0
    assert client.ask(HOST[4], 8080).server == "successor"
    successor.check()
    assert host.owners() == {successor.owner}


@pytest.mark.behaviour
@both_families
@pytest.mark.parametrize("repaired", [False, True])
def test_the_next_owner_of_an_address_inherits_no_isolation(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int, repaired: bool
) -> None:
    """At 1.0.0 (defect 10) it did, CHECK passed, and healing put the former owner back."""
    host.add_client_routes()
    plugin.add(container, publish(8080), isolate=True)
    newcomer = give_address_away(host, container)
    attachment = plugin.add(newcomer, publish(8081))
    if repaired:
        host.run("nft", "flush", "ruleset")
        assert plugin.operate("reconcile").returncode == 0
    assert client.ask(newcomer.address[family], 80).server == "newcomer"
    assert client.ask(HOST[family], 8081).server == "newcomer"
    attachment.check()
    assert host.owners() == {attachment.owner}


@pytest.mark.behaviour
@both_families
def test_the_next_owner_of_an_address_inherits_no_source_address(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 10) the `snatAddress` of the former owner applied to it."""
    client.serve("outside", 80)
    plugin.add(container, publish(8080), network="fixed", snatAddress=HOST_SECONDARY[family])
    newcomer = give_address_away(host, container)
    plugin.add(newcomer)
    assert newcomer.ask(CLIENT[family], 80).source == HOST[family]


@pytest.mark.behaviour
@both_families
@pytest.mark.parametrize("dead", [False, True])
def test_host_ports_of_the_former_owner_of_an_address_do_not_lead_to_the_next(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int, dead: bool
) -> None:
    """At 1.0.0 (defect 10) they did."""
    plugin.add(container, publish(8080))
    newcomer = give_address_away(host, container)
    if dead:
        container.remove()
    attachment = plugin.add(newcomer)
    assert client.is_refused(HOST[family], 8080)
    assert host.owners() == {attachment.owner}
    assert not (plugin.state_directory / "attachments" / container.id).exists()


@pytest.mark.behaviour
@both_families
def test_the_next_owner_of_an_address_gets_no_datagram_of_the_former_owners_flows(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 10) a client that kept sending reached it."""
    plugin.add(container, publish(8080, protocol="udp"))
    talk = Talk(stack, client, HOST[family], 8080)
    assert talk.ask() == "web"
    newcomer = give_address_away(host, container)
    plugin.add(newcomer)
    assert talk.ask() is None


@pytest.mark.parametrize("damage", ["add rule inet quantum output counter", "flush ruleset"])
def test_a_refused_add_again_leaves_what_the_container_has(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, damage: str
) -> None:
    """At 1.0.0 (defect 11) healing left out the container, with what it had before, and nobody put it back."""
    other_container.serve("other", 80)
    plugin.add(container, publish(8080))
    other = plugin.add(other_container, publish(9000))
    host.run("nft", damage)
    with pytest.raises(PluginError) as caught:
        plugin.attachment(container, publish(8080), publish(9000)).add()
    assert caught.value.code == 100
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 9000).server == "other"
    assert other.owner in host.owners()


@pytest.mark.behaviour
@both_families
def test_a_dead_sibling_does_not_keep_a_port(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 12) the port led to the old address: same container ID, its first namespace gone without DEL."""
    plugin.add(container, publish(8080), network="first")
    number = container.id
    container.remove()
    again = host.container("cni1")
    again.id = number
    again.serve("again", 80)
    second = plugin.add(again, publish(8080), network="second")
    assert client.ask(HOST[family], 8080).server == "again"
    second.check()
    assert host.owners() == {second.owner}


def test_a_dead_sibling_does_not_keep_a_shared_port(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 12) new connections went to its old address."""
    plugin.add(container, publish(8080), network="first", **SHARED)
    number = container.id
    container.remove()
    again = host.container("cni1")
    again.id = number
    again.serve("again", 80)
    second = plugin.add(again, publish(8080), network="second", **SHARED)
    assert {client.ask(HOST[4], 8080).server for _ in range(8)} == {"again"}
    second.check()


def test_gc_removes_two_orphans_of_one_shared_port(host: Host, client: Namespace, plugin: Plugin) -> None:
    """At 1.0.0 (defect 13) each removal started from the same distribution, and the last one won."""
    attachments = []
    for number in range(3):
        container = host.container()
        container.serve(f"server{number}", 80)
        attachments.append(plugin.add(container, publish(8080), **SHARED))
    for orphan in attachments[:2]:
        shutil.rmtree(plugin.state_directory / "attachments" / orphan.container.id)
    last = attachments[2]
    plugin.gc({"cni.dev/valid-attachments": [{"containerID": last.container.id, "ifname": "eth0"}]})
    assert {client.ask(HOST[4], 8080).server for _ in range(12)} == {"server2"}
    assert host.owners() == {last.owner, "shared"}
    last.delete()
    assert host.elements() == {}


@pytest.mark.parametrize("count", [1, 2])
def test_a_shared_port_of_dead_containers_is_taken_by_an_exclusive_owner(
    host: Host, client: Namespace, container: Container, plugin: Plugin, count: int
) -> None:
    """At 1.0.0 (defect 41) it was refused forever."""
    for _ in range(count):
        member = host.container()
        plugin.add(member, publish(8080), **SHARED)
        member.remove()
    web = plugin.add(container, publish(8080), network="exclusive")
    assert {client.ask(HOST[4], 8080).server for _ in range(6)} == {"web"}
    web.check()
    assert host.owners() == {web.owner}


@pytest.mark.behaviour
def test_healing_orders_attachments_by_number_not_by_the_clock(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 31) a clock that was set back gave an address's rules to its former owner."""
    other_container.serve("successor", 80)
    first = plugin.add(container, publish(8080))
    container.ip("link del eth0")
    second = plugin.add(other_container, publish(8081))
    record = record_of(second)
    record["createdAt"] = record_of(first)["createdAt"] - 3600
    # The first one's record says the address that the second one has by now: it was alive when it got it.
    path = plugin.state_directory / "attachments" / first.container.id / "net:eth0.json"
    stale = record_of(first)
    stale["endpoints"] = record["endpoints"]
    path.write_text(json.dumps(stale))
    (plugin.state_directory / "attachments" / other_container.id / "net:eth0.json").write_text(json.dumps(record))
    host.run("nft", "flush", "ruleset")
    if plugin.programs is not None:
        assert plugin.operate("reconcile").returncode == 0
    plugin.operate("reconcile")
    assert client.ask(HOST[4], 8081).server == "successor"
    assert client.is_refused(HOST[4], 8080)


@pytest.mark.behaviour
@both_families
def test_del_without_a_record_removes_an_allocated_port(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 37) the port stayed: what the call names has no host port."""
    web = plugin.add(container, {"containerPort": 80})
    assert client.ask(HOST[family], 32768).server == "web"
    shutil.rmtree(plugin.state_directory / "attachments")
    web.delete()
    assert client.is_refused(HOST[family], 32768)
    assert host.owners() == set()


def test_the_alias_of_a_mapping_on_ipv6_loopback_goes_with_it(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 39) element `localhost6` of a dead container's ::1 mapping was kept for its successor's port."""
    plugin.add(container, publish(8080, hostIP="::1"), ipv6Localhost=True)
    container.remove()
    host.serve("local", 8080, "::1")
    successor = plugin.add(other_container, publish(8080, hostIP="::1"), ipv6Localhost=True, hostPortConflict="allow")
    successor.delete()
    assert host.ask("::1", 8080).server == "local"
    assert host.elements() == {}


@pytest.mark.parametrize("released", ["on ::1", "on all addresses", "on another address"])
def test_a_port_on_ipv6_loopback_and_the_same_port_elsewhere_have_separate_owners(
    host: Host, container: Container, other_container: Container, plugin: Plugin, released: str
) -> None:
    """Both owners' `[::1]` was one element: it went to the last ADD, and away with the first DEL."""
    third = host.container()
    third.serve("third", 80)
    other_container.serve("other", 80)
    attachments = {
        "on all addresses": plugin.add(container, publish(8080), ipv6Localhost=True),
        "on ::1": plugin.add(other_container, publish(8080, hostIP="::1"), ipv6Localhost=True),
        "on another address": plugin.add(third, publish(8080, hostIP=HOST[6]), ipv6Localhost=True),
    }
    for attachment in attachments.values():
        attachment.check()
        attachment.add()
    assert host.ask("::1", 8080).server == "other"
    attachments.pop(released).delete()
    for attachment in attachments.values():
        attachment.check()
    assert host.ask("::1", 8080).server == ("web" if released == "on ::1" else "other")
    for attachment in attachments.values():
        attachment.delete()
    assert host.elements() == {}


@pytest.mark.parametrize("add_again", [False, True])
def test_an_alias_that_an_attachment_no_longer_asks_for_is_given_back(
    host: Host, container: Container, plugin: Plugin, add_again: bool
) -> None:
    """At 1.0.0 (defect 39) it was not given back, and the host's own service on ::1 was unreachable."""
    web = plugin.add(container, publish(8080, hostIP="::1"), publish(8081), ipv6Localhost=True)
    if add_again:
        plugin.add(container, publish(8081), ipv6Localhost=True)
    else:
        web.delete()
    host.serve("local", 8080, "::1")
    assert host.ask("::1", 8080).server == "local"


@pytest.mark.behaviour
def test_gc_finds_orphans_of_networks_with_long_names(host: Host, container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 48) an abbreviated owner was never taken for one of the network's."""
    network = "n" * 150
    plugin.add(container, publish(8080), network=network)
    shutil.rmtree(plugin.state_directory / "attachments")
    configuration = plugin.configuration(network) | {"cni.dev/valid-attachments": []}
    plugin.call("GC", configuration)
    assert host.owners() == set()


@pytest.mark.behaviour
def test_what_del_does_not_know_it_does_not_touch(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """DEL by owner (defects 1 and 37) leaves the port of whoever has it by now."""
    other_container.serve("successor", 80)
    dead = plugin.add(container, publish(8080))
    container.remove()
    successor = plugin.add(other_container, publish(8080))
    shutil.rmtree(plugin.state_directory / "attachments" / container.id, ignore_errors=True)
    dead.delete()
    assert client.ask(HOST[4], 8080).server == "successor"
    assert host.owners() == {successor.owner}


@pytest.mark.parametrize("damage", ["add rule inet quantum output counter", "flush ruleset"])
def test_a_client_stays_with_its_container_when_the_table_is_rebuilt(
    host: Host, client: Namespace, plugin: Plugin, damage: str
) -> None:
    """At 1.0.0 (defect 35) each rule had its own random seed: clients moved after a rebuild, and tcp and udp differed."""
    addresses = [f"198.51.100.{number}" for number in range(20, 32)]
    client.ip(*(f"address add {address}/24 dev uplink" for address in addresses))
    for number in range(4):
        container = host.container()
        container.serve(f"server{number}", 80)
        plugin.add(container, publish(8080), publish(8080, protocol="udp"), sharedAffinity="client", **SHARED)

    def servers(protocol: str) -> list[str]:
        return [client.ask(HOST[4], 8080, protocol, source=address).server for address in addresses]

    before = servers("tcp")
    assert servers("udp") == before
    assert len(set(before)) > 1
    host.run("nft", damage)
    assert plugin.operate("reconcile").returncode == 0
    assert servers("tcp") == before


def test_the_state_directory_of_another_host_namespace_is_left_alone(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 20) two host network namespaces with one state directory healed each other's containers."""
    web = plugin.add(container, publish(8080))
    other_host = Host(stack)
    foreign = other_host.container()
    foreign.serve("foreign", 80)
    other_plugin = Plugin(other_host, plugin.state_directory, plugin.programs)
    other = other_plugin.add(foreign, publish(8081), network="other")
    host.run("nft", "flush", "ruleset")
    assert plugin.operate("reconcile").returncode == 0
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)
    assert host.owners() == {web.owner}
    assert other_host.owners() == {other.owner}
    assert other_host.client.ask(HOST[4], 8081).server == "foreign"
    web.check()
    other.check()
    plugin.gc()
    assert plugin.operate("gc").returncode == 0
    other.check()


@pytest.mark.behaviour
def test_ports_and_addresses_of_another_host_namespace_are_no_conflict(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 20) the same port in another host network namespace was claimed in the common directory."""
    web = plugin.add(container, publish(8080))
    other_host = Host(stack)
    other_host.backend = host.backend
    foreign = other_host.container(number=int(container.address[4].rpartition(".")[2]))
    foreign.serve("foreign", 80)
    other = Plugin(other_host, plugin.state_directory, plugin.programs).add(foreign, publish(8080), network="other")
    assert client.ask(HOST[4], 8080).server == "web"
    assert other_host.client.ask(HOST[4], 8080).server == "foreign"
    web.check()
    other.check()
    other.delete()
    web.check()


@pytest.mark.behaviour
def test_one_mapping_given_twice_is_one(client: Namespace, container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 50) it was refused; portmap takes it."""
    plugin.add(
        container, publish(8080), publish(8080), publish(8081, hostIP=HOST[4]), publish(8081, hostIP=HOST[4])
    ).check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8081).server == "web"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_allocated_port_is_none_that_a_service_on_ipv6_loopback_has(
    host: Host, container: Container, plugin: Plugin, protocol: str
) -> None:
    """At 1.0.0 (defect 40) it was picked, and refused by the check that followed."""
    host.serve("local", 40000, "::1")
    plugin.add(
        container, {"containerPort": 80, "protocol": protocol}, portRange="40000-40003", ipv6Localhost=True
    ).check()
    recorded = [json.loads(path.read_text()) for path in (plugin.state_directory / "attachments").rglob("*.json")]
    assert [mapping["hostPort"] for record in recorded for mapping in record["portMappings"]] == [40001]
    assert host.ask("::1", 40001, protocol).server == "web"
    assert [path.name for path in (plugin.state_directory / "attachments").iterdir()] == [container.id]
