"""Time-outs of established connections, conditions, and [::1]."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from cni_quantum_nat import NatConfig, NatManager, Network
from cni_quantum_nat.backends.nftables import programs as libnftables
from cni_quantum_nat.model.errors import CniError

from .peer import Refused, inside, open_socket
from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, HOST_SECONDARY, SUBNETS, Container, Host, Namespace

if TYPE_CHECKING:
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])
KERNELS_OWN_S = 432000


def establish(stack: ExitStack, namespace: Namespace, address: str, port: int) -> int:
    """Open a TCP connection, keep it open, and return its source port."""
    return int(open_connection(stack, namespace, address, port).getsockname()[1])


def open_connection(stack: ExitStack, namespace: Namespace, address: str, port: int) -> socket.socket:
    """Open a TCP connection that stays open."""
    opened = stack.enter_context(open_socket(namespace.path, "tcp", 6 if ":" in address else 4))
    opened.settimeout(3)
    opened.connect((address, port))
    return opened


def listen(stack: ExitStack, namespace: Namespace, port: int, family: int) -> None:
    """Accept connections, and keep them open."""
    listening = stack.enter_context(open_socket(namespace.path, "tcp", family))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("::" if family == 6 else "0.0.0.0", port))
    listening.listen()


def remaining_s(host: Host, family: int, source_port: int, port: int) -> int:
    """Return the remaining time-out of the host's conntrack entry from this source port to this port."""
    ports = ("--orig-port-src", str(source_port), "--orig-port-dst", str(port))
    listed = host.run("conntrack", "-L", "-f", f"ipv{family}", "-p", "tcp", *ports)
    found = re.findall(r"tcp\s+6\s+(\d+) ESTABLISHED", listed)
    assert len(found) == 1, listed
    return int(found[0])


@pytest.mark.frozen
@both_families
@pytest.mark.parametrize(("keys", "timeout_s"), [({}, 3600), ({"conntrackTimeout": 7200}, 7200)])
def test_only_translated_connections_have_our_timeout(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin, family: int, keys: dict[str, int], timeout_s: int
) -> None:
    container = host.container()
    for namespace, port in ((container, 80), (host, 90), (client, 100)):
        listen(stack, namespace, port, family)
    plugin.add(host.container(), publish(9000))
    plugin.add(container, publish(8080), network="other", **keys)
    inbound = establish(stack, client, HOST[family], 8080)
    outbound = establish(stack, container, CLIENT[family], 100)
    own = establish(stack, client, HOST[family], 90)
    assert timeout_s - 10 < remaining_s(host, family, inbound, 8080) <= timeout_s
    assert timeout_s - 10 < remaining_s(host, family, outbound, 100) <= timeout_s
    assert KERNELS_OWN_S - 10 < remaining_s(host, family, own, 90) <= KERNELS_OWN_S


def udp_remaining_s(host: Host, family: int, source_port: int) -> int:
    """Return the remaining time-out of the host's conntrack entry of a UDP connection from this source port."""
    listed = host.run("conntrack", "-L", "-f", f"ipv{family}", "-p", "udp", "--orig-port-src", str(source_port))
    found = re.findall(r"udp\s+17\s+(\d+) ", listed)
    assert len(found) == 1, listed
    return int(found[0])


def begin_udp(stack: ExitStack, client: Namespace, server: Namespace, address: str, port: int, at: int) -> list[Any]:
    """Send a datagram to a server that does not answer yet. Return both sockets and the address that the server sees."""
    family = 6 if ":" in address else 4
    answering, asking = (stack.enter_context(open_socket(n.path, "udp", family)) for n in (server, client))
    answering.settimeout(3)
    asking.settimeout(3)
    answering.bind(("::" if family == 6 else "0.0.0.0", at))
    asking.sendto(b"?", (address, port))
    return [asking, answering, answering.recvfrom(9)[1]]


