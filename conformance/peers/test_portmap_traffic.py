"""The promises of portmap about a published port, as seen by clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.peer import Refused
from tests.kernel.talk import Talk
from tests.kernel.topology import CLIENT, HOST, HOST_SECONDARY, MARTIAN, Container, Host, Namespace

from .port_mapper import (
    ON_IPTABLES,
    PORTMAP,
    PORTMAP_IPTABLES,
    PORTMAP_NFTABLES,
    VERSIONS,
    PortMapper,
    differs,
    publish,
)

if TYPE_CHECKING:
    from contextlib import ExitStack

TABLE = "Published ports, as promised by portmap"
GATEWAY = {4: "10.88.0.1", 6: "fd88::1"}
STRANGER = "198.51.100.77"  # another address of the client

both_families = pytest.mark.parametrize("family", [4, 6])


def test_tcp(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """A TCP port is reachable from outside, from the host, at 127.0.0.1 and by the container itself, but not after DEL."""
    for version in VERSIONS:
        web = mapper.add(container, publish(8080, protocol="tcp"), cniVersion=version)
        for asking, address in ((client, HOST[4]), (host, HOST[4]), (host, "127.0.0.1"), (container, HOST[4])):
            assert asking.ask(address, 8080).server == "web", version
        assert host.ask(container.address[4], 80).server == "web"
        web.delete()
        assert client.is_refused(HOST[4], 8080)
        assert host.is_refused("127.0.0.1", 8080)


def test_udp(
    stack: ExitStack, client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """A UDP port keeps working for a client that keeps sending when a second container takes it over."""
    other_container.serve("second", 80)
    for number, version in enumerate(VERSIONS):
        port = publish(5353 + number, protocol="udp")
        first = mapper.add(container, port, cniVersion=version)
        talk = Talk(stack, client, HOST[4], port["hostPort"])
        assert talk.ask() == "web"
        first.delete()
        second = mapper.add(other_container, port, cniVersion=version)
        assert talk.ask() == "second", version
        second.delete()


def test_ipv6(client: Namespace, host: Host, container: Container, mapper: PortMapper) -> None:
    """A port of a container with IPv6 is reachable on IPv6, from outside, from the host and by the container itself."""
    mapper.add(container, publish(8080))
    for asking in (client, host, container):
        assert asking.ask(HOST[6], 8080).server == "web"


def test_kubernetes_29742_client_address(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """The container sees the address of an outside client."""
    mapper.add(container, publish(8080))
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).source == CLIENT[family]


def test_one_number_for_two_protocols(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """A host port can lead to different container ports for TCP and UDP, and two host ports to the same one."""
    container.serve("resolver", 81)
    mapper.add(container, publish(8080, protocol="tcp"), publish(8081), publish(8080, 81, protocol="udp"))
    assert client.ask(HOST[4], 8080, "tcp").server == "web"
    assert client.ask(HOST[4], 8081, "tcp").server == "web"
    assert client.ask(HOST[4], 8080, "udp").server == "resolver"


@both_families
def test_host_ip(client: Namespace, container: Container, mapper: PortMapper, family: int) -> None:
    """A mapping for one address of the host is closed on its others."""
    mapper.add(container, publish(8080, hostIP=HOST[family]))
    assert client.ask(HOST[family], 8080).server == "web"
    assert client.is_refused(HOST_SECONDARY[family], 8080)
    assert client.is_refused(HOST[10 - family], 8080)


@pytest.mark.parametrize(("wildcard", "family"), [("0.0.0.0", 4), ("::", 6)])
def test_wildcard_host_ip(
    client: Namespace, container: Container, mapper: PortMapper, wildcard: str, family: int
) -> None:
    """A mapping for 0.0.0.0 is for all IPv4 addresses and no IPv6 one; for :: it is the other way round."""
    mapper.add(container, publish(8080, hostIP=wildcard))
    assert client.ask(HOST[family], 8080).server == "web"
    assert client.ask(HOST_SECONDARY[family], 8080).server == "web"
    assert client.is_refused(HOST[10 - family], 8080)


def test_many_ports(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """A container publishes forty ports, more than a multiport match of iptables takes."""
    mapper.add(container, *(publish(port) for port in range(8000, 8040)))
    for port in (8000, 8014, 8015, 8030, 8039):
        assert client.ask(HOST[4], port).server == "web"


def test_localhost_mapping_from_the_host(host: Host, container: Container, mapper: PortMapper) -> None:
    """A mapping for 127.0.0.1 is reachable from the host."""
    mapper.add(container, publish(8080, hostIP="127.0.0.1"))
    assert host.ask("127.0.0.1", 8080).server == "web"
    assert host.is_refused(HOST[4], 8080)


def test_neighbour(host: Host, container: Container, other_container: Container, mapper: PortMapper) -> None:
    """A container on the same network reaches the port where bridged packets pass iptables (br_netfilter)."""
    host.set_bridge_netfilter("1")
    mapper.add(container, publish(8080))
    assert other_container.ask(GATEWAY[4], 8080).server == "web"


@differs(
    PORTMAP_NFTABLES, "The answer goes directly over the bridge, because traffic within the network is not masqueraded."
)
def test_plugins_68_neighbour_without_bridge_filter(
    host: Host, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """A container on the same network reaches the port where bridged packets do not pass iptables."""
    host.set_bridge_netfilter("0")
    mapper.add(container, publish(8080))
    assert other_container.ask(GATEWAY[4], 8080, timeout=1).server == "web"


@both_families
@differs(PORTMAP_NFTABLES, "masqAll has no effect with nftables in v1.9.1.")
def test_masq_all(client: Namespace, container: Container, mapper: PortMapper, family: int) -> None:
    """masqAll: the container sees the host's address instead of the client's."""
    mapper.add(container, publish(8080), masqAll=True)
    assert client.ask(HOST[family], 8080).source == GATEWAY[family]


def test_without_snat(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """snat false: an outside client reaches the container, and 127.0.0.1 is not routed to it."""
    mapper.add(container, publish(8080), snat=False)
    assert client.ask(HOST[4], 8080).source == CLIENT[4]
    assert host.sysctl("ipv4/conf/cni0/route_localnet") == "0"


def test_conditions(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """conditionsV4, conditionsV6: only matching connections reach the container."""
    client.ip(f"address add {STRANGER}/24 dev uplink", "address add 2001:db8:1::77/64 dev uplink nodad")
    matching = {family: mapper.conditions(CLIENT[family]) for family in (4, 6)}
    mapper.add(container, publish(8080), conditionsV4=matching[4], conditionsV6=matching[6])
    for family, stranger in ((4, STRANGER), (6, "2001:db8:1::77")):
        assert client.ask(HOST[family], 8080, source=CLIENT[family]).server == "web"
        with pytest.raises(Refused):
            client.ask(HOST[family], 8080, source=stranger)


@differs(PORTMAP_NFTABLES, "Conditions are in the chain that all networks share, and each ADD writes it again.")
def test_conditions_of_another_network(
    client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """The conditions of one network do not apply to containers of another."""
    other_container.serve("other", 80)
    mapper.add(container, publish(8080))
    mapper.add(other_container, publish(8081), network="other", conditionsV4=mapper.conditions("192.0.2.1"))
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)


@pytest.mark.parametrize("subject", ON_IPTABLES)
def test_mark_bit(host: Host, container: Container, mapper: PortMapper) -> None:
    """markMasqBit: masqueraded packets have this bit of the packet mark, and no other."""
    mapper.add(container, publish(8080), markMasqBit=5)
    host.run("nft", "-f", "-", stdin=_MARKS_SEEN)
    assert host.ask("127.0.0.1", 8080).server == "web"
    seen = host.run("nft", "list", "chain", "ip", "audit", "marks")
    assert "0x00000020 counter packets 0" not in seen
    assert "others" in seen
    assert 'counter packets 0 bytes 0 comment "others"' in seen


_MARKS_SEEN = """table ip audit {
	chain marks {
		type filter hook postrouting priority 90
		meta mark 0x20 counter
		meta mark != { 0, 0x20 } counter comment "others"
	}
}"""


@pytest.mark.parametrize("subject", ON_IPTABLES)
def test_external_mark_chain(host: Host, container: Container, mapper: PortMapper) -> None:
    """externalSetMarkChain: another program's chain marks what to masquerade, and that program does it."""
    for program in ("iptables-restore", "ip6tables-restore"):
        host.run(program, "--noflush", stdin=_OTHERS_CHAIN)
    mapper.add(container, publish(8080), externalSetMarkChain="KUBE-MARK-MASQ")
    assert host.ask("127.0.0.1", 8080).server == "web"
    assert container.ask(HOST[4], 8080).server == "web"
    host.run("iptables", "-t", "nat", "-F", "KUBE-MARK-MASQ")
    assert host.cannot_reach("127.0.0.1", 8080), "the mark must come from that chain"


