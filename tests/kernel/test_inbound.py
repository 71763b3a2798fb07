"""Published ports, from outside, from the host and from containers."""

from __future__ import annotations

import pytest

from .plugin import Plugin, PluginError, publish
from .topology import BRIDGES, CLIENT, HOST, HOST_SECONDARY, Container, Host, Namespace

pytestmark = pytest.mark.behaviour
both_families = pytest.mark.parametrize("family", [4, 6])
GATEWAY = {family: BRIDGES["cni0"][family].format(1).partition("/")[0] for family in (4, 6)}
OTHER_GATEWAY = {family: BRIDGES["cni1"][family].format(1).partition("/")[0] for family in (4, 6)}


@pytest.mark.frozen
@both_families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address(
    client: Namespace, container: Container, plugin: Plugin, protocol: str, family: int
) -> None:
    assert client.is_refused(HOST[family], 8080)
    plugin.add(container, publish(8080, protocol=protocol))
    assert client.ask(HOST[family], 8080, protocol) == ("web", CLIENT[family])
    assert client.ask(HOST_SECONDARY[family], 8080, protocol) == ("web", CLIENT[family])


@pytest.mark.frozen
@both_families
def test_a_port_is_closed_again_after_del(client: Namespace, container: Container, plugin: Plugin, family: int) -> None:
    web = plugin.add(container, publish(8080))
    assert client.ask(HOST[family], 8080).server == "web"
    web.delete()
    assert client.is_refused(HOST[family], 8080)


@pytest.mark.parametrize("protocol", ["UDP", "Udp"])
def test_the_case_of_a_protocol_is_ignored(
    client: Namespace, container: Container, plugin: Plugin, protocol: str
) -> None:
    plugin.add(container, publish(8080, protocol=protocol))
    assert client.ask(HOST[4], 8080, "udp").server == "web"


