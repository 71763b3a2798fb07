"""The promises of bridge's ipMasq: the source address of a container's traffic outside."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.kernel.peer import open_socket
from tests.kernel.topology import CLIENT, HOST, Host, Namespace

from .masquerader import IPMASQ, MASQUERADERS, Masquerader
from .port_mapper import differs

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

TABLE = "Masquerade, as promised by bridge's ipMasq"

pytestmark = pytest.mark.parametrize("subject", MASQUERADERS)
no_gc = differs(IPMASQ, "bridge v1.9.1 does nothing at GC.")


@pytest.fixture
def network(subject: str, host: Host, stack: ExitStack, tmp_path: Path) -> Masquerader:
    """A subject that attaches containers; a server outside answers on port 80."""
    host.client.serve("outside", 80)
    return Masquerader(subject, host, stack, tmp_path / "state")


def test_attachments(network: Masquerader) -> None:
    """Four containers on three networks reach the outside with each of their addresses, IPv4 and IPv6."""
    members = [
        network.attach("10.77.0.2/24"),
        network.attach("10.77.0.3/24", "fd77::3/64"),
        network.attach("10.77.99.5/24", network="further"),
        network.attach(
            *("10.78.0.5/24", "10.78.0.6/24", "fd78::5/64", "fd78::6/64", "fd78:0:0:1::7/64"),
            network="alternate",
        ),
    ]
    for member in members:
        for address in member.addresses:
            family = 6 if ":" in address else 4
            assert member.ask(CLIENT[family], 80, source=address).source == HOST[family], address


def test_after_del(network: Masquerader) -> None:
    """After DEL of one container, another still reaches the outside; the removed address is not masqueraded."""
    old, kept = network.attach("10.77.0.2/24"), network.attach("10.77.0.3/24")
    network.delete(old)
    assert kept.ask(CLIENT[4], 80).source == HOST[4]
    successor = network.add(network.member("10.77.0.2/24"), masquerade=False)
    assert successor.cannot_reach(CLIENT[4], 80)


def test_reused_address(network: Masquerader) -> None:
    """DEL of a container keeps outbound NAT for the new owner of its address."""
    old = network.attach("10.77.0.2/24")
    old.ip("link set eth0 down")  # it has died, and DEL has not been called yet
    new = network.attach("10.77.0.2/24")
    network.delete(old)
    assert new.ask(CLIENT[4], 80).source == HOST[4]


@differs(IPMASQ, "Without a namespace DEL removes no rule: the next owner of the address is masqueraded unasked.")
def test_del_without_namespace(network: Masquerader) -> None:
    """DEL without a network namespace removes masquerading for the address's next owner."""
    old = network.attach("10.77.0.2/24")
    old.remove()
    network.delete(old, without_namespace=True)
    successor = network.add(network.member("10.77.0.2/24"), masquerade=False)
    assert successor.cannot_reach(CLIENT[4], 80)


def test_own_subnet(network: Masquerader) -> None:
    """Within its own subnet a container keeps its own address."""
    one, other = network.attach("10.77.0.2/24", "fd77::2/64"), network.attach("10.77.0.3/24", "fd77::3/64")
    other.serve("other", 80)
    for address, own in zip(other.addresses, one.addresses, strict=True):
        assert one.ask(address, 80).source == own


def test_other_subnet(network: Masquerader) -> None:
    """A container on another network of the host sees that network's gateway."""
    one, other = network.attach("10.77.0.2/24"), network.attach("10.78.0.2/24", network="alternate")
    other.serve("other", 80)
    assert one.ask(other.addresses[0], 80).source == "10.78.0.1"


@pytest.mark.parametrize(("family", "group"), [(4, "224.0.0.251"), (6, "ff02::fb")])
def test_multicast(host: Host, client: Namespace, network: Masquerader, family: int, group: str) -> None:
    """Multicast keeps the container's address."""
    container = network.attach("10.77.0.2/24", "fd77::2/64")
    address = container.addresses[family == 6]
    # The kernel does not forward it here, so it is sent from the host with the container's address as its source.
    host.ip(f"address add {address}/{32 if family == 4 else 128} dev uplink")
    with open_socket(client.path, "udp", family) as listening, open_socket(host.path, "udp", family) as sending:
        listening.settimeout(3)
        listening.bind((group, 5353, 0, _index(client)) if family == 6 else (group, 5353))
        _join(client, listening, family, group)
        sending.bind((address, 0))
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"uplink")
        sending.sendto(b"hello", (group, 5353))
        assert listening.recvfrom(64)[1][0] == address


def _join(namespace: Namespace, listening: socket.socket, family: int, group: str) -> None:
    if family == 4:
        membership = socket.inet_aton(group) + socket.inet_aton(CLIENT[4])
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return
    membership = socket.inet_pton(socket.AF_INET6, group) + _index(namespace).to_bytes(4, "little")
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)


def _index(namespace: Namespace) -> int:
    return int(namespace.run("ip", "-o", "link", "show", "uplink").partition(":")[0])


@no_gc
def test_gc_stale(network: Masquerader) -> None:
    """GC with a set of valid attachments removes all others of its network, and none of another network."""
    stale, kept = network.attach("10.77.0.2/24"), network.attach("10.77.0.3/24")
    elsewhere = network.attach("10.78.0.2/24", network="alternate")
    network.collect_garbage("net", kept)
    assert stale.cannot_reach(CLIENT[4], 80)
    assert kept.ask(CLIENT[4], 80).source == HOST[4]
    assert elsewhere.ask(CLIENT[4], 80).source == HOST[4]


def test_gc_nothing_stale(network: Masquerader) -> None:
    """GC that names all of them, and one that no longer exists, removes nothing."""
    one, other = network.attach("10.77.0.2/24"), network.attach("10.77.0.3/24")
    network.collect_garbage("net", one, other, network.member("10.77.0.4/24"))
    for member in (one, other):
        assert member.ask(CLIENT[4], 80).source == HOST[4]


@no_gc
def test_gc_empty(network: Masquerader) -> None:
    """GC with an empty set removes all attachments of its network."""
    one, other = network.attach("10.77.0.2/24"), network.attach("10.77.0.3/24")
    network.collect_garbage("net")
    assert one.cannot_reach(CLIENT[4], 80)
    assert other.cannot_reach(CLIENT[4], 80)