_OTHERS_CHAIN = """*nat
:KUBE-MARK-MASQ - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
COMMIT
"""


@both_families
def test_cve_2025_67499_transit(
    host: Host, client: Namespace, container: Container, mapper: PortMapper, family: int
) -> None:
    """Transit traffic to the same port number on another machine is not translated (CVE-2025-67499)."""
    somebody = host.container("cni1")
    somebody.serve("somebody", 8080)
    host.add_client_routes("cni1")
    mapper.add(container, publish(8080))
    assert client.ask(somebody.address[family], 8080).server == "somebody"


@differs(PORTMAP, "CVE-2020-8558: route_localnet is set without protection, and never reset.")
def test_cve_2020_8558_host_services_on_localhost(
    host: Host, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """A container on the same network does not reach the host's services on 127.0.0.1 (CVE-2020-8558)."""
    secret = host.serve("secret", 9090, "127.0.0.1")
    mapper.add(container, publish(8080))
    other_container.send_martians(GATEWAY[4])
    assert other_container.cannot_reach(MARTIAN, 9090)
    assert secret.seen == []


@differs(PORTMAP, "It translates packets from any interface; another host only needs a route to 127.0.0.1.")
def test_moby_45610_localhost_mapping_from_outside(
    host: Host, client: Namespace, container: Container, mapper: PortMapper
) -> None:
    """A mapping for 127.0.0.1 is closed to another host that sends to this address."""
    mapper.add(container, publish(8080, hostIP="127.0.0.1"))
    client.send_martians(HOST[4])
    assert client.cannot_reach(MARTIAN, 8080)
    assert host.ask("127.0.0.1", 8080).server == "web"


@differs(PORTMAP, "There is no precedence: the older rule wins.")
def test_host_ip_before_wildcard(
    client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """A mapping for one address takes precedence over an older one for all."""
    other_container.serve("specific", 80)
    mapper.add(container, publish(8080))
    mapper.add(other_container, publish(8080, hostIP=HOST_SECONDARY[4]))
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST_SECONDARY[4], 8080).server == "specific"


@differs(
    PORTMAP_IPTABLES,
    "Any packet with bit 13 of the mark is masqueraded, even if another program uses the bit for something else.",
)
def test_marks_of_others(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """Another program's packet marks on its own traffic cause no masquerading."""
    somebody = host.container("cni1")
    somebody.serve("somebody", 80)
    host.add_client_routes("cni1")
    mapper.add(container, publish(8080))
    host.run("nft", "-f", "-", stdin=_OTHERS_MARK)
    assert client.ask(somebody.address[4], 80).source == CLIENT[4]


_OTHERS_MARK = """table ip others {
	chain marks {
		type filter hook prerouting priority mangle
		iifname uplink meta mark set 0x2000
	}
}"""
