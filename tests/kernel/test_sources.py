"""Who may reach a published port: `allowFrom` by source, `publishOn` by interface."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, HOST_SECONDARY, Container, Host, Namespace

if TYPE_CHECKING:
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])
NEAR = {4: f"{CLIENT[4]}/32", 6: f"{CLIENT[6]}/128"}  # the client of the first uplink, and nobody else
FAR = {4: "203.0.113.2", 6: "2001:db8:cb::2"}
FAR_HOST = {4: "203.0.113.1", 6: "2001:db8:cb::1"}
LOCALHOST = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture
def far(stack: ExitStack, host: Host) -> Namespace:
    """A second client, at another interface of the host, that reaches the host's addresses of the first one too."""
    namespace = Namespace("far", stack)
    host.ip(f"link add eth1 type veth peer name eth0 netns {namespace.name}", "link set eth1 up")
    namespace.ip("link set eth0 up")
    for family, length in ((4, 24), (6, 64)):
        nodad = " nodad" if family == 6 else ""
        host.ip(f"address add {FAR_HOST[family]}/{length} dev eth1{nodad}")
        namespace.ip(
            f"address add {FAR[family]}/{length} dev eth0{nodad}", f"route add default via {FAR_HOST[family]} dev eth0"
        )
    return namespace


@pytest.mark.frozen
@both_families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_only_the_allowed_clients_the_host_and_the_container_itself_get_in(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin, family: int, protocol: str
) -> None:
    neighbour, stranger = host.container(), host.container("cni1")
    plugin.add(container, publish(8080, protocol=protocol), allowFrom=[NEAR[4], NEAR[6]], ipv6Localhost=True)
    assert client.ask(HOST[family], 8080, protocol).server == "web"
    assert client.ask(HOST[family], 8080, protocol).source == CLIENT[family], "sources are as they were"
    assert far.cannot_reach(HOST[family], 8080, protocol)
    assert far.cannot_reach(FAR_HOST[family], 8080, protocol)
    for address in (HOST[family], FAR_HOST[family], LOCALHOST[family]):
        assert host.ask(address, 8080, protocol).server == "web"
    assert container.ask(HOST[family], 8080, protocol).server == "web"
    assert neighbour.cannot_reach(HOST[family], 8080, protocol)
    assert stranger.cannot_reach(HOST[family], 8080, protocol)
    assert neighbour.ask(container.address[family], 80, protocol).server == "web", "not by the host port"


@both_families
def test_a_list_for_one_family_refuses_the_other(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container, publish(8080), allowFrom=["0.0.0.0/0" if family == 4 else "::/0"])
    assert client.ask(HOST[family], 8080).server == "web"
    other = 10 - family
    assert client.cannot_reach(HOST[other], 8080)
    assert host.ask(HOST[other], 8080).server == "web"
    assert container.ask(HOST[other], 8080).server == "web"


@pytest.mark.frozen
@both_families
def test_a_mapping_has_clients_of_its_own_and_other_ports_are_open(
    host: Host,
    client: Namespace,
    far: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    family: int,
) -> None:
    mine = [f"{FAR[4]}/24".replace(".2/", ".0/"), "2001:db8:cb::/64"]
    plugin.add(container, publish(8080, allowFrom=mine), publish(8081), allowFrom=[NEAR[4], NEAR[6]])
    other_container.serve("other", 80)
    plugin.add(other_container, publish(8082), network="other")
    host.serve("own", 8083)
    assert far.ask(HOST[family], 8080).server == "web"
    assert client.cannot_reach(HOST[family], 8080)
    assert client.ask(HOST[family], 8081).server == "web"
    assert far.cannot_reach(HOST[family], 8081)
    for who in (client, far):
        assert who.ask(HOST[family], 8082).server == "other"
        assert who.ask(HOST[family], 8083).server == "own"


@both_families
def test_a_port_on_one_address_and_the_same_on_all_have_clients_of_their_own(
    client: Namespace,
    far: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    family: int,
) -> None:
    other_container.serve("all", 80)
    networks = [f"{FAR[f]}/{length}" for f, length in ((4, 32), (6, 128))]
    plugin.add(container, publish(8080, hostIP=HOST_SECONDARY[family], allowFrom=[NEAR[4], NEAR[6]]))
    plugin.add(other_container, publish(8080, allowFrom=networks), network="other")
    assert client.ask(HOST_SECONDARY[family], 8080).server == "web"
    assert far.cannot_reach(HOST_SECONDARY[family], 8080)
    assert far.ask(HOST[family], 8080).server == "all"
    assert client.cannot_reach(HOST[family], 8080)


