"""The Python API, tested with packets, and the examples of the documentation, run unchanged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat import (
    InvalidArgument,
    NatConfig,
    NatManager,
    NatType,
    Network,
    NetworkOverlap,
    PortInUse,
    PortRangeFull,
    Protocol,
)

from .peer import inside
from .plugin import Plugin, publish
from .topology import CLIENT, HOST, HOST_SECONDARY, SUBNETS, Container, Host, Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.py"))
both_families = pytest.mark.parametrize("family", [4, 6])
pytestmark = pytest.mark.behaviour


@pytest.fixture
def manager(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NatManager]:
    """Returns a function that makes a manager for the plugin's records, with the given configuration keys."""
    if plugin.programs is not None:
        monkeypatch.setenv("PATH", str(plugin.programs), prepend=":")

    def make(**keys: object) -> NatManager:
        if plugin.programs is not None:
            keys["backend"] = "iptables"
        return NatManager(NatConfig.model_validate({"state_dir": str(plugin.state_directory), **keys}))

    return make


def network(family: int, bridge: str = "cni0") -> Network:
    return Network("fabric0", "fabric0", SUBNETS[bridge][family])


@pytest.mark.frozen
@both_families
def test_an_enabled_network_is_masqueraded_outside_and_not_within(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    manager: Callable[..., NatManager],
    family: int,
) -> None:
    client.serve("outside", 80)
    host.set_bridge_netfilter("1")
    with inside(host.path):
        rule = manager().enable_outbound_connectivity(network(family))
    assert (rule.nat_type, rule.source_address, rule.translated_address) == (
        NatType.MASQUERADE,
        SUBNETS["cni0"][family],
        None,
    )
    for namespace in (container, other_container):
        assert namespace.ask(CLIENT[family], 80).source == HOST[family]
    assert other_container.ask(container.address[family], 80).source == other_container.address[family]
    with inside(host.path):
        manager().disable_outbound_connectivity(network(family))
        manager().disable_outbound_connectivity(network(family))
    assert container.cannot_reach(CLIENT[family], 80)
    assert host.installed() == set()


@both_families
def test_a_network_can_have_a_fixed_source_and_an_interface(
    host: Host, client: Namespace, container: Container, manager: Callable[..., NatManager], family: int
) -> None:
    client.serve("outside", 80)
    with inside(host.path):
        rule = manager(snat_address=[HOST_SECONDARY[family]], external_interface="uplink").enable_outbound_connectivity(
            network(family)
        )
    assert (rule.nat_type, rule.translated_address, rule.external_interface) == (
        NatType.SNAT,
        HOST_SECONDARY[family],
        "uplink",
    )
    assert container.ask(CLIENT[family], 80).source == HOST_SECONDARY[family]
    with inside(host.path):
        manager(external_interface="cni1").enable_outbound_connectivity(network(family))
    assert container.cannot_reach(CLIENT[family], 80)


def test_overlapping_networks_are_refused(host: Host, manager: Callable[..., NatManager]) -> None:
    with inside(host.path):
        manager().enable_outbound_connectivity(Network("wide", "wide", "172.20.0.0/16"))
        manager().enable_outbound_connectivity(Network("next", "next", "172.21.0.0/16"))
        before = host.installed()
        with pytest.raises(NetworkOverlap, match=r"overlaps network wide \(172.20.0.0/16\)") as caught:
            manager().enable_outbound_connectivity(Network("narrow", "narrow", "172.20.3.0/24"))
    assert caught.value.code == 100
    assert host.installed() == before


@pytest.mark.frozen
@both_families
def test_a_port_mapping_works_until_it_is_removed(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    manager: Callable[..., NatManager],
    family: int,
) -> None:
    container.serve("second", 81)
    with inside(host.path):
        api = manager(port_range="40000-40009")
        api.enable_outbound_connectivity(network(family))
        web = api.create_port_mapping("container123", container.address[family], 80, 8080)
        second = api.create_port_mapping("container123", container.address[family], 81, protocol=Protocol.UDP)
        again = api.create_port_mapping("container123", container.address[family], 81, protocol="udp")
    assert (web.container_id, web.container_ip, web.container_port, web.host_port, web.protocol, web.host_ip) == (
        "container123", container.address[family], 80, 8080, Protocol.TCP, None,
    )  # fmt: skip
    assert (second.host_port, again.host_port) == (40000, 40001)
    assert client.ask(HOST[family], 8080) == ("web", CLIENT[family])
    assert client.ask(HOST[family], 40001, "udp").server == "second"
    assert other_container.ask(HOST[family], 8080).server == "web"
    with inside(host.path):
        assert api.port_mappings() == [web, second, again]
        api.remove_port_mapping(web)
        api.remove_port_mapping(web)
    assert client.is_refused(HOST[family], 8080)
    assert client.ask(HOST[family], 40000, "udp").server == "second"
    with inside(host.path):
        for mapping in (second, again):
            api.remove_port_mapping(mapping)
        assert api.port_mappings() == []