@pytest.mark.frozen
@both_families
def test_translated_udp_connections_have_the_timeouts_of_their_network(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin, family: int
) -> None:
    """Into the container, out of it, of a network without the keys, and the host's own."""
    container, other = host.container(), host.container()
    settings: dict[str, Any] = {"udpTimeout": 500, "udpStreamTimeout": 900}
    plugin.add(container, publish(8080, protocol="udp"), **settings)
    plugin.add(other, publish(8081, protocol="udp"), network="other")
    began = time.monotonic()
    opened = {
        "inbound": begin_udp(stack, client, container, HOST[family], 8080, 80),
        "outbound": begin_udp(stack, container, client, CLIENT[family], 100, 100),
        "of another network": begin_udp(stack, client, other, HOST[family], 8081, 80),
        "the host's own": begin_udp(stack, client, host, HOST[family], 90, 90),
    }
    kernels = [int(host.sysctl(f"netfilter/nf_conntrack_udp_timeout{kind}")) for kind in ("", "_stream")]
    expected = {what: [500, 900] if what in {"inbound", "outbound"} else kernels for what in opened}

    def check(which: int) -> None:
        for what, (asking, *_) in opened.items():
            wanted_s = expected[what][which]
            got_s = udp_remaining_s(host, family, asking.getsockname()[1])
            assert wanted_s - 10 < got_s <= wanted_s, what

    check(0)
    for asking, answering, client_address in opened.values():
        answering.sendto(b"!", client_address)
        asking.recvfrom(9)
    check(0)  # an exchange, not a stream
    time.sleep(max(0, began + 2.5 - time.monotonic()))
    for asking, answering, client_address in opened.values():
        answering.sendto(b"!", client_address)
        asking.recvfrom(9)
    check(1)


def test_udp_timeouts_are_repaired_and_belong_to_their_owner(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin
) -> None:
    container = host.container()
    web = plugin.add(container, publish(8080, protocol="udp"), udpStreamTimeout=900)
    assert "udp_timeout4_30_900" in host.ruleset()
    host.run("nft", "flush set inet quantum udp_timeout4_30_900")
    with pytest.raises(PluginError, match=r"udp_timeout4_30_900 .* is missing"):
        web.check()
    assert plugin.operate("reconcile").returncode == 0
    web.check()
    host.run("nft", "flush ruleset")
    plugin.add(host.container(), publish(8081), network="other")
    web.check()
    web.delete()
    assert web.owner not in host.owners()
    address = SUBNETS["cni0"][4]
    settings = {"state_dir": str(plugin.state_directory), "udp_timeout": 400}
    with inside(host.path):
        NatManager(NatConfig.model_validate(settings)).enable_outbound_connectivity(
            Network("fabric0", "fabric0", address)
        )
    asking, *_ = begin_udp(stack, container, client, CLIENT[4], 100, 100)
    assert 390 < udp_remaining_s(host, 4, asking.getsockname()[1]) <= 400


def test_a_table_has_nothing_for_udp_timeouts_unless_they_are_used(host: Host, plugin: Plugin) -> None:
    plugin.add(host.container(), publish(8080, protocol="udp"))
    assert "udp_" not in re.sub(r"udp \. \d+", "", host.ruleset())


@both_families
def test_a_network_cidr_has_its_timeout_and_a_container_in_it_its_own(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin, family: int
) -> None:
    """The key had no effect on the networks of the Python API."""
    container, other_container = host.container(), host.container()
    listen(stack, client, 100, family)
    settings = {"state_dir": str(plugin.state_directory), "conntrack_timeout": 7200}
    with inside(host.path):
        manager = NatManager(NatConfig.model_validate(settings))
        manager.enable_outbound_connectivity(Network("fabric0", "fabric0", SUBNETS["cni0"][family]))
    plugin.add(other_container, conntrackTimeout=600)
    for namespace, timeout_s in ((container, 7200), (other_container, 600)):
        port = establish(stack, namespace, CLIENT[family], 100)
        assert timeout_s - 10 < remaining_s(host, family, port, 100) <= timeout_s
    host.run("nft", "flush", "ruleset")
    assert plugin.operate("reconcile").returncode == 0
    port = establish(stack, container, CLIENT[family], 100)
    assert 7190 < remaining_s(host, family, port, 100) <= 7200


