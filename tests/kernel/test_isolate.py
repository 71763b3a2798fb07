"""isolate: other networks reach a container only through its host ports."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from .peer import inside
from .plugin import publish
from .topology import CLIENT, HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from .plugin import Plugin

pytestmark = pytest.mark.behaviour
HIDDEN = 81
PROTOCOLS = [(family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]


@pytest.fixture
def container(host: Host) -> Container:
    """A container with one published and one unpublished server."""
    made = host.container()
    made.serve("web", 80)
    made.serve("hidden", HIDDEN)
    return made


@pytest.fixture
def stranger(host: Host) -> Container:
    """A container on another network of the same host."""
    return host.container("cni1")


@pytest.fixture(autouse=True)
def _routes(host: Host) -> None:
    host.add_client_routes()


@pytest.mark.frozen
def test_an_unpublished_port_is_not_reachable_by_routing_to_the_container(
    plugin: Plugin, container: Container, client: Namespace, stranger: Container
) -> None:
    attachment = plugin.add(container, publish(8080))
    for family, protocol in PROTOCOLS:
        for attacker in (client, stranger):
            assert attacker.ask(container.address[family], HIDDEN, protocol).server == "hidden"
    attachment.delete()
    plugin.add(container, publish(8080), isolate=True)
    for family, protocol in PROTOCOLS:
        for attacker in (client, stranger):
            assert attacker.cannot_reach(container.address[family], HIDDEN, protocol)


def test_a_published_port_is_reachable_only_through_its_host_port(
    plugin: Plugin, container: Container, client: Namespace, stranger: Container, other_container: Container, host: Host
) -> None:
    plugin.add(container, publish(8080), isolate=True)
    for family in (4, 6):
        assert client.cannot_reach(container.address[family], 80)
        for asking in (client, stranger, other_container, host, container):
            assert asking.ask(HOST[family], 8080).server == "web"
    assert host.ask("127.0.0.1", 8080).server == "web"


def test_its_own_network_and_the_host_reach_all_ports(
    plugin: Plugin, container: Container, other_container: Container, host: Host
) -> None:
    host.set_bridge_netfilter("1")
    plugin.add(container, isolate=True)
    for family, protocol in PROTOCOLS:
        for asking in (other_container, host):
            assert asking.ask(container.address[family], HIDDEN, protocol).server == "hidden"


def test_outgoing_connections_work(
    plugin: Plugin, container: Container, client: Namespace, stranger: Container
) -> None:
    client.serve("outside", 80)
    stranger.serve("stranger", 80)
    plugin.add(container, isolate=True)
    for family, protocol in PROTOCOLS:
        assert container.ask(CLIENT[family], 80, protocol).server == "outside"
        assert container.ask(stranger.address[family], 80, protocol).server == "stranger"


def test_all_addresses_are_isolated_without_masquerade_too(
    plugin: Plugin, container: Container, client: Namespace
) -> None:
    container.ip("address add 10.88.0.200/24 dev eth0")
    container.networks |= {5: "10.88.0.200/24"}
    plugin.add(container, isolate=True, masquerade=False)
    assert client.cannot_reach("10.88.0.200", HIDDEN)
    assert client.cannot_reach(container.address[6], HIDDEN)


def test_invalid_packets_are_dropped_too(plugin: Plugin, container: Container, client: Namespace) -> None:
    container.run("nft", "-f", "-", stdin=_COUNT_NULL_PACKETS)

    def null_packets_that_arrive() -> int:
        _send_null_packet(client, container.address[4])
        assert client.ask(HOST[4], 8080).server == "web"  # sent later, on the same path
        return int(container.run("nft", "list chain ip seen input").partition("packets ")[2].partition(" ")[0])

    attachment = plugin.add(container, publish(8080))
    assert null_packets_that_arrive() == 1
    attachment.delete()
    plugin.add(container, publish(8080), isolate=True)
    assert null_packets_that_arrive() == 1


_COUNT_NULL_PACKETS = """table ip seen {
	chain input {
		type filter hook input priority 0
		tcp flags == 0x0 counter
	}
}
"""


def _send_null_packet(client: Namespace, address: str) -> None:
    """Send a TCP segment without flags, which is invalid for conntrack."""
    with inside(client.path):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        raw.connect((address, 0))
        source = raw.getsockname()[0]
        segment = struct.pack("!HHLLBBHHH", 40000, HIDDEN, 1, 0, 5 << 4, 0, 1024, 0, 0)
        pseudo = socket.inet_aton(source) + socket.inet_aton(address) + struct.pack("!BBH", 0, 6, len(segment))
        raw.send(segment[:16] + struct.pack("!H", _checksum(pseudo + segment)) + segment[18:])


def _checksum(content: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.frozen
def test_other_containers_stay_reachable_and_del_leaves_nothing(
    plugin: Plugin, container: Container, client: Namespace, host: Host
) -> None:
    other = host.container()
    other.serve("other", 80)
    plugin.add(other, network="open")
    attachment = plugin.add(container, isolate=True)
    attachment.check()
    assert client.ask(other.address[4], 80).server == "other"
    attachment.delete()
    assert client.ask(container.address[4], HIDDEN).server == "hidden"
    assert attachment.owner not in host.owners()


def test_check_reports_missing_isolation(plugin: Plugin, container: Container, host: Host) -> None:
    attachment = plugin.add(container, isolate=True)
    if host.backend == "nftables":
        host.run("nft", "flush", "set", "inet", "quantum", "isolated4")
    else:
        host.run(host.backend, "-F", "QUANTUM-FORWARD")
    with pytest.raises(Exception, match="not as it was set up"):
        attachment.check()