@both_families
def test_the_ports_of_a_range_have_the_same_clients(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    for port in (20000, 20019, 20020):
        container.serve(f"web{port}", port)
    allowed = [NEAR[4], NEAR[6]]
    ports = [publish(port, port, allowFrom=allowed) for port in range(20000, 20020)]
    web = plugin.add(container, *ports, publish(20020, 20020))
    assert "20000-20019" in host.ruleset()
    for port in (20000, 20019):
        assert client.ask(HOST[family], port).server == f"web{port}"
        assert far.cannot_reach(HOST[family], port)
    assert far.ask(HOST[family], 20020).server == "web20020"
    web.check()
    web.delete()
    assert not host.installed()


@both_families
def test_conditions_and_allowed_sources_must_both_match(
    client: Namespace, far: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    keys: dict[str, Any] = {
        "conditionsV4": ["tcp", "sport", "<", "40000"],
        "conditionsV6": ["tcp", "sport", "<", "40000"],
    }
    plugin.add(container, publish(8080), allowFrom=[NEAR[4], NEAR[6]], **keys)
    for who in (client, far):
        who.set_sysctl("ipv4/ip_local_port_range", "30000 39999")
    assert client.ask(HOST[family], 8080).server == "web"
    assert far.cannot_reach(HOST[family], 8080)
    client.set_sysctl("ipv4/ip_local_port_range", "50000 60000")
    assert client.is_refused(HOST[family], 8080), "conditions do not publish the port"


@both_families
@pytest.mark.parametrize("affinity", ["none", "client"])
def test_a_shared_port_has_one_list(
    host: Host, client: Namespace, far: Namespace, plugin: Plugin, family: int, affinity: str
) -> None:
    first, second, third = (host.container() for _ in range(3))
    first.serve("first", 80)
    second.serve("second", 80)
    keys: dict[str, Any] = {"sharedPorts": [8080], "sharedAffinity": affinity, "allowFrom": [NEAR[4], NEAR[6]]}
    attachments = [plugin.add(one, publish(8080), **keys) for one in (first, second)]
    assert {client.ask(HOST[family], 8080).server for _ in range(20)} <= {"first", "second"}
    assert far.cannot_reach(HOST[family], 8080)
    for other in ({}, {"allowFrom": [NEAR[4]]}, {"publishOn": ["eth1"]}):
        with pytest.raises(PluginError, match="shared by other containers in another way") as caught:
            plugin.add(third, publish(8080), network="other", **{**keys, "allowFrom": None, **other})
        assert caught.value.code == 100
    attachments[0].delete()
    attachments[1].check()
    assert client.ask(HOST[family], 8080).server == "second"
    assert far.cannot_reach(HOST[family], 8080)
    attachments[1].delete()
    assert not host.installed()


@pytest.mark.frozen
@both_families
def test_another_list_replaces_the_first_whole(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """A wider network and a narrower one in it look alike to the kernel's look-up."""
    wide = ["0.0.0.0/0", "::/0"]
    narrow = [NEAR[4], NEAR[6]]
    for allowed, far_may in ((wide, True), (narrow, False), (wide, True), (None, True), (narrow, False)):
        web = plugin.add(container, publish(8080), allowFrom=allowed)
        web.check()
        assert client.ask(HOST[family], 8080).server == "web"
        assert far.cannot_reach(HOST[family], 8080) is not far_may
        assert plugin.operate("reconcile", "--dry-run").returncode == 0
    web.delete()
    assert not host.installed()


def test_the_next_owner_of_a_port_has_nothing_of_the_former_ones_filters(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin
) -> None:
    """Also where nothing is left of the former owner's record."""
    for lose_record in (False, True):
        former = host.container()
        plugin.add(former, publish(8080), allowFrom=[NEAR[4]], publishOn=["eth1"], network="former")
        former.remove()
        if lose_record:
            for record in plugin.state_directory.glob("attachments/former/**/*.json"):
                record.unlink()
            assert plugin.operate("reconcile").returncode == 0
        web = plugin.add(container, publish(8080))
        assert far.ask(HOST[4], 8080).server == "web"
        assert client.ask(HOST[4], 8080).server == "web"
        assert not {name for name in host.elements() if re.match("(host_ip_)?(sources|restricted|interfaces)", name)}
        web.delete()


@pytest.mark.parametrize("name", ["sources4", "restricted4", "interfaces4", "policies4"])
def test_a_lost_element_is_noticed_and_comes_back(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin, name: str
) -> None:
    web = plugin.add(container, publish(8080), allowFrom=["192.0.2.0/24", NEAR[4]], publishOn=["uplink", "eth1"])
    host.run("nft", f"flush set inet quantum {name}" if name != "policies4" else f"flush map inet quantum {name}")
    if name == "interfaces4":
        assert client.is_refused(HOST[4], 8080)
    elif name != "policies4":
        assert far.cannot_reach(HOST[4], 8080)
    with pytest.raises(PluginError, match=f"{name} .* is missing"):
        web.check()
    assert plugin.operate("reconcile").returncode == 0
    web.check()
    assert far.cannot_reach(HOST[4], 8080)
    host.run("nft", "flush ruleset")
    plugin.add(host.container(), publish(8081), network="other")
    web.check()
    assert far.cannot_reach(HOST[4], 8080)
    assert client.ask(HOST[4], 8080).server == "web"


def test_refused_packets_are_counted(client: Namespace, far: Namespace, container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080), publish(8080, protocol="udp"), allowFrom=[NEAR[4], NEAR[6]])

    def scraped(name: str) -> float:
        lines = plugin.operate("metrics").stdout
        return sum(float(value) for value in re.findall(rf'^{name}\{{.*network="net".*\}} (\S+)$', lines, re.MULTILINE))

    assert scraped("nat_refused_packets_total") == 0
    for _ in range(3):
        assert far.cannot_reach(HOST[4], 8080, "udp")
    assert far.cannot_reach(HOST[6], 8080, "udp")
    assert client.ask(HOST[4], 8080).server == "web"
    assert scraped("nat_refused_packets_total") == 4
    assert scraped("nat_connections_total") == 1
    (shown,) = json.loads(plugin.operate("show", container.id, "--json").stdout)
    assert (shown["refused"], shown["connections"]) == (4, 1)
    said = plugin.operate("show", container.id).stdout
    assert re.search(r"^Refused: +4 packets$", said, re.MULTILINE)
    assert f"{NEAR[4]}, {NEAR[6]} (8080->80/tcp)" in said
    web.delete()
    assert scraped("nat_refused_packets_total") == 4, "they stay counted"


@pytest.mark.usefixtures("far")
def test_doctor_says_why_a_packet_is_refused(container: Container, plugin: Plugin) -> None:
    ports = (
        publish(8080),
        publish(8081, publishOn=["eth1"], allowFrom=[f"{FAR[4]}/32"]),
        publish(8082, publishOn=["lo"]),
    )
    plugin.add(container, *ports, allowFrom=[NEAR[4]])

    def trace(port: int, source: str = "") -> tuple[int, str]:
        asked = ("--packet", f"tcp:{HOST[4]}:{port}", *(("--from", source) if source else ()))
        done = plugin.operate("doctor", *asked)
        return done.returncode, done.stdout

    assert trace(8080, CLIENT[4])[0] == 0
    assert trace(8080, HOST[4])[0] == 0
    code, said = trace(8080, FAR[4])
    assert code == 1
    assert f"dropped: chain publish_by_source: {FAR[4]} is not in allowFrom, which lets in {NEAR[4]}" in said
    assert "add --from ADDRESS" in trace(8080)[1]
    assert trace(8081, FAR[4])[0] == 0
    assert "it comes in by uplink, not by eth1 (publishOn)" in trace(8081, CLIENT[4])[1]
    assert trace(8082, HOST[4])[0] == 0
    assert "not by lo (publishOn)" in trace(8082, FAR[4])[1]


@pytest.mark.frozen
@both_families
def test_a_port_is_published_on_an_interface_whatever_its_addresses(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    web = plugin.add(container, publish(8080), publishOn=["eth1"])
    assert far.ask(FAR_HOST[family], 8080).server == "web"
    assert far.ask(HOST[family], 8080).server == "web", "the interface counts, not whose address it is"
    assert client.is_refused(HOST[family], 8080)
    assert host.is_refused(HOST[family], 8080)
    assert host.is_refused(FAR_HOST[family], 8080)
    assert container.is_refused(HOST[family], 8080)
    new, length = {4: ("203.0.113.77", 24), 6: ("2001:db8:cb::77", 64)}[family]
    host.ip(f"address add {new}/{length} dev eth1{' nodad' if family == 6 else ''}")
    assert far.ask(new, 8080).server == "web"
    web.check()


@both_families
def test_lo_stands_for_clients_of_the_host(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container, publish(8080), publishOn=["lo"], ipv6Localhost=True)
    for address in (HOST[family], LOCALHOST[family]):
        assert host.ask(address, 8080).server == "web"
    assert client.is_refused(HOST[family], 8080)
    assert container.is_refused(HOST[family], 8080)


@both_families
def test_without_lo_the_hosts_own_service_on_localhost_stays(
    host: Host, far: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    plugin.add(container, publish(8080), publishOn=["eth1"], ipv6Localhost=True)
    host.serve("own", 8080)
    assert host.ask(LOCALHOST[family], 8080).server == "own"
    assert far.ask(HOST[family], 8080).server == "web"


@both_families
def test_address_interface_and_source_must_all_match(
    host: Host, client: Namespace, far: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    far_only = [f"{FAR[4]}/32", f"{FAR[6]}/128"]
    interfaces = ["eth1", container.bridge]
    plugin.add(container, publish(8080, hostIP=HOST[family]), publishOn=interfaces, allowFrom=far_only)
    assert far.ask(HOST[family], 8080).server == "web"
    assert far.is_refused(FAR_HOST[family], 8080), "another address"
    assert client.is_refused(HOST[family], 8080), "another interface"
    assert container.ask(HOST[family], 8080).server == "web", "itself, by its bridge"
    assert host.container().cannot_reach(HOST[family], 8080), "another source"


def test_two_containers_cannot_have_a_port_by_different_filters(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080), allowFrom=["192.0.2.0/24"], publishOn=["eth0"])
    with pytest.raises(PluginError, match="host port 8080/tcp is already in use") as caught:
        plugin.add(other_container, publish(8080), allowFrom=["198.51.100.0/24"], publishOn=["eth1"], network="other")
    assert caught.value.code == 100
    assert other_container.id not in host.ruleset()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"allowFrom": []}, r"portMappings\[0\].allowFrom: \[\] is not a list with at least one entry"),
        ({"allowFrom": "192.0.2.0/24"}, "allowFrom: '192.0.2.0/24' is not a list"),
        ({"allowFrom": ["192.0.2.1/24"]}, "has bits beyond its prefix: write 192.0.2.0/24"),
        ({"allowFrom": ["::ffff:192.0.2.1"]}, "is IPv4-mapped: write it as IPv4"),
        ({"allowFrom": ["example.org"]}, "'example.org' is not an IP address"),
        ({"publishOn": ["eth*"]}, "publishOn: 'eth\\*' is not an interface name"),
        ({"publishOn": [5]}, "publishOn: 5 is not an interface name"),
    ],
)
def test_a_mapping_that_names_nobody_is_refused(
    host: Host, container: Container, plugin: Plugin, entry: dict[str, Any], said: str
) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        plugin.add(container, publish(8080, **entry))
    assert caught.value.code == 7
    assert not host.installed()


