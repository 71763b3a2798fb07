"""ADD and DEL, repeated, in parallel and incomplete: what is left, and who owns it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.plugin import PluginError
from tests.kernel.talk import Talk
from tests.kernel.topology import (
    HOST,
    HOST_SECONDARY,
    Container,
    Host,
    Namespace,
    connect_second_network,
    keep_conntrack_enabled,
)

from .port_mapper import PORTMAP, PORTMAP_NFTABLES, PortMapper, differs, publish

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.kernel.plugin import Attachment

TABLE = "ADD and DEL, repeated and in parallel"
AT_ONCE = 10


def in_parallel(mapper: PortMapper, verb: str, attachments: list[Attachment]) -> None:
    """Call the plugin for all attachments in parallel; each call must succeed."""
    started = [mapper.start(verb, attachment.configuration, attachment.container) for attachment in attachments]
    for process in started:
        mapper.finish(process)


def test_repeated_add(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """ADD may be repeated, and one DEL removes everything."""
    web = mapper.add(container, publish(8080)).add()
    assert client.ask(HOST[4], 8080).server == "web"
    web.delete()
    assert client.is_refused(HOST[4], 8080)
    assert container.address[4] not in host.run("nft", "list", "ruleset")


def test_repeated_del(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """DEL may be called before any ADD, and may be repeated."""
    web = mapper.attachment(container, publish(8080))
    web.delete()
    web.add()
    web.delete()
    web.delete()
    assert client.is_refused(HOST[4], 8080)


@differs(PORTMAP, "They disturb each other, and sometimes some fail.", raises=PluginError, always=False)
def test_parallel_del(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """Ten parallel DELs of one container all succeed."""
    web = mapper.add(container, publish(8080))
    in_parallel(mapper, "DEL", [web] * AT_ONCE)
    assert client.is_refused(HOST[4], 8080)
    assert container.address[4] not in host.run("nft", "list", "ruleset")


def test_plugins_510_parallel_containers(
    client: Namespace, host: Host, container: Container, mapper: PortMapper
) -> None:
    """Five containers are added and removed in parallel; a sixth keeps its port throughout."""
    mapper.add(container, publish(8080))
    crowd = [host.container() for _ in range(5)]
    for number, member in enumerate(crowd):
        member.serve(f"member{number}", 80)
    attachments = [mapper.attachment(member, publish(9000 + n)) for n, member in enumerate(crowd)]
    in_parallel(mapper, "ADD", attachments)
    assert [client.ask(HOST[4], 9000 + n).server for n in range(5)] == [f"member{n}" for n in range(5)]
    in_parallel(mapper, "DEL", attachments)
    assert all(client.is_refused(HOST[4], 9000 + n) for n in range(5))
    assert client.ask(HOST[4], 8080).server == "web"


def test_rules_of_others(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """Another program's translations keep working, during and after."""
    host.serve("other", 7000)
    for program in ("iptables", "ip6tables"):
        redirect = "-p tcp --dport 7777 -j REDIRECT --to-ports 7000"
        host.run(program, "-t", "nat", "-A", "PREROUTING", *redirect.split())
    web = mapper.add(container, publish(8080))
    assert client.ask(HOST[4], 7777).server == "other"
    web.delete()
    assert client.ask(HOST[4], 7777).server == "other"
    assert client.ask(HOST[6], 7777).server == "other"


def test_del_without_namespace(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """DEL without a network namespace and without prevResult removes the mapping."""
    mapper.add(container, publish(8080)).delete_again_like_containerd()
    assert client.is_refused(HOST[4], 8080)


@differs(PORTMAP, "Without port mappings in the call it does nothing, and the rules remain.")
def test_del_without_mappings(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """DEL without port mappings in the call, as after a loss of the runtime's cache, removes the mapping."""
    mapper.add(container, publish(8080))
    mapper.attachment(container, prevResult=None).delete()
    assert client.is_refused(HOST[4], 8080)


@differs(PORTMAP_NFTABLES, "Rules are identified by the container's ID only.")
def test_two_networks(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """If a container is on two networks with the same ports, DEL on one keeps the other's."""
    second = connect_second_network(container)
    first_network = mapper.add(container, publish(8080))
    mapper.add(second, publish(8080), network="other")
    first_network.delete()
    assert client.ask(HOST[4], 8080).server == "web"


@differs(PORTMAP, "Both ADDs succeed, but only one container gets the traffic, without an error.")
def test_crio_1538_conflict(
    client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """A host port that another container uses is refused, and the error names the owner."""
    mapper.add(container, publish(8080))
    with pytest.raises(PluginError, match=container.id):
        mapper.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "web"


@differs(PORTMAP, "The container takes over the process's traffic.")
def test_podman_17719_conflict_with_a_process(
    host: Host, client: Namespace, container: Container, mapper: PortMapper
) -> None:
    """A host port that a process on the host listens on is refused, and the process keeps it."""
    host.serve("process", 8080)
    with pytest.raises(PluginError, match="8080"):
        mapper.add(container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "process"


def test_kubernetes_78350_one_port_on_two_addresses(
    client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """One host port on two addresses of the host, or for two protocols, can lead to different containers."""
    other_container.serve("other", 80)
    mapper.add(container, publish(8080, hostIP=HOST[4]))
    mapper.add(other_container, publish(8080, hostIP=HOST_SECONDARY[4]), publish(8080, hostIP=HOST[4], protocol="udp"))
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST_SECONDARY[4], 8080).server == "other"
    assert client.ask(HOST[4], 8080, "udp").server == "other"


@differs(PORTMAP, "Only ADD deletes conntrack entries; connections to a removed container continue (plugins#1190).")
def test_plugins_1190_udp_after_del(
    stack: ExitStack, host: Host, client: Namespace, container: Container, mapper: PortMapper
) -> None:
    """After DEL, a UDP client that keeps sending no longer reaches the container."""
    keep_conntrack_enabled(host)
    web = mapper.add(container, publish(5353, protocol="udp"))
    talk = Talk(stack, client, HOST[4], 5353)
    assert talk.ask() == "web"
    web.delete()
    assert talk.ask() is None


@differs(PORTMAP, "Its containers must be restarted, or the runtime must reload their network.")
def test_netavark_230_flush(
    host: Host, client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """After `nft flush ruleset`, the next ADD of any container restores the ports of all."""
    mapper.add(container, publish(8080))
    host.run("nft", "flush", "ruleset")
    mapper.add(other_container, publish(8081))
    assert client.ask(HOST[4], 8080).server == "web"
