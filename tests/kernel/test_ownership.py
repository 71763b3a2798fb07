"""Ownership of addresses and host ports, and what DEL removes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, Container, Host, Namespace, connect_second_network

pytestmark = pytest.mark.behaviour
both_families = pytest.mark.parametrize("family", [4, 6])

if TYPE_CHECKING:
    from pathlib import Path


def _same_address_again(host: Host, container: Container) -> Container:
    """Remove the container's interface, and give its addresses to a new container."""
    container.ip("link del eth0")
    number = int(container.address[4].rpartition(".")[2])
    newcomer = host.container(number=number)
    newcomer.serve("newcomer", 80)
    return newcomer


@pytest.mark.frozen
@both_families
def test_del_keeps_an_address_that_another_container_now_owns(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    client.serve("outside", 80)
    old = plugin.add(container, publish(8080))
    newcomer = _same_address_again(host, container)
    new = plugin.add(newcomer, publish(8081))
    old.delete()
    assert client.ask(HOST[family], 8081).server == "newcomer"
    assert client.is_refused(HOST[family], 8080)
    assert newcomer.ask(CLIENT[family], 80).source == HOST[family]
    assert host.ask("127.0.0.1", 8081).server == "newcomer"
    assert newcomer.ask(HOST[family], 8081).server == "newcomer"
    new.check()
    assert host.owners() == {new.owner}


@pytest.mark.frozen
def test_a_port_in_use_by_a_living_container_is_refused_and_nothing_changes(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    before = host.installed()
    with pytest.raises(PluginError, match=container.id) as caught:
        plugin.add(other_container, publish(9000), publish(8080))
    assert caught.value.code >= 100
    assert "8080" in caught.value.message
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 9000)
    assert host.installed() == before
    assert other_container.id not in str(host.owners())
    assert not list(plugin.state_directory.glob(f"attachments/{other_container.id}*"))


@pytest.mark.parametrize(
    "entries",
    [
        (publish(8080), publish(8080, 81)),
        (publish(8080, hostIP="0.0.0.0"), publish(8080, 81)),
        (publish(8080, hostIP="198.51.100.1"), publish(8080, 81, hostIP="198.51.100.1", protocol="TCP")),
    ],
)
def test_a_port_requested_twice_in_one_call_is_an_error(
    client: Namespace, container: Container, plugin: Plugin, entries: tuple[dict[str, object], ...]
) -> None:
    with pytest.raises(PluginError, match="8080"):
        plugin.add(container, *entries)
    assert client.is_refused(HOST[4], 8080)
    assert not list(plugin.state_directory.glob("attachments/*"))


@pytest.mark.behaviour
def test_a_mapping_given_twice_is_one(client: Namespace, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080), publish(8080)).check()
    assert client.ask(HOST[4], 8080).server == "web"


def test_one_port_for_two_protocols_or_two_addresses_is_no_conflict(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    plugin.add(container, publish(8080, hostIP=HOST[4]))
    plugin.add(other_container, publish(8080, hostIP=HOST[6]), publish(8080, protocol="udp"))
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[6], 8080).server == "other"
    assert client.ask(HOST[4], 8080, "udp").server == "other"


def test_a_port_of_a_dead_container_is_taken_over(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    dead = plugin.add(container, publish(8080))
    container.remove()
    successor = plugin.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "other"
    dead.delete()
    assert client.ask(HOST[4], 8080).server == "other"
    successor.check()


@both_families
def test_a_containers_second_network_takes_over_the_ports_when_the_first_is_removed(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """podman sends the same portMappings to both networks."""
    first = plugin.add(container, publish(8080))
    second = plugin.add(connect_second_network(container), publish(8080), network="second")
    first.check()
    second.check()
    for _ in range(2):
        assert client.ask(HOST[family], 8080).server == "web"
    first.delete()
    container.ip("link del eth0", f"route replace default via {'10.99.0.1' if family == 4 else 'fd99::1'}")
    assert client.ask(HOST[family], 8080).server == "web"
    second.check()
    second.delete()
    assert client.is_refused(HOST[family], 8080)
    assert host.owners() == set()


def test_a_containers_first_network_keeps_the_ports_when_the_second_is_removed(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    first = plugin.add(container, publish(8080))
    plugin.add(connect_second_network(container), publish(8080), network="second").delete()
    assert client.ask(HOST[4], 8080).server == "web"
    first.check()


def test_del_without_a_record_removes_only_what_the_call_names(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    lost = plugin.add(container, publish(8080))
    kept = plugin.add(other_container, publish(8081))
    shutil.rmtree(plugin.state_directory / "attachments" / container.id)
    lost.delete()
    assert client.is_refused(HOST[4], 8080)
    assert client.ask(HOST[4], 8081).server == "other"
    assert host.owners() == {kept.owner}


def test_del_without_a_record_keeps_what_another_attachment_owns(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    lost = plugin.add(container, publish(8080))
    newcomer = _same_address_again(host, container)
    container.remove()
    new = plugin.add(newcomer, publish(8080))
    shutil.rmtree(plugin.state_directory / "attachments" / container.id, ignore_errors=True)
    lost.delete()
    assert client.ask(HOST[4], 8080).server == "newcomer"
    new.check()


@pytest.mark.nftables
def test_del_keeps_elements_that_another_state_directory_owns(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    old = plugin.add(container, publish(8080))
    host.run("nft", "flush map inet quantum endpoints4")
    comment = 'comment "other/somebody/eth0"'
    host.run("nft", f"add element inet quantum endpoints4 {{ tcp . 8080 {comment} : {container.address[4]} . 80 }}")
    old.delete()
    assert client.ask(HOST[4], 8080).server == "web"
    assert host.owners() == {"other/somebody/eth0"}


@pytest.mark.nftables
@pytest.mark.parametrize("loss", ["flush ruleset", "flush map inet quantum endpoints4"])
def test_del_succeeds_if_the_kernel_has_lost_the_elements(
    host: Host, client: Namespace, container: Container, plugin: Plugin, loss: str
) -> None:
    web = plugin.add(container, publish(8080))
    host.run("nft", loss)
    web.delete()
    assert client.is_refused(HOST[4], 8080)
    assert not list(plugin.state_directory.glob("attachments/*"))


def test_a_repeated_add_replaces_the_attachment(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    container.serve("second", 81)
    plugin.add(container, publish(8080), publish(8081))
    again = plugin.add(container, publish(8080, 81), publish(8082))
    assert client.ask(HOST[4], 8080).server == "second"
    assert client.is_refused(HOST[4], 8081)
    assert client.ask(HOST[6], 8082).server == "web"
    again.check()
    again.delete()
    assert host.owners() == set()


@pytest.mark.nftables
def test_two_state_directories_leave_each_others_table_alone(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    other = Plugin(host, tmp_path / "another")
    first = plugin.add(container, publish(8080))
    other_container.serve("other", 80)
    second = other.add(other_container, publish(8081))
    handles = host.run("nft", "-a", "list", "chain", "inet", "quantum", "prerouting")
    for attachment in (first, second, first, second):
        attachment.add()
        attachment.check()
    assert host.run("nft", "-a", "list", "chain", "inet", "quantum", "prerouting") == handles, "nobody built it anew"
    for one in (plugin, other):
        assert one.operate("reconcile").returncode == 0
    assert (client.ask(HOST[4], 8080).server, client.ask(HOST[4], 8081).server) == ("web", "other")
    with pytest.raises(PluginError, match="which another state directory has on record"):
        other.add(host.container(), publish(8080))
    other.gc({"cni.dev/valid-attachments": []})
    first.check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert host.owners() == {first.owner}