def test_one_port_for_different_clients_in_one_call_is_refused(container: Container, plugin: Plugin) -> None:
    with pytest.raises(PluginError, match="requested twice in one call") as caught:
        plugin.add(container, publish(8080, allowFrom=["192.0.2.0/24"]), publish(8080))
    assert caught.value.code == 100


@pytest.mark.parametrize("key", ["allowFrom", "publishOn"])
def test_iptables_refuses_a_mapping_for_some_clients(
    host: Host, container: Container, plugin: Plugin, key: str
) -> None:
    entry: dict[str, Any] = {key: ["192.0.2.0/24"] if key == "allowFrom" else ["eth1"]}
    with pytest.raises(PluginError, match=f"{key}, which is not supported by backend") as caught:
        plugin.add(container, publish(8080, **entry), backend="iptables")
    assert caught.value.code == 7
    assert "8080" not in host.run("iptables-save")


def test_a_table_has_nothing_for_filters_unless_they_are_used(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """Nor do the chains of ports without filters change when another port has them."""
    words = re.compile(r"\b(host_ip_)?(sources|restricted|interfaces)[46]\b|by_source|by_interface")
    plugin.add(container, publish(8080), publish(8081, hostIP=HOST[4]))
    assert not words.search(host.ruleset())

    def rules_of(chain: str) -> str:
        return host.run("nft", "list chain inet quantum", *chain.split())

    plugin.add(host.container(), publish(8082), network="conditions", conditionsV4=["ip", "saddr", "192.0.2.0/24"])
    before = {chain: rules_of(chain) for chain in ("prerouting", "host_ports", "postrouting", "published", "publish")}
    plugin.add(other_container, publish(8083), network="other", allowFrom=["192.0.2.0/24"], publishOn=["eth1"])
    assert words.search(host.ruleset())
    assert {chain: rules_of(chain) for chain in before} == before
