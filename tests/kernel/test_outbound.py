"""Outbound NAT: masquerade, static source addresses, forwarding."""

from __future__ import annotations

import json
import socket
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

import pytest

from .peer import open_socket
from .plugin import Plugin, PluginError, publish
from .topology import BRIDGES, CLIENT, HOST, HOST_SECONDARY, Container, Host, Namespace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.behaviour
both_families = pytest.mark.parametrize("family", [4, 6])
SECOND_HOST = {4: "203.0.113.1", 6: "2001:db8:2::1"}
SECOND_CLIENT = {4: "203.0.113.2", 6: "2001:db8:2::2"}


@pytest.fixture
def outside(client: Namespace) -> Namespace:
    """The client, with a server on port 80."""
    client.serve("outside", 80)
    return client


@pytest.fixture
def second_uplink(host: Host, outside: Namespace) -> Namespace:
    """The client, also connected by a second uplink."""
    host.add_uplink("second", SECOND_HOST, SECOND_CLIENT)
    return outside


@pytest.mark.frozen
@both_families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.usefixtures("outside")
def test_outgoing_traffic_has_the_hosts_address(
    container: Container, plugin: Plugin, protocol: str, family: int
) -> None:
    plugin.add(container)
    assert container.ask(CLIENT[family], 80, protocol) == ("outside", HOST[family])


@both_families
@pytest.mark.usefixtures("outside")
def test_after_del_nothing_is_masqueraded(host: Host, container: Container, plugin: Plugin, family: int) -> None:
    plugin.add(container).delete()
    host.add_client_routes()
    assert container.ask(CLIENT[family], 80).source == container.address[family]


@both_families
def test_traffic_within_the_containers_subnet_is_not_masqueraded(
    host: Host, container: Container, other_container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container)
    plugin.add(other_container)
    for bridge_filter in ("0", "1"):
        host.set_bridge_netfilter(bridge_filter)
        assert other_container.ask(container.address[family], 80) == ("web", other_container.address[family])


@pytest.mark.parametrize(
    ("family", "length"),
    [*((4, length) for length in (9, 16, 21, 24, 26, 29)), *((6, n) for n in (48, 64, 80, 120, 125))],
)
def test_the_containers_subnet_follows_from_the_prefix_length(
    host: Host, container: Container, outside: Namespace, plugin: Plugin, family: int, length: int
) -> None:
    """Destinations differ in the second-last bit of the address or the last bit of the prefix; all are reached by routing."""
    own = ip_interface(f"{container.address[family]}/{length}")
    container.networks[family] = str(own)
    host.add_client_routes()
    plugin.add(container)
    bits = own.max_prefixlen
    for differing, is_own in ((2, True), (1 << bits - length, False)):
        other = str(type(own.ip)(int(own.ip) ^ differing))
        outside.ip(f"address add {other}/{bits} dev lo")
        host.ip(f"route add {other}/{bits} via {CLIENT[family]}")
        container.ip(f"route add {other}/{bits} via {ip_interface(BRIDGES['cni0'][family].format(1)).ip}")
        source = container.ask(other, 80).source
        assert source == (container.address[family] if is_own else HOST[family]), other


@both_families
def test_traffic_to_another_bridge_is_masqueraded(
    host: Host, container: Container, plugin: Plugin, family: int
) -> None:
    other = host.container("cni1")
    other.serve("other", 80)
    plugin.add(container)
    assert container.ask(other.address[family], 80).source == BRIDGES["cni1"][family].format(1).partition("/")[0]


