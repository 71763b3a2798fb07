"""127.0.0.1 is reachable from the host only."""

from __future__ import annotations

import pytest

from .plugin import Plugin, publish
from .topology import HOST, MARTIAN, NO_REPLY_TIMEOUT_S, Container, Host, Namespace, wait_until

CNI0 = "10.88.0.1"

pytestmark = pytest.mark.behaviour


@pytest.mark.frozen
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_the_host_reaches_a_port_at_127_0_0_1(host: Host, container: Container, plugin: Plugin, protocol: str) -> None:
    plugin.add(container, publish(8080, protocol=protocol))
    assert host.ask("127.0.0.1", 8080, protocol) == ("web", CNI0)
    assert host.ask("127.1.2.3", 8080, protocol).server == "web"


def test_route_localnet_is_set_only_on_the_containers_bridge(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    settings = {name: host.sysctl(f"ipv4/conf/{name}/route_localnet") for name in ("cni0", "cni1", "uplink", "all")}
    assert settings == {"cni0": "1", "cni1": "0", "uplink": "0", "all": "0"}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_ipv6_localhost_is_refused_at_once(host: Host, container: Container, plugin: Plugin, protocol: str) -> None:
    plugin.add(container, publish(8080, protocol=protocol))
    assert host.is_refused("::1", 8080, protocol)
    assert host.ask("127.0.0.1", 8080, protocol).server == "web"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_container_does_not_reach_services_on_the_hosts_localhost(
    host: Host, container: Container, other_container: Container, plugin: Plugin, protocol: str
) -> None:
    """CVE-2020-8558: route_localnet opens 127.0.0.0/8 to everyone on the link."""
    secret = host.serve("secret", 9090, "127.0.0.1")
    plugin.add(container, publish(8080))
    other_container.send_martians(CNI0)
    assert other_container.cannot_reach(MARTIAN, 9090, protocol)
    assert secret.seen == []
    host.disable_guard()
    assert other_container.ask(MARTIAN, 9090, protocol).server == "secret", "the attack itself must work"


def test_a_container_cannot_spoof_the_hosts_localhost(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    service = host.serve("service", 9090)
    plugin.add(container, publish(8080))
    host.set_sysctl("ipv4/conf/cni0/accept_local", "1")  # otherwise the kernel itself drops them
    other_container.spoof_localhost(9090)
    assert other_container.cannot_reach(CNI0, 9090, "udp")
    assert service.seen == []
    host.disable_guard()
    assert other_container.cannot_reach(CNI0, 9090, "udp"), "a reply to 127.0.0.1 stays on the host"
    wait_until(lambda: service.seen == ["127.0.0.1"], "the attack itself works")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_outside_host_does_not_reach_localhost_if_route_localnet_is_on(
    host: Host, client: Namespace, container: Container, plugin: Plugin, protocol: str
) -> None:
    secret = host.serve("secret", 9090, "127.0.0.1")
    plugin.add(container, publish(8080))
    host.set_sysctl("ipv4/conf/uplink/route_localnet", "1")
    client.send_martians(HOST[4])
    assert client.cannot_reach(MARTIAN, 9090, protocol)
    assert client.cannot_reach(MARTIAN, 8080, protocol)
    assert secret.seen == []
    host.disable_guard()
    assert client.ask(MARTIAN, 9090, protocol).server == "secret", "the attack itself must work"


@pytest.mark.frozen
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_mapping_on_127_0_0_1_is_open_to_the_host_only(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, protocol: str
) -> None:
    """moby#45610: portmap v1.9.1 is vulnerable."""
    plugin.add(container, publish(8080, protocol=protocol, hostIP="127.0.0.1"))
    assert host.ask("127.0.0.1", 8080, protocol).server == "web"
    assert host.is_refused(HOST[4], 8080, protocol)
    assert client.is_refused(HOST[4], 8080, protocol)
    assert other_container.is_refused(CNI0, 8080, protocol)
    host.set_sysctl("ipv4/conf/uplink/route_localnet", "1")
    client.send_martians(HOST[4])
    assert client.cannot_reach(MARTIAN, 8080, protocol)
    other_container.send_martians(CNI0)
    assert other_container.cannot_reach(MARTIAN, 8080, protocol)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_mapping_on_127_0_0_1_is_not_reachable_by_routing_to_the_container(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, protocol: str
) -> None:
    container.serve("open", 81)
    plugin.add(container, publish(8080, protocol=protocol, hostIP="127.0.0.1"))
    host.add_client_routes()
    stranger = host.container("cni1")
    assert client.cannot_reach(container.address[4], 80, protocol)
    assert stranger.cannot_reach(container.address[4], 80, protocol)
    assert client.ask(container.address[4], 81, protocol).server == "open", "routing itself must work"
    assert other_container.ask(container.address[4], 80, protocol).server == "web"
    assert host.ask(container.address[4], 80, protocol).server == "web"


@pytest.mark.parametrize("bridge_filter", ["0", "1"])
def test_a_mapping_on_127_0_0_1_keeps_direct_traffic_on_the_network(
    host: Host, container: Container, other_container: Container, plugin: Plugin, bridge_filter: str
) -> None:
    host.set_bridge_netfilter(bridge_filter)
    plugin.add(container, publish(8080, hostIP="127.0.0.1"))
    assert other_container.ask(container.address[4], 80, timeout=NO_REPLY_TIMEOUT_S).server == "web"


def test_ports_on_127_0_0_1_and_on_another_address_of_one_container_are_separate(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080, hostIP="127.0.0.1"), publish(8081, hostIP=HOST[4]))
    host.add_client_routes()
    assert client.ask(HOST[4], 8081).server == "web"
    assert client.is_refused(HOST[4], 8080)
    assert client.ask(container.address[4], 80).server == "web"
    assert host.ask("127.0.0.1", 8080).server == "web"
