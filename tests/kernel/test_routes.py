"""Which interface is the default route's, and which one leads to the container: as the kernel routes, not as one table says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cni_quantum_nat.kernel.routes import default_route_interfaces

from .peer import inside
from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from .plugin import Attachment

both_families = pytest.mark.parametrize("family", [4, 6])
SECOND_HOST = {4: "203.0.113.1", 6: "2001:db8:2::1"}
SECOND_CLIENT = {4: "203.0.113.2", 6: "2001:db8:2::2"}
ANY = {4: "0.0.0.0/0", 6: "::/0"}
IP = {4: "ip -4", 6: "ip -6"}
BEYOND = {4: "9.9.9.9", 6: "2620:fe::fe"}  # a host on the Internet, which the client plays
DEFAULT: dict[str, Any] = {"externalInterface": "default"}


@pytest.fixture(autouse=True)
def _second_uplink(host: Host, client: Namespace) -> None:
    host.add_uplink("second", SECOND_HOST, SECOND_CLIENT)
    client.ip(*(f"address add {address} dev lo" for address in BEYOND.values()))
    for name in ("all", "uplink", "second"):
        client.set_sysctl(f"ipv4/conf/{name}/rp_filter", "0")
        host.set_sysctl(f"ipv4/conf/{name}/rp_filter", "0")


def route(host: Host, family: int, *commands: str) -> None:
    host.run(*IP[family].split(), "route", "del", "default")
    for command in commands:
        host.run(*IP[family].split(), *command.split())


def via(family: int, interface: str) -> str:
    return f"via {(CLIENT if interface == 'uplink' else SECOND_CLIENT)[family]} dev {interface}"


@both_families
def test_each_next_hop_of_a_multipath_default_route_is_masqueraded(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 16) only the first one was: of 16 connections, 5 got no answer."""
    client.serve("outside", 80)
    host.set_sysctl(f"ipv{family}/fib_multipath_hash_policy", "1")
    hops = " ".join(f"nexthop {via(family, name)}" for name in ("uplink", "second"))
    route(host, family, f"route add default {hops}")
    plugin.add(container, **DEFAULT)
    sources = {container.ask(BEYOND[family], 80).source for _ in range(24)}
    assert sources == {HOST[family], SECOND_HOST[family]}


@both_families
def test_a_default_route_of_another_table_is_found(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 16) only table main was read: wg-quick puts its default route into one of its own."""
    client.serve("outside", 80)
    for command in (
        f"route add default {via(family, 'second')} table 51820",
        "rule add not fwmark 51820 table 51820",
        "rule add table main suppress_prefixlength 0",
    ):
        host.run(*IP[family].split(), *command.split())
    plugin.add(container, **DEFAULT)
    assert container.ask(BEYOND[family], 80).source == SECOND_HOST[family]


@both_families
@pytest.mark.parametrize("compatible", ["0", "1"])
@pytest.mark.parametrize("group", [False, True])
def test_a_default_route_by_a_nexthop_object_is_found(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int, compatible: str, group: bool
) -> None:
    """At 1.0.0 (defect 16) it was no default route with net.ipv4.nexthop_compat_mode 0."""
    client.serve("outside", 80)
    host.set_sysctl("ipv4/nexthop_compat_mode", compatible)
    host.run(*IP[family].split(), *f"nexthop add id 10 {via(family, 'second')}".split())
    if group:
        host.run(*["ip", "nexthop", "add", "id", "20", "group", "10"])
    route(host, family, f"route add default nhid {20 if group else 10}")
    plugin.add(container, **DEFAULT)
    assert container.ask(BEYOND[family], 80).source == SECOND_HOST[family]


@both_families
def test_a_default_route_in_two_halves_is_found(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """OpenVPN covers the default route with two others."""
    client.serve("outside", 80)
    halves = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}[family]
    for half in halves:
        host.run(*IP[family].split(), *f"route add {half} {via(family, 'second')}".split())
    plugin.add(container, **DEFAULT)
    assert container.ask(BEYOND[family], 80).source == SECOND_HOST[family]


def test_a_route_to_a_public_address_is_no_default_route(host: Host) -> None:
    host.run(*f"ip route add 9.9.9.0/24 {via(4, 'second')}".split())
    host.run(*["ip", "route", "add", "blackhole", "198.41.0.0/24"])
    with inside(host.path):
        assert default_route_interfaces(4) == (
            "second",
        )  # of two, both with a route of their own: it is all that is known
    host.run(*["ip", "route", "del", "blackhole", "198.41.0.0/24"])
    with inside(host.path):
        assert default_route_interfaces(4) == ("uplink",)
        assert default_route_interfaces(6) == ("uplink",)


@both_families
def test_check_keeps_the_interface_of_the_default_route_at_add(
    host: Host, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 44) CHECK told people to reconcile after the default route had moved, and reconcile agreed."""
    web = plugin.add(container, publish(8080), **DEFAULT)
    route(host, family, f"route add default {via(family, 'second')}")
    web.check()
    assert "second" in plugin.operate("doctor").stdout
    host.run(*IP[family].split(), "route", "del", "default")
    web.check()