def test_a_configured_timeout_survives_a_lost_table(
    stack: ExitStack, host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    listen(stack, container, 81, 4)
    kept = plugin.add(container, publish(8081, 81), conntrackTimeout=7200, snatAddress=HOST_SECONDARY[4])
    host.run("nft", "flush", "ruleset")
    plugin.add(other_container, network="other")
    kept.check()
    port = establish(stack, client, HOST[4], 8081)
    assert 7190 < remaining_s(host, 4, port, 8081) <= 7200
    client.serve("outside", 80)
    assert container.ask(CLIENT[4], 80).source == HOST_SECONDARY[4]


@pytest.mark.parametrize("how", ["a changed rule and ADD", "a changed rule and reconcile", "another version"])
def test_open_connections_keep_their_timeout_when_the_table_is_rebuilt(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin, how: str
) -> None:
    """At 1.0.0 (defect 36) the table was deleted with its `ct timeout` objects: open connections went from an hour to five days."""
    default, configured = host.container(), host.container()
    for container in (default, configured):
        listen(stack, container, 80, 4)
    plugin.add(default, publish(8080))
    longer = plugin.add(configured, publish(8081), network="other", conntrackTimeout=7200)
    opened = {3600: open_connection(stack, client, HOST[4], 8080), 7200: open_connection(stack, client, HOST[4], 8081)}
    if how == "another version":
        host.run("nft", "delete set inet quantum layout; add set inet quantum unknown { type ipv4_addr; }")
    else:
        host.run("nft", "insert rule inet quantum host_ports tcp dport 8080 accept")
    if how.endswith("reconcile"):
        assert plugin.operate("reconcile").returncode == 0
    else:
        plugin.add(host.container(), publish(8082))
    assert "unknown" not in host.run("nft", "list sets")
    assert "tcp dport 8080 accept" not in host.ruleset()
    for timeout_s, connection in opened.items():
        connection.sendall(b"?")
        assert (
            timeout_s - 10 < remaining_s(host, 4, connection.getsockname()[1], connection.getpeername()[1]) <= timeout_s
        )
    # A time-out that stays although no attachment needs it is not in the way of the next that does.
    longer.delete()
    host.run("nft", "insert rule inet quantum host_ports tcp dport 8080 accept")
    assert plugin.operate("reconcile").returncode == 0
    assert "timeout4_7200" not in host.ruleset()
    plugin.add(host.container(), publish(8083), network="third", conntrackTimeout=7200)
    assert plugin.operate("reconcile", "--dry-run").returncode == 0


@pytest.mark.frozen
def test_conditions_let_only_matching_connections_in(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    client.ip("address add 198.51.100.77/24 dev uplink", "address add 2001:db8:1::77/64 dev uplink nodad")
    web = plugin.add(
        container,
        publish(8080),
        publish(8081, hostIP=HOST[4]),
        publish(8080, protocol="udp"),
        conditionsV4=["ip", "saddr", "!=", "198.51.100.77"],
        conditionsV6=["ip6 saddr != { 2001:db8:1::77, 2001:db8:1::78 }"],
    )
    for port, protocol in ((8080, "tcp"), (8081, "tcp"), (8080, "udp")):
        assert client.ask(HOST[4], port, protocol, source=CLIENT[4]).server == "web"
    assert client.ask(HOST[6], 8080, source=CLIENT[6]).server == "web"
    for address, source in ((HOST[4], "198.51.100.77"), (HOST[6], "2001:db8:1::77")):
        with pytest.raises(Refused, match="8080"):
            client.ask(address, 8080, source=source)
    web.check()
    web.delete()
    assert client.is_refused(HOST[4], 8080)
    assert host.elements() == {}


def test_conditions_of_one_network_do_not_apply_to_another(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """With portmap, the last network's conditions apply to all."""
    other_container.serve("other", 80)
    plugin.add(container, publish(8080))
    plugin.add(other_container, publish(8081), network="other", conditionsV4=["ip saddr 192.0.2.1"])
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)
    assert client.ask(HOST[6], 8081).server == "other"


def test_conditions_survive_a_lost_table(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080), conditionsV4=["ip saddr 192.0.2.1"])
    host.run("nft", "flush", "ruleset")
    plugin.add(other_container, network="other")
    web.check()
    assert client.is_refused(HOST[4], 8080)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ip saddr 192.0.2.1 drop"], 7),
        (["ip saddr 192.0.2.1; add rule inet quantum guard accept"], 7),
        (["-s", "192.0.2.1"], 7),
        (["ip", "saddr", "nonsense"], 7),
        (["limit", "rate", "5/second"], 7),
    ],
)
def test_an_invalid_condition_is_refused_and_nothing_changes(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    words: list[str],
    code: int,
) -> None:
    plugin.add(other_container, publish(9000))
    before = host.elements().keys()
    with pytest.raises(PluginError, match="onditions") as caught:
        plugin.add(container, publish(8080), network="other", conditionsV4=words)
    assert caught.value.code == code
    assert host.elements().keys() == before
    assert client.is_refused(HOST[4], 8080)
    assert not (plugin.state_directory / "attachments" / container.id).exists()


