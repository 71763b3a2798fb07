"""`quantum-nat doctor` and the path of a packet: each case breaks one thing, proves by traffic that it is broken, and runs the
cure as printed.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pytest

from .peer import Refused, TimedOut
from .plugin import Plugin, publish
from .test_doctor import findings, only_finding
from .topology import CLIENT, HOST, NO_REPLY_TIMEOUT_S, Container, Host, Namespace, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

FIXED_SOURCE = "198.51.100.77"


class Network(NamedTuple):
    """A container with published ports, its bridge port, and the client outside."""

    host: Host
    client: Namespace
    container: Container
    port: str

    def inbound(self, family: int = 4) -> bool:
        """Whether the client reaches the host port."""
        return works(lambda: self.client.ask(HOST[family], 8080, timeout=NO_REPLY_TIMEOUT_S))

    def outbound(self, family: int = 4) -> bool:
        """Whether the container reaches the client."""
        return works(lambda: self.container.ask(CLIENT[family], 80, timeout=NO_REPLY_TIMEOUT_S))

    def local(self) -> bool:
        """Whether the host reaches the port on 127.0.0.1."""
        return works(lambda: self.host.ask("127.0.0.1", 9090, timeout=NO_REPLY_TIMEOUT_S))


def works(question: Callable[[], object]) -> bool:
    try:
        question()
    except (TimedOut, Refused, OSError):
        return False
    return True


@pytest.fixture
def network(host: Host, client: Namespace, plugin: Plugin) -> Network:
    container = host.container()
    container.serve("web", 80)
    client.serve("outside", 80)
    plugin.add(container, publish(8080), publish(9090, hostIP="127.0.0.1"))
    (port,) = re.findall(r"(veth\d+)@", host.run("ip", "-o", "link", "show", "master", "cni0"))
    return Network(host, client, container, port)


class Case(NamedTuple):
    """What is broken: ip(8) commands on the host or in the container, or a sysctl. traffic: what then fails."""

    check: str
    where: str
    problem: str
    traffic: str
    on_host: tuple[str, ...] = ()
    in_container: tuple[str, ...] = ()
    sysctl: tuple[str, str] = ("", "")


CASES = {
    "bridge-down": Case("links addresses", "interface cni0", "is down", "inbound4", ("link set cni0 down",)),
    "port-down": Case("links", "interface {port}", "is down", "inbound4", ("link set {port} down",)),
    "port-not-in-its-bridge": Case("links", "bridge port {port}", "is not in cni0", "inbound4", ("link set {port} nomaster",)),
    "bridge-without-ipv4": Case("addresses", "interface cni0", "no address in 10.88.0.0/24", "inbound4", ("address del 10.88.0.1/24 dev cni0",)),
    "bridge-without-ipv6": Case("addresses", "interface cni0", "no address in fd88::/64", "inbound6", ("address del fd88::1/64 dev cni0",)),
    "blackhole": Case("routes", "route blackhole 10.88.0.11/32", "are refused", "inbound4", ("route add blackhole {v4}/32",)),
    "unreachable": Case("routes", "route unreachable 10.88.0.11/32", "are refused", "inbound4", ("route add unreachable {v4}/32",)),
    "prohibit": Case("routes", "route prohibit 10.88.0.11/32", "are refused", "inbound4", ("route add prohibit {v4}/32",)),
    "blackhole-ipv6": Case("routes", "route blackhole {v6}/128", "are refused", "inbound6", ("route add blackhole {v6}/128",)),
    "blackhole-of-the-outside": Case("routes", "route blackhole 8.0.0.0/7", "are refused", "", ("route add blackhole 8.0.0.0/7",)),
    "rule-to": Case("routes", "routing rule 77", "are refused", "inbound4", ("rule add pref 77 to {v4} blackhole",)),
    "rule-from": Case("routes", "routing rule 77", "are refused", "outbound4", ("rule add pref 77 from 10.88.0.0/24 prohibit",)),
    "rule-of-an-interface": Case("routes", "routing rule 77", "are refused", "outbound4", ("rule add pref 77 iif cni0 unreachable",)),
    "rule-to-ipv6": Case("routes", "routing rule 77", "are refused", "inbound6", ("-6 rule add pref 77 to {v6} blackhole",)),
    "detour": Case("routes", "the host's routes", "via uplink", "inbound4", ("route add {v4}/32 via 198.51.100.2",)),
    "forwarding-of-the-bridge": Case("routes", "interface cni0", "forwarding is off", "outbound4", sysctl=("ipv4/conf/cni0/forwarding", "0")),
    "forwarding-of-the-uplink": Case("routes", "interface uplink", "forwarding is off", "inbound4", sysctl=("ipv4/conf/uplink/forwarding", "0")),
    "container-without-ipv4": Case("containers", "container", "its address 10.88.0.11 is missing", "inbound4", in_container=("address flush dev eth0 scope global",)),
    "container-without-ipv4-address": Case("containers", "container", "no IPv4 default route", "inbound4", in_container=("-4 address flush dev eth0",)),
    "container-without-ipv6-address": Case("containers", "container", "its address {v6} is missing", "inbound6", in_container=("address del {v6}/64 dev eth0",)),
    "container-down": Case("containers", "container", "its interface eth0 is down", "inbound4", in_container=("link set eth0 down",)),
    "container-without-route": Case("containers", "container", "no IPv4 default route", "outbound4", in_container=("route del default",)),
    "container-without-ipv6-route": Case("containers", "container", "no IPv6 default route", "outbound6", in_container=("-6 route del default",)),
    "container-that-blackholes": Case("containers", "container", "no IPv4 default route", "outbound4", in_container=("route replace blackhole default",)),
    "route-localnet": Case("route_localnet", "interface cni0", "route_localnet is off", "local", sysctl=("ipv4/conf/cni0/route_localnet", "0")),
    "forwarding": Case("forwarding", "IPv4", "ip_forward is off", "inbound4", sysctl=("ipv4/ip_forward", "0")),
    "forwarding-ipv6": Case("forwarding", "IPv6", "forwarding is off", "inbound6", sysctl=("ipv6/conf/all/forwarding", "0")),
}  # fmt: skip


def traffic_of(network: Network, name: str) -> bool:
    if name == "local":
        return network.local()
    return (network.inbound if name.startswith("inbound") else network.outbound)(int(name[-1]))


@pytest.mark.parametrize("name", CASES)
def test_a_broken_path_is_named_and_cured(plugin: Plugin, network: Network, name: str) -> None:
    case, host, container = CASES[name], network.host, network.container
    names = {"port": network.port, "v4": container.address[4], "v6": container.address[6]}
    assert network.inbound(4)
    assert network.inbound(6)
    assert findings(plugin) == []
    for namespace, commands in ((host, case.on_host), (container, case.in_container)):
        for command in commands:
            namespace.run("ip", *command.format(**names).split())
    if case.sysctl[0]:
        host.set_sysctl(*case.sysctl)
    if case.traffic:
        assert not traffic_of(network, case.traffic)
    found = findings(plugin)
    where, problem = case.where.format(**names), case.problem.format(**names)
    assert {entry["check"] for entry in found} == set(case.check.split()), found
    assert any(where in entry["where"] and problem in entry["problem"] for entry in found), found
    for entry in found:
        host.run("sh", "-c", entry["remedy"])
    for one in filter(None, ("inbound4", "inbound6", "outbound4", "outbound6", "local", case.traffic)):
        wait_until(
            partial(traffic_of, network, one), f"{one} works: {found}"
        )  # a link that is up again learns its neighbours first
    assert findings(plugin) == []


def test_a_bridge_that_is_down_and_has_lost_its_address(plugin: Plugin, network: Network) -> None:
    """Everything that is wrong is found in one run, and a cause that two containers share is one finding."""
    other = network.host.container()
    plugin.add(other, publish(8081))
    network.host.ip("link set cni0 down")
    network.host.run("nft", "flush", "ruleset")
    found = findings(plugin)
    assert sorted(entry["check"] for entry in found) == ["addresses", "links", "table"], found
    assert "and 1 more" in next(entry["problem"] for entry in found if entry["check"] == "links")


def test_a_source_address_that_the_host_does_not_have(host: Host, client: Namespace, plugin: Plugin) -> None:
    container = host.container()
    client.serve("outside", 80)
    plugin.add(container, snatAddress=FIXED_SOURCE)
    assert container.cannot_reach(CLIENT[4], 80)
    found = only_finding(plugin, "addresses")
    assert "is not an address of this host" in found["problem"]
    host.run("sh", "-c", found["remedy"])
    assert container.ask(CLIENT[4], 80).source == FIXED_SOURCE
    assert findings(plugin) == []


def test_whether_a_source_address_is_routed_to_the_host_is_unknown(host: Host, plugin: Plugin) -> None:
    plugin.add(host.container(), snatAddress="203.0.113.9")
    found = only_finding(plugin, "addresses")
    assert (found["status"], "cannot tell" in found["problem"]) == ("unknown", True)


def test_a_strict_reverse_path_filter_with_an_asymmetric_route(plugin: Plugin, network: Network) -> None:
    """Replies to the client leave by another interface than its packets arrive on."""
    host = network.host
    host.set_sysctl("ipv4/conf/cni0/rp_filter", "1")
    assert findings(plugin) == []
    host.ip("route add 10.88.0.8/29 dev cni1", "route flush cache")
    assert not network.outbound()
    found = only_finding(plugin, "routes")
    host.run("sh", "-c", found["remedy"])
    assert network.outbound()
    assert findings(plugin) == []


def test_a_container_on_a_second_network_is_healthy(plugin: Plugin, network: Network) -> None:
    from .topology import connect_second_network

    plugin.add(connect_second_network(network.container), publish(8082), network="second")
    assert findings(plugin) == []
