"""Conntrack entries of a mapping or a container are deleted with it; all other connections continue."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat.connections import tracker as conntrack
from cni_quantum_nat.connections.tracker import ConnectionTracker, Selection, Targets
from cni_quantum_nat.model.addresses import Address
from cni_quantum_nat.model.attachments import PortMapping

from .peer import inside, open_socket
from .plugin import Plugin, publish
from .talk import Talk
from .topology import CLIENT, HOST, NO_REPLY_TIMEOUT_S, Container, Host, Namespace

if TYPE_CHECKING:
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])


_SOURCE_PORT = 2  # CTA_PROTO_SRC_PORT
FIREWALL = """table inet firewall {
	chain input {
		type filter hook input priority 0
		iifname uplink udp sport 53 ct state new drop
	}
}"""


def send(namespace: Namespace, source_port: int, address: str, port: int) -> None:
    """Send a datagram from a given port."""
    with open_socket(namespace.path, "udp", 6 if ":" in address else 4) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind(("::" if ":" in address else "0.0.0.0", source_port))
        sender.sendto(b"late answer", (address, port))


def same_address_again(host: Host, container: Container) -> Container:
    container.ip("link del eth0")
    return host.container(number=int(container.address[4].rpartition(".")[2]))


@pytest.mark.behaviour
@both_families
@pytest.mark.parametrize("specific", [False, True])
def test_a_client_that_is_already_sending_reaches_the_container_at_once(
    stack: ExitStack,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    family: int,
    specific: bool,
) -> None:
    plugin.add(other_container, publish(9000))
    talk = Talk(stack, client, HOST[family], 8080)
    assert talk.ask() is None
    plugin.add(container, publish(8080, protocol="udp", hostIP=HOST[family] if specific else ""))
    assert talk.ask() == "web"


@pytest.mark.behaviour
@pytest.mark.frozen
@both_families
def test_after_del_the_next_owner_of_the_address_gets_no_packets_of_an_old_connection(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    old = plugin.add(container, publish(8080, protocol="udp"))
    talk = Talk(stack, client, HOST[family], 8080)
    assert talk.ask() == "web"
    old.delete()
    newcomer = same_address_again(host, container)
    server = newcomer.serve("newcomer", 80)
    plugin.add(newcomer)
    assert talk.ask() is None
    assert server.seen == []


@pytest.mark.behaviour
@both_families
def test_after_del_a_late_reply_does_not_reach_the_next_owner_of_the_address(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    client.serve("outside", 53)
    old = plugin.add(container)
    talk = Talk(stack, container, CLIENT[family], 53)
    assert talk.ask() == "outside"
    old.delete()
    newcomer = same_address_again(host, container)
    plugin.add(newcomer)
    with open_socket(newcomer.path, "udp", family) as listening:
        listening.bind(("::" if family == 6 else "0.0.0.0", talk.port))
        listening.settimeout(NO_REPLY_TIMEOUT_S)
        send(client, 53, HOST[family], talk.port)
        with pytest.raises(TimeoutError):
            listening.recv(64)


@pytest.mark.behaviour
@both_families
def test_a_late_del_keeps_connections_of_the_next_owner_of_the_address(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    client.serve("outside", 53)
    old = plugin.add(container)
    newcomer = same_address_again(host, container)
    plugin.add(newcomer)
    talk = Talk(stack, newcomer, CLIENT[family], 53)
    assert talk.ask() == "outside"
    old.delete()
    send(client, 53, HOST[family], talk.port)
    assert talk.hear() == "late"


@both_families
def test_a_connection_from_the_host_to_the_same_port_elsewhere_is_kept(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """moby#46276: a host that publishes DNS must not lose its own DNS answers."""
    plugin.add(container, publish(9000))
    host.run("nft", "-f", "-", stdin=FIREWALL)
    client.serve("outside", 53)
    talk = Talk(stack, host, CLIENT[family], 53)
    assert talk.ask() == "outside"
    plugin.add(container, publish(53, 80, protocol="udp"))
    send(client, 53, HOST[family], talk.port)
    assert talk.hear() == "late"


@pytest.mark.parametrize("kernel", ["new", "before 6.10", "many ports", "many entries"])
@pytest.mark.parametrize("shared", [False, True])
@both_families
def test_all_deletion_methods_select_the_same_entries(
    stack: ExitStack,
    host: Host,
    client: Namespace,
    container: Container,
    plugin: Plugin,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    family: int,
    shared: bool,
) -> None:
    plugin.add(container, publish(8080, protocol="udp"))
    flows = {
        "translated": Talk(stack, client, HOST[family], 8080),
        "untranslated": Talk(stack, client, HOST[family], 8081),
        "other": Talk(stack, client, HOST[family], 8082),
    }
    for talk in flows.values():
        talk.ask()
    if kernel == "before 6.10":
        monkeypatch.setattr(ConnectionTracker, "_delete_selected", ConnectionTracker._delete_one_by_one)
    if kernel.startswith("many"):
        monkeypatch.setattr(conntrack, "_ms_to_delete", lambda _entries: 1e9)
    if kernel == "many entries":
        monkeypatch.setattr(conntrack, "_ms_to_list_all", lambda _entries: 1e9)
    mappings = [PortMapping(None, port, "udp", 80, sharing="spread" if shared else "") for port in (8080, 8081)]
    with inside(host.path), ConnectionTracker() as tracker:
        tracker.delete_stale_udp(mappings, {4, 6})
    left = {name for name, talk in flows.items() if talk.port in ports_tracked(host, family)}
    assert left == ({"translated", "other"} if shared else {"other"})
    with inside(host.path), ConnectionTracker() as tracker:
        tracker.delete_of_addresses([Address.parse(container.address[family])])
    assert flows["translated"].port not in ports_tracked(host, family)
    assert flows["other"].port in ports_tracked(host, family)


@both_families
def test_flows_to_other_ports_are_never_decoded(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 19) two UDP ports took the parsing of each IPv6 flow of the host, under the lock."""
    plugin.add(container, publish(8080, protocol="udp"))
    talks = {port: Talk(stack, client, HOST[family], port) for port in (8080, 8081, 8082)}
    for talk in talks.values():
        talk.ask()
    targets = Targets()
    for port in (8080, 8081):
        targets.add(Address.parse(HOST[family]), port)
    with inside(host.path), ConnectionTracker() as tracker:
        found = [flow.target[1] for flow in tracker.flows(Selection(family), to_any=targets)]
    assert sorted(found) == [8080, 8081]


def ports_tracked(host: Host, family: int) -> set[int]:
    """Return the source ports of all conntrack entries."""
    with inside(host.path), ConnectionTracker() as tracker:
        flows = list(tracker.flows(Selection(family)))
    ports = [flow._field(conntrack._ORIGINAL, conntrack._TUPLE_PROTO, _SOURCE_PORT) for flow in flows]
    return {int.from_bytes(port, "big") for port in ports}


@both_families
def test_entries_from_before_a_lost_table_are_deleted_too(
    stack: ExitStack,
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    family: int,
) -> None:
    """The counters of the new table are 0, as if there had been no connections."""
    old = plugin.add(container, publish(8080, protocol="udp"))
    talk = Talk(stack, client, HOST[family], 8080)
    assert talk.ask() == "web"
    host.run("nft", "flush", "ruleset")
    plugin.add(other_container)
    old.delete()
    newcomer = same_address_again(host, container)
    server = newcomer.serve("newcomer", 80)
    assert talk.ask() is None
    assert server.seen == []