@pytest.mark.parametrize(
    "text", ["limit rate 5/second", "ip saddr 192.0.2.1 counter", "meta mark set 1", "ip saddr 192.0.2.1 drop"]
)
def test_conditions_that_nft_reads_as_statements_are_refused(host: Host, text: str) -> None:
    with inside(host.path):
        libnftables._check_conditions(4, "ip saddr != 192.0.2.1 tcp dport { 80, 443 }")
        with pytest.raises(CniError, match="is more than matches"):
            libnftables._check_conditions(4, text)
    assert "rehearsal" not in host.run("nft", "list", "ruleset")


@pytest.mark.frozen
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_with_ipv6_localhost_the_host_reaches_the_container_on_ipv6_loopback(
    host: Host, client: Namespace, container: Container, plugin: Plugin, protocol: str
) -> None:
    web = plugin.add(
        container,
        publish(8080, protocol=protocol),
        publish(8081, protocol=protocol, hostIP="::1"),
        ipv6Localhost=True,
    )
    assert host.ask("::1", 8080, protocol).server == "web"
    assert host.ask("::1", 8081, protocol).server == "web"
    assert host.ask(HOST[6], 8080, protocol).server == "web"
    assert client.is_refused(HOST[6], 8081, protocol)
    web.check()
    web.delete()
    assert host.is_refused("::1", 8080, protocol)


def test_ipv6_localhost_leaves_other_ports_of_loopback_alone(host: Host, container: Container, plugin: Plugin) -> None:
    host.serve("local", 9000, "::1")
    plugin.add(container, publish(8080), ipv6Localhost=True)
    assert host.ask("::1", 9000) == ("local", "::1")


def test_other_hosts_cannot_use_the_alias_of_ipv6_localhost(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    alias = "fd71:6e61:7400::1"
    host.serve("local", 9000, "::1")
    plugin.add(container, publish(8080), publish(8081, hostIP="::1"), ipv6Localhost=True)
    client.ip(f"route add {alias} via {HOST[6]}")
    for namespace in (client, other_container):
        for port in (8080, 8081, 9000):
            assert namespace.cannot_reach(alias, port)
        namespace.ip(f"address add {alias}/128 dev lo nodad")
        assert namespace.cannot_reach(HOST[6], 8080, source=alias)


def test_ipv6_localhost_used_by_a_service_is_a_conflict(host: Host, container: Container, plugin: Plugin) -> None:
    host.serve("local", 8080, "::1")
    with pytest.raises(PluginError, match=r"listens on \[::1\]:8080"):
        plugin.add(container, publish(8080), ipv6Localhost=True)
    assert "fd71" not in host.run("ip", "address", "show", "dev", "lo")