def test_the_api_and_the_plugin_share_records(
    host: Host, container: Container, other_container: Container, plugin: Plugin, manager: Callable[..., NatManager]
) -> None:
    web = plugin.add(container, publish(8080))
    with inside(host.path):
        api = manager()
        with pytest.raises(PortInUse, match=f"8080/tcp is already in use by container {container.id}"):
            api.create_port_mapping("other", other_container.address[4], 80, 8080)
        api.create_port_mapping("other", other_container.address[4], 80, 8081)
        kinds = [(rule.nat_type, rule.destination_address, rule.destination_port) for rule in api.rules()]
    assert (NatType.DNAT, "0.0.0.0", 8080) in kinds
    assert (NatType.DNAT, "0.0.0.0", 8081) in kinds
    web.delete()
    line = [*plugin.command, "--state-dir", str(plugin.state_directory), "list"]
    listed = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "python-api" in listed
    assert "8081->80/tcp" in listed


def test_api_attachments_survive_a_lost_table(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    manager: Callable[..., NatManager],
) -> None:
    client.serve("outside", 80)
    with inside(host.path):
        manager(snat_address=[HOST_SECONDARY[4]]).enable_outbound_connectivity(network(4))
        manager().create_port_mapping("other", container.address[4], 80, 8080)
    host.run("nft", "flush", "ruleset")
    plugin.add(host.container("cni1"), network="second")
    assert client.ask(HOST[4], 8080).server == "web"
    assert other_container.ask(CLIENT[4], 80).source == HOST_SECONDARY[4]
    assert other_container.ask(HOST[4], 8080).server == "web"


@pytest.mark.nftables
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run(host: Host, example: Path) -> None:
    host.ip("link add fabric0 type bridge", "address add 172.20.0.1/16 dev fabric0", "link set fabric0 up")
    printed = host.run(sys.executable, "-W", "error", str(example))
    assert (
        printed
        == {
            "outbound": "masquerade 172.20.0.0/16 -> the outgoing interface's address\n[]\n",
            "port_mapping": "80/tcp is published on 8080: python-api/container123/172.20.0.2/0.0.0.0:8080->80/tcp\n"
            "53/udp is published on 32768: python-api/container123/172.20.0.2/0.0.0.0:32768->53/udp\n"
            "0.0.0.0:8080 -> 172.20.0.2:80\n0.0.0.0:32768 -> 172.20.0.2:53\n",
            "conflict": "host port 8080/tcp is already in use by container first (172.20.0.2 on network python-api)\n"
            "published on 32768 instead\n",
        }[example.stem]
    )
    assert host.elements() == {}


@pytest.mark.nftables
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: Network("a/b", "a/b", "10.0.0.0/8"), "network ID 'a/b'"),
        (lambda _: Network("n", "n", "10.0.0.1/8"), "has host bits set"),
        (lambda _: Network("n", "n", "10.0.0.0/8", "11.0.0.1"), "gateway 11.0.0.1 is not in 10.0.0.0/8"),
        (lambda _: Network("n", "n", "0.0.0.0/0"), "contains all addresses"),
        (lambda api: api(masquerade="ipv4").enable_outbound_connectivity(Network("n", "n", "fd00::/64")), "is IPv6"),
        (lambda api: api().create_port_mapping("../x", "10.88.0.2", 80), "container ID '../x'"),
        (lambda api: api().create_port_mapping("x", "10.88.0.2", 0), "containerPort is 0"),
        (lambda api: api().create_port_mapping("x", "10.88.0.2", 80, 70000), "hostPort is 70000"),
        (lambda api: api().create_port_mapping("x", "10.88.0.2", 80, protocol="icmp"), "protocol is 'icmp'"),
        (lambda api: api().create_port_mapping("x", "10.88.0.2", 80, host_ip="::"), "of different address families"),
        (lambda api: api().create_port_mapping("x", "example", 80), "'example' does not appear to be"),
    ],
)
def test_invalid_arguments_are_refused_with_a_reason(
    host: Host, manager: Callable[..., NatManager], make: Callable[[Callable[..., NatManager]], object], said: str
) -> None:
    with inside(host.path), pytest.raises(InvalidArgument) as caught:
        make(manager)
    assert said in caught.value.message
    assert host.installed() == set()


