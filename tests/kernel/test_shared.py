"""Host ports that several containers share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .peer import Refused
from .plugin import Attachment, Plugin, PluginError, publish
from .talk import Talk
from .topology import CLIENT, HOST, Container, Host, Namespace, connect_second_network

if TYPE_CHECKING:
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])
SHARED: dict[str, Any] = {"sharedPorts": [8080]}


def backends(host: Host, plugin: Plugin, count: int, **keys: Any) -> list[Attachment]:
    """Let `count` containers share port 8080, each with a server named after its address."""
    made = []
    for _ in range(count):
        container = host.container()
        container.serve(container.address[4], 80)
        made.append(plugin.add(container, publish(8080), publish(8080, protocol="udp"), **SHARED | keys))
    return made


def served(client: Namespace, address: str, times: int, protocol: str = "tcp", **how: Any) -> Counter[str]:
    return Counter(client.ask(address, 8080, protocol, **how).server for _ in range(times))


@pytest.mark.frozen
@pytest.mark.parametrize("count", [2, 3, 5])
def test_new_connections_are_distributed_evenly(host: Host, client: Namespace, plugin: Plugin, count: int) -> None:
    backends(host, plugin, count)
    counts = served(client, HOST[4], 1000)
    assert len(counts) == count
    assert all(abs(times - 1000 / count) <= 100 / count for times in counts.values()), counts


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", [HOST[4], HOST[6], "127.0.0.1"])
def test_every_host_address_reaches_all_containers(
    host: Host, client: Namespace, plugin: Plugin, address: str, protocol: str
) -> None:
    backends(host, plugin, 2)
    namespace = host if address == "127.0.0.1" else client
    counts = served(namespace, address, 64, protocol)
    # A datagram from a recently used port belongs to the old connection, and is not distributed again.
    assert len(counts) == 2
    assert all(abs(times - 32) <= 3 for times in counts.values()), counts


def test_containers_of_different_networks_share(host: Host, client: Namespace, plugin: Plugin) -> None:
    backends(host, plugin, 1)
    stranger = host.container("cni1")
    stranger.serve("stranger", 80)
    plugin.add(stranger, publish(8080), network="other", **SHARED)
    assert served(client, HOST[4], 64)["stranger"] == 32


def test_one_host_address_is_shared_separately(host: Host, client: Namespace, plugin: Plugin) -> None:
    for name in ("first", "second"):
        container = host.container()
        container.serve(name, 80)
        plugin.add(container, publish(8080, hostIP=HOST[4]), publish(8080, hostIP=HOST[6]), **SHARED)
    backends(host, plugin, 1)
    assert served(client, HOST[4], 64) == {"first": 32, "second": 32}
    assert served(client, HOST[6], 64) == {"first": 32, "second": 32}
    assert set(served(client, "198.51.100.3", 8)).isdisjoint({"first", "second"})


@both_families
def test_with_affinity_a_client_stays_with_one_container(
    host: Host, client: Namespace, plugin: Plugin, family: int
) -> None:
    backends(host, plugin, 3, sharedAffinity="client")
    client.ip(
        *(f"address add {_client(family, number)}/{24 if family == 4 else 64} dev uplink" for number in range(20))
    )
    host.wait_for_replies([_client(family, number) for number in range(20)])
    met = set()
    for number in range(20):
        counts = served(client, HOST[family], 4, source=_client(family, number))
        assert len(counts) == 1
        met |= set(counts)
    assert len(met) == 3


def _client(family: int, number: int) -> str:
    return f"198.51.100.{100 + number}" if family == 4 else f"2001:db8:1::1:{number}"


@pytest.mark.frozen
def test_a_removed_container_gets_no_new_connections_and_the_others_keep_theirs(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin
) -> None:
    first, second, third = backends(host, plugin, 3)
    talks = [Talk(stack, client, HOST[4], 8080) for _ in range(12)]
    before = [talk.ask() for talk in talks]
    second.delete()
    gone = second.container.address[4]
    left = [first.container.address[4], third.container.address[4]]
    for talk, server in zip(talks, before, strict=True):
        assert talk.ask() in ([server] if server != gone else left)
    assert served(client, HOST[4], 64) == dict.fromkeys(left, 32)
    fourth = host.container()
    fourth.serve("fourth", 80)
    during = [talk.ask() for talk in talks]
    plugin.add(fourth, publish(8080), publish(8080, protocol="udp"), **SHARED)
    assert [talk.ask() for talk in talks] == during
    assert set(served(client, HOST[4], 64)) == {*left, "fourth"}
    first.check()
    third.check()


def test_removing_the_last_container_closes_the_port(host: Host, client: Namespace, plugin: Plugin) -> None:
    for attachment in backends(host, plugin, 2):
        attachment.delete()
    with pytest.raises(Refused):
        client.ask(HOST[4], 8080)
    assert host.elements() == {}


def test_a_repeated_add_keeps_its_buckets(host: Host, client: Namespace, plugin: Plugin) -> None:
    first, _ = backends(host, plugin, 2)
    first.add()
    assert sorted(served(client, HOST[4], 64).values()) == [32, 32]
    first.check()
    plugin.add(first.container, publish(8081), **SHARED)
    assert set(served(client, HOST[4], 8)) != {first.container.address[4]}
    assert len(served(client, HOST[4], 8)) == 1


def test_a_dead_container_loses_its_buckets(host: Host, client: Namespace, plugin: Plugin) -> None:
    dead, _ = backends(host, plugin, 2)
    dead.container.remove()
    backends(host, plugin, 1)
    assert len(served(client, HOST[4], 64)) == 2
    dead.delete()
    assert sorted(served(client, HOST[4], 64).values()) == [32, 32]


def test_gc_gives_the_buckets_of_dead_containers_to_the_others(host: Host, client: Namespace, plugin: Plugin) -> None:
    gone, lost, kept = backends(host, plugin, 3)
    (plugin.state_directory / "attachments" / lost.container.id / "net:eth0.json").unlink()
    plugin.gc({"cni.dev/valid-attachments": [{"containerID": kept.container.id, "ifname": "eth0"}]})
    assert served(client, HOST[4], 64) == {kept.container.address[4]: 64}
    assert host.owners() == {kept.owner, "shared"}
    assert gone.owner not in host.owners()


@pytest.mark.parametrize("keys", [{}, {"sharedPorts": [8080], "sharedAffinity": "client"}])
def test_a_port_is_not_shared_with_a_different_affinity_or_an_exclusive_mapping(
    host: Host, client: Namespace, container: Container, plugin: Plugin, keys: dict[str, Any]
) -> None:
    backends(host, plugin, 2)
    before = host.elements().keys()
    with pytest.raises(PluginError, match="host port 8080/tcp is shared by other containers") as caught:
        plugin.add(container, publish(8080), network="other", **keys)
    assert caught.value.code == 100
    assert host.elements().keys() == before
    assert sorted(served(client, HOST[4], 64).values()) == [32, 32]


def test_an_exclusive_port_is_not_shared(container: Container, other_container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    with pytest.raises(PluginError, match=f"in use by container {container.id}"):
        plugin.add(other_container, publish(8080), network="other", **SHARED)


def test_a_container_on_two_networks_has_one_share_of_buckets(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    backends(host, plugin, 1)
    first = plugin.add(container, publish(8080), **SHARED)
    second = plugin.add(connect_second_network(container), publish(8080), network="second", **SHARED)
    assert served(client, HOST[4], 64)["web"] == 32
    first.check()
    second.check()
    first.delete()
    container.ip("link del eth0", "route replace default via 10.99.0.1")
    assert served(client, HOST[4], 64)["web"] == 32
    second.check()


def test_after_a_lost_table_buckets_are_distributed_again(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    backends(host, plugin, 3)
    host.run("nft", "flush", "ruleset")
    plugin.add(container)
    assert len(served(client, HOST[4], 64)) == 3


@pytest.mark.parametrize("repair", ["add", "reconcile"])
def test_repair_leaves_a_member_its_buckets_whose_record_cannot_be_read(
    host: Host, client: Namespace, container: Container, plugin: Plugin, repair: str
) -> None:
    kept, unreadable = backends(host, plugin, 2)
    Path(plugin.state_directory, "attachments", unreadable.container.id, "net:eth0.json").write_text("{")
    host.run("nft", "add", "rule", "inet", "quantum", "prerouting", "counter")
    plugin.add(container) if repair == "add" else plugin.operate("reconcile")
    both = {kept.container.address[4]: 32, unreadable.container.address[4]: 32}
    assert served(client, HOST[4], 64) == both
    assert "The kernel matches the records" in plugin.operate("reconcile").stdout
    assert served(client, HOST[4], 64) == both


def _buckets(host: Host) -> list[tuple[int, str]]:
    """Return the IPv4 buckets of port 8080, and whose they are."""
    found = []
    for element, _ in host.elements()["buckets4"]:
        assert isinstance(element["elem"]["val"], dict)
        found.append((element["elem"]["val"]["concat"][-1], element["elem"]["comment"]))
    return sorted(found)


def test_reconcile_makes_lost_buckets_as_healing_does(host: Host, container: Container, plugin: Plugin) -> None:
    backends(host, plugin, 3)
    host.run("nft", "flush", "map", "inet", "quantum", "buckets4")
    plugin.operate("reconcile")
    reconciled = _buckets(host)
    host.run("nft", "flush", "ruleset")
    plugin.add(container)
    assert reconciled == _buckets(host)


def test_a_failed_add_leaves_the_buckets_unchanged(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    backends(host, plugin, 2)
    plugin.add(other_container, publish(9000))
    before = host.elements()["buckets4"]
    with pytest.raises(PluginError, match="9000"):
        plugin.add(container, publish(8080), publish(9000), **SHARED)
    assert [e["elem"]["val"] if "elem" in e else e for e, _ in before] == [
        e["elem"]["val"] if "elem" in e else e for e, _ in host.elements()["buckets4"]
    ]
    assert client.ask(HOST[4], 8080).source == CLIENT[4]


@pytest.mark.nftables
@pytest.mark.parametrize("members", [1, 2])
def test_a_shared_port_that_moves_to_iptables_leaves_nothing(
    host: Host, client: Namespace, plugin: Plugin, members: int
) -> None:
    """The port answered after DEL, and whoever got the address next answered in the container's place."""
    containers = [host.container() for _ in range(members)]
    for one in containers:
        one.serve("web", 80)
        plugin.add(one, publish(8080), sharedPorts=[8080])
    for one in containers:
        plugin.attachment(one, publish(8080), backend="iptables").delete()
    assert client.is_refused(HOST[4], 8080)
    assert host.owners() == set()
    assert not any(host.elements().values())