def test_the_default_protocol_is_tcp_and_the_case_of_keys_is_ignored(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    plugin.add(container, {"HostPort": 8080, "ContainerPort": 80, "HostIP": ""})
    assert client.ask(HOST[4], 8080, "tcp").server == "web"
    assert client.is_refused(HOST[4], 8080, "udp")


@both_families
def test_a_host_ip_mapping_is_open_on_that_address_only(
    client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container, publish(8080, hostIP=HOST_SECONDARY[family]))
    assert client.ask(HOST_SECONDARY[family], 8080).server == "web"
    assert client.is_refused(HOST[family], 8080)


@both_families
def test_a_host_ip_mapping_takes_precedence_over_a_wildcard_one(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin, family: int
) -> None:
    other_container.serve("specific", 80)
    plugin.add(container, publish(8080))
    plugin.add(other_container, publish(8080, hostIP=HOST_SECONDARY[family]))
    assert client.ask(HOST_SECONDARY[family], 8080).server == "specific"
    assert client.ask(HOST[family], 8080).server == "web"


@pytest.mark.parametrize(("host_ip", "open_families"), [("0.0.0.0", {4}), ("::", {6}), ("", {4, 6})])
def test_a_wildcard_host_ip_means_any_address_of_its_family(
    client: Namespace, container: Container, plugin: Plugin, host_ip: str, open_families: set[int]
) -> None:
    plugin.add(container, publish(8080, hostIP=host_ip))
    for family in (4, 6):
        for address in (HOST[family], HOST_SECONDARY[family]):
            if family in open_families:
                assert client.ask(address, 8080).server == "web"
            else:
                assert client.is_refused(address, 8080)


@pytest.mark.parametrize(("own", "other"), [(4, 6), (6, 4)])
def test_a_host_ip_of_a_family_that_the_container_lacks_publishes_nothing(
    host: Host, client: Namespace, plugin: Plugin, own: int, other: int
) -> None:
    container = host.container(families=(own,))
    container.serve("web", 80)
    plugin.add(container, publish(8080, hostIP=HOST[other]), publish(8081))
    assert client.is_refused(HOST[other], 8080)
    assert client.is_refused(HOST[other], 8081)
    assert client.ask(HOST[own], 8081).server == "web"


@both_families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_the_host_reaches_a_port_at_its_own_addresses(
    host: Host, container: Container, plugin: Plugin, protocol: str, family: int
) -> None:
    plugin.add(container, publish(8080, protocol=protocol))
    assert host.ask(HOST[family], 8080, protocol).server == "web"
    assert host.ask(GATEWAY[family], 8080, protocol).server == "web"


@pytest.mark.parametrize("bridge_filter", ["0", "1"])
@both_families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_container_reaches_itself_and_others_on_its_network_through_the_host(
    host: Host,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    protocol: str,
    family: int,
    bridge_filter: str,
) -> None:
    host.set_bridge_netfilter(bridge_filter)
    plugin.add(container, publish(8080, protocol=protocol))
    plugin.add(other_container)
    for address in (HOST[family], GATEWAY[family]):
        assert container.ask(address, 8080, protocol).server == "web"
        assert other_container.ask(address, 8080, protocol).server == "web"


@pytest.mark.parametrize("bridge_filter", ["0", "1"])
@both_families
def test_a_container_on_another_bridge_reaches_a_port_through_the_host(
    host: Host, container: Container, plugin: Plugin, family: int, bridge_filter: str
) -> None:
    host.set_bridge_netfilter(bridge_filter)
    stranger = host.container("cni1")
    plugin.add(container, publish(8080))
    plugin.add(stranger, network="other")
    for address in (HOST[family], GATEWAY[family], OTHER_GATEWAY[family]):
        assert stranger.ask(address, 8080).server == "web"


def test_one_container_publishes_many_ports(client: Namespace, container: Container, plugin: Plugin) -> None:
    container.serve("second", 81)
    plugin.add(container, publish(8080), publish(8080, protocol="udp"), publish(8081, 81), publish(80, 81))
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8080, "udp").server == "web"
    assert client.ask(HOST[4], 8081).server == "second"
    assert client.ask(HOST[6], 80).server == "second"


@both_families
def test_with_masq_all_the_server_sees_the_host(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container, publish(8080), masqAll=True)
    assert client.ask(HOST[family], 8080) == ("web", GATEWAY[family])
    assert host.ask(HOST[family], 8080).server == "web"
    assert host.ask("127.0.0.1", 8080) == ("web", GATEWAY[4])


@both_families
def test_without_snat_other_containers_on_the_network_are_not_masqueraded(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container, publish(8080), snat=False)
    assert client.ask(HOST[family], 8080) == ("web", CLIENT[family])
    host.set_bridge_netfilter("1")  # otherwise the reply bypasses the host, and has the wrong source
    assert other_container.ask(HOST[family], 8080) == ("web", other_container.address[family])


def test_without_snat_route_localnet_stays_off(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080), snat=False)
    assert host.sysctl("ipv4/conf/cni0/route_localnet") == "0"


@pytest.mark.frozen
@both_families
def test_transit_traffic_to_a_published_port_number_is_not_translated(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """CVE-2025-67499: a rule that matched only the port took traffic to other hosts."""
    target = host.container("cni1")
    target.serve("target", 8080)
    host.add_client_routes("cni1")
    plugin.add(container, publish(8080))
    plugin.add(target, network="other")
    assert client.ask(target.address[family], 8080).server == "target"
    assert container.ask(target.address[family], 8080).server == "target"
    client.serve("outside", 8080)
    assert target.ask(CLIENT[family], 8080).server == "outside"


def test_a_host_ip_of_ipv6_localhost_is_refused_with_a_reason(container: Container, plugin: Plugin) -> None:
    with pytest.raises(PluginError, match=r"::1.*kernel") as caught:
        plugin.add(container, publish(8080, hostIP="::1"))
    assert caught.value.code == 7