@pytest.mark.nftables
def test_the_shapes_of_the_nat_module(host: Host, container: Container, manager: Callable[..., NatManager]) -> None:
    network = Network(id="net-1", name="a fabric", cidr="172.20.0.0/16", gateway="172.20.0.1")
    before = time.time()
    with inside(host.path), manager() as api:
        outbound = api.enable_outbound_connectivity(network)
        mapping = api.create_port_mapping("container123", container.address[4], 80, 8080)
        time.sleep(0.01)
        later = api.create_port_mapping("container123", container.address[4], 81, 8081, host_ip=HOST[4])
        assert api.port_mappings() == [mapping, later]
        (rule,) = [rule for rule in api.rules() if rule.destination_port == 8081]
    assert before < mapping.created_at.timestamp() < later.created_at.timestamp() < time.time()
    assert mapping.id != later.id
    assert (later.host_ip, later.description) == (
        HOST[4], f"port 81/tcp of container container123 ({container.address[4]} on network python-api)",
    )  # fmt: skip
    assert (outbound.source_address, outbound.source_port, outbound.destination_address) == (
        "172.20.0.0/16", None, "0.0.0.0/0",
    )  # fmt: skip
    assert (rule.destination_address, rule.translated_address, rule.translated_port, rule.created_at) == (
        HOST[4], container.address[4], 81, later.created_at,
    )  # fmt: skip
    assert (rule.external_interface, rule.internal_interface) == (None, "cni0")
    with inside(host.path):
        api.disable_outbound_connectivity("net-1")
        api.remove_port_mapping(later.id)
        api.remove_port_mapping(later.id)
        assert api.port_mappings() == [mapping]


@pytest.mark.nftables
def test_creating_a_mapping_again_returns_the_first(
    host: Host, client: Namespace, container: Container, manager: Callable[..., NatManager]
) -> None:
    with inside(host.path):
        api = manager()
        first = api.create_port_mapping("web", container.address[4], 80, 8080)
        host.run("nft", "delete", "table", "inet", "quantum")
        assert api.create_port_mapping("web", container.address[4], 80, 8080) == first
        with pytest.raises(PortInUse, match="already published by"):
            api.create_port_mapping("web", container.address[4], 81, 8080)
        assert api.port_mappings() == [first]
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.nftables
def test_a_failure_has_the_class_of_what_a_program_can_do_about_it(
    host: Host, container: Container, plugin: Plugin, manager: Callable[..., NatManager]
) -> None:
    plugin.add(container, publish(8080))
    with inside(host.path):
        api = manager(port_range="40000-40000")
        (of_plugin,) = api.port_mappings()
        with pytest.raises(InvalidArgument, match="was not made by this API"):
            api.remove_port_mapping(of_plugin.id)
        api.create_port_mapping("other", "10.88.0.77", 80)
        with pytest.raises(PortRangeFull) as full:
            api.create_port_mapping("other", "10.88.0.77", 81)
    assert full.value.code == 107
    for keys, said in (
        ({"portrange": "1-2"}, "unknown key 'portrange'; did you mean port_range?"),
        ({"port_range": "2-1"}, "not an ascending range"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            NatManager(keys)
        with pytest.raises(ValueError, match=said):
            NatConfig(**keys)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        NatManager("8080")  # type: ignore[arg-type]


@pytest.mark.nftables
def test_tasks_and_threads_can_share_a_manager(
    host: Host, container: Container, manager: Callable[..., NatManager]
) -> None:
    """A task runs each call in a thread, so that the event loop goes on."""
    ports = range(9000, 9012)

    def create(api: NatManager, port: int) -> str:
        with inside(host.path):  # a new thread begins in the namespace of the process
            return api.create_port_mapping("web", container.address[4], 80, port).id

    async def create_all(api: NatManager) -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(create, api, port) for port in ports))

    api = manager()
    made = asyncio.run(create_all(api))
    with inside(host.path):
        assert sorted(mapping.id for mapping in api.port_mappings()) == sorted(made)
        asyncio.run(remove_all(api, made, host))
        assert api.port_mappings() == []
    assert host.installed() == set()


async def remove_all(api: NatManager, made: list[str], host: Host) -> None:
    def remove(identity: str) -> None:
        with inside(host.path):
            api.remove_port_mapping(identity)

    await asyncio.gather(*(asyncio.to_thread(remove, identity) for identity in made))