@pytest.fixture
def nowhere(host: Host) -> Container:
    """A container that the host has no route of its own to: on a macvlan or ipvlan, only the default route answers."""
    container = host.container()
    container.serve("web", 80)
    container.networks = {4: "192.0.2.10/24", 6: "2001:db8:77::10/64"}
    container.address = {family: network.partition("/")[0] for family, network in container.networks.items()}
    return container


@pytest.mark.behaviour
def test_the_uplink_is_not_the_home_of_a_container_without_a_route(
    host: Host, nowhere: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 18) isolation and ports of 127.0.0.1 were open on the uplink, and `route_localnet` was set there."""
    web = plugin.add(nowhere, publish(8080, hostIP="127.0.0.1"), publish(8081), isolate=True)
    assert host.sysctl("ipv4/conf/uplink/route_localnet") == "0"
    assert "uplink" not in host.ruleset()
    web.check()
    web.delete()
    assert host.owners() == set()


@pytest.mark.behaviour
@both_families
def test_isolation_holds_on_the_uplink(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """The same by packets (defect 18): the client asks for the address itself, which only a default route leads to at ADD."""
    host.add_client_routes()
    prefix = {4: "10.88.0.0/24", 6: "fd88::/64"}[family]
    host.run(*IP[family].split(), *f"route del {prefix} dev cni0".split())
    plugin.add(container, publish(8080), isolate=True)
    host.run(*IP[family].split(), *f"route add {prefix} dev cni0".split())
    client.run(*IP[family].split(), *f"route replace {prefix} via {HOST[family]}".split())
    assert client.cannot_reach(container.address[family], 80)
    assert client.ask(HOST[family], 8080).server == "web"


@pytest.mark.behaviour
def test_accept_ra_of_the_uplink_is_kept_by_a_container_without_a_route(
    host: Host, nowhere: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 18) the uplink was taken for the container's own interface, and ignored router advertisements from then on."""
    host.set_sysctl("ipv6/conf/all/forwarding", "0")
    host.set_sysctl("ipv6/conf/uplink/accept_ra", "1")
    plugin.add(nowhere)
    assert host.sysctl("ipv6/conf/uplink/accept_ra") == "2"


def _lose(plugin: Plugin, attachment: Attachment) -> None:
    shutil.rmtree(plugin.state_directory)
    assert attachment.configuration["prevResult"]


@pytest.mark.behaviour
@pytest.mark.parametrize("lost", ["bridge", "default route", "both"])
def test_del_without_record_and_route_succeeds_and_leaves_nothing(
    host: Host, container: Container, plugin: Plugin, lost: str
) -> None:
    """At 1.0.0 (defect 1) it failed with code 105 for ever: after a reboot the bridge is not there yet, and the record is gone."""
    web = plugin.add(container, publish(8080), publish(8081, hostIP="127.0.0.1"), isolate=True, **DEFAULT)
    _lose(plugin, web)
    if lost != "default route":
        host.ip("link del cni0")
    if lost != "bridge":
        host.ip(f"route del default via {CLIENT[4]}", f"route del default via {CLIENT[6]}")
    plugin.call("DEL", web.configuration, container, CNI_NETNS="")
    assert host.owners() == set()
    plugin.call("DEL", web.configuration, container, CNI_NETNS="")
    assert not Path(plugin.state_directory, "attachments").exists() or not list(
        (plugin.state_directory / "attachments").iterdir()
    )


@pytest.mark.behaviour
def test_an_interface_that_vanishes_while_forwarding_is_enabled_is_no_failure(
    host: Host, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    """At 1.0.0 (defect 45) ADD failed with code 104: other containers' interfaces come and go beside it."""
    host.set_sysctl("ipv6/conf/all/forwarding", "0")
    web = plugin.attachment(container, publish(8080))
    trace = ("strace", "-qq", "-f", "-o", str(tmp_path / "trace"), "-P", "/proc/sys/net/ipv6/conf/cni1/accept_ra")
    process = plugin.start(
        "ADD", web.configuration, container, before=(*trace, "-e", "inject=open,openat:error=ENOENT")
    )
    plugin.finish(process)
    assert "ENOENT" in (tmp_path / "trace").read_text()
    assert host.sysctl("ipv6/conf/all/forwarding") == "1"


def test_no_default_route_at_all_is_an_error(host: Host, container: Container, plugin: Plugin) -> None:
    host.ip(f"route del default via {CLIENT[4]}")
    host.run("ip", "route", "add", "unreachable", "default")
    with pytest.raises(PluginError, match="the host has no IPv4 default route"):
        plugin.add(container, **DEFAULT)