@pytest.mark.parametrize(("family", "group"), [(4, "239.1.2.3"), (4, "255.255.255.255"), (6, "ff0e::123")])
def test_multicast_is_not_masqueraded(
    host: Host, container: Container, plugin: Plugin, family: int, group: str
) -> None:
    """The kernel does not forward it here, so it is sent from the host with the container's address as its source."""
    plugin.add(container)
    host.ip(f"address add {container.address[family]}/{32 if family == 4 else 128} dev uplink")
    with open_socket(host.client.path, "udp", family) as listening, open_socket(host.path, "udp", family) as sending:
        listening.settimeout(3)
        listening.bind(("::" if family == 6 else "0.0.0.0", 5353))
        if group != "255.255.255.255":
            _join(host.client, listening, family, group)
        sending.bind((container.address[family], 0))
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"uplink")
        sending.sendto(b"hello", (group, 5353))
        assert listening.recvfrom(64)[1][0] == container.address[family]


def _join(namespace: Namespace, listening: socket.socket, family: int, group: str) -> None:
    if family == 4:
        membership = socket.inet_aton(group) + socket.inet_aton(CLIENT[4])
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return
    index = int(namespace.run("ip", "-o", "link", "show", "uplink").partition(":")[0])
    membership = socket.inet_pton(socket.AF_INET6, group) + index.to_bytes(4, "little")
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)


@both_families
@pytest.mark.usefixtures("second_uplink")
@pytest.mark.parametrize(
    ("external", "first", "second"),
    [
        ("uplink", True, False),
        ("second", False, True),
        (["uplink", "second"], True, True),
        ("default", True, False),
        (None, True, True),
    ],
)
def test_only_traffic_via_the_external_interface_is_masqueraded(
    host: Host, container: Container, plugin: Plugin, external: object, first: bool, second: bool, family: int
) -> None:
    host.add_client_routes()
    keys: dict[str, Any] = {"externalInterface": external} if external else {}
    plugin.add(container, **keys)
    own = container.address[family]
    assert container.ask(CLIENT[family], 80).source == (HOST[family] if first else own)
    assert container.ask(SECOND_CLIENT[family], 80).source == (SECOND_HOST[family] if second else own)


def test_a_default_interface_without_a_default_route_is_an_error(
    host: Host, container: Container, plugin: Plugin
) -> None:
    host.ip(f"route del default via {CLIENT[6]}")
    with pytest.raises(PluginError, match="IPv6 default route"):
        plugin.add(container, externalInterface="default")
    plugin.add(container, externalInterface="default", masquerade="ipv4")


@both_families
@pytest.mark.usefixtures("second_uplink")
def test_a_static_source_address_replaces_the_interfaces(
    host: Host, container: Container, plugin: Plugin, family: int
) -> None:
    host.add_client_routes()
    plugin.add(container, snatAddress=list(HOST_SECONDARY.values()), externalInterface="uplink")
    assert container.ask(CLIENT[family], 80).source == HOST_SECONDARY[family]
    assert container.ask(SECOND_CLIENT[family], 80).source == container.address[family]
    plugin.add(container, snatAddress=[HOST_SECONDARY[family]])
    assert container.ask(SECOND_CLIENT[family], 80).source == HOST_SECONDARY[family]
    assert container.ask(CLIENT[10 - family], 80).source == HOST[10 - family]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(("masquerade", "families"), [(False, ()), ("ipv4", (4,)), ("ipv6", (6,)), (True, (4, 6))])
def test_masquerade_applies_to_the_configured_families(
    host: Host, container: Container, plugin: Plugin, masquerade: object, families: tuple[int, ...]
) -> None:
    host.add_client_routes()
    plugin.add(container, publish(8080), masquerade=masquerade)
    for family in (4, 6):
        expected = HOST[family] if family in families else container.address[family]
        assert container.ask(CLIENT[family], 80).source == expected
        assert host.client.ask(HOST[family], 8080) == ("web", CLIENT[family])


def test_without_ports_and_masquerade_nothing_is_installed(host: Host, container: Container, plugin: Plugin) -> None:
    forwarding = host.sysctl("ipv4/ip_forward")
    plugin.add(container, masquerade=False)
    assert host.installed() == set()
    assert host.sysctl("ipv4/ip_forward") == forwarding
    assert not list(plugin.state_directory.glob("attachments/*/*"))


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
def test_forwarding_is_enabled_for_the_families_in_use(host: Host, plugin: Plugin, families: tuple[int, ...]) -> None:
    _forward(host, "0")
    plugin.add(host.container(families=families))
    assert host.sysctl("ipv4/ip_forward") == str(int(4 in families))
    assert host.sysctl("ipv6/conf/all/forwarding") == str(int(6 in families))


def test_forwarding_is_left_alone_if_configured(host: Host, container: Container, plugin: Plugin) -> None:
    _forward(host, "0")
    plugin.add(container, ipForwarding=False)
    assert host.sysctl("ipv4/ip_forward") == "0"
    assert host.sysctl("ipv6/conf/all/forwarding") == "0"


def test_a_router_advertised_default_route_stays_when_forwarding_is_enabled(
    host: Host, container: Container, plugin: Plugin
) -> None:
    _forward(host, "0")
    host.set_sysctl("ipv6/conf/uplink/accept_ra", "1")
    plugin.add(container)
    assert host.sysctl("ipv6/conf/all/forwarding") == "1"
    assert host.sysctl("ipv6/conf/uplink/accept_ra") == "2"
    assert host.sysctl("ipv6/conf/cni0/accept_ra") == "1", "a container must not become a router"


def _forward(host: Host, value: str) -> None:
    host.set_sysctl("ipv4/ip_forward", value)
    host.set_sysctl("ipv6/conf/all/forwarding", value)


@both_families
@pytest.mark.usefixtures("outside")
def test_every_address_of_a_container_is_masqueraded(container: Container, plugin: Plugin, family: int) -> None:
    extra = BRIDGES["cni0"][family].format(200)
    container.ip(f"address add {extra} dev eth0 {'nodad' if family == 6 else ''}")
    attachment = plugin.attachment(container)
    attachment.configuration["prevResult"]["ips"].append({"interface": 1, "address": extra})
    attachment.add()
    assert container.ask(CLIENT[family], 80, source=extra.partition("/")[0]).source == HOST[family]


@pytest.mark.usefixtures("outside")
def test_a_container_without_an_attachment_is_not_masqueraded(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    host.add_client_routes()
    plugin.add(container)
    assert other_container.ask(CLIENT[4], 80).source == other_container.address[4]


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


@both_families
@pytest.mark.parametrize("interface_plugin", [{"type": "flannel"}, {"type": "bridge", "ipMasq": True}])
def test_after_chain_a_pod_on_another_node_sees_the_pods_own_address(
    host: Host,
    client: Namespace,
    container: Container,
    plugin: Plugin,
    tmp_path: Path,
    interface_plugin: dict[str, Any],
    family: int,
) -> None:
    """At 1.0.0 (defect 2) it saw the node's address: the plugin masqueraded in portmap's place, which had not."""
    list_ = tmp_path / "10-net.conflist"
    list_.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [interface_plugin, PORTMAP]}))
    masquerades = "ipMasq" in interface_plugin
    networks = ["--pod-network", "10.244.0.0/16", "--pod-network", "fd00:10:244::/48"] if masquerades else []
    assert plugin.operate("chain", *networks, str(list_)).returncode == 0
    chained = json.loads(list_.read_text())["plugins"][1]
    pod = {4: "10.244.2.5", 6: "fd00:10:244::5"}[family]
    client.ip(f"address add {pod} dev lo")
    client.serve("pod", 80)
    host.add_client_routes()
    plugin.add(
        container, publish(8080), **{key: chained[key] for key in ("masquerade", "noMasqueradeTo") if key in chained}
    )
    assert container.ask(pod, 80) == ("pod", container.address[family])
    outside = container.ask(CLIENT[family], 80).source
    assert outside == (HOST[family] if masquerades else container.address[family])
