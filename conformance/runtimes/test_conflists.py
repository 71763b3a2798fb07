"""The lists in docs/conflists that are not for a certain runtime; all other tests use those that are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kernel.topology import CLIENT, HOST, HOST_SECONDARY

from .runtime import Network, Port

if TYPE_CHECKING:
    from .cluster import Cluster

TABLE = "Conflists to copy"
SUBJECTS = ("cnitool",)  # libcni reads them for every runtime


def network(cluster: Cluster, name: str, number: int, *families: int) -> Network:
    """Configure a new network from a list."""
    subnets = {4: f"10.{number}.0.0/24", 6: f"fd{number}::/64"}
    made = Network(name, f"copy{number}", {family: subnets[family] for family in families})
    cluster.runtime.write_conflist(name, name, made)
    return made


def test_dual_stack(cluster: Cluster) -> None:
    """dual-stack: ports on both families, masquerade for IPv4 only."""
    copied = network(cluster, "dual-stack", 72, 4, 6)
    cluster.client.ip(f"route add {copied.subnets[6]} via {HOST[6]}")
    container = cluster.run(Port(8080), networks=(copied,))
    for family, source in ((4, HOST[4]), (6, container.addresses[copied.name][6])):
        cluster.serves(container, cluster.client.path, HOST[family], 8080)
        assert cluster.answer(container.netns, CLIENT[family], 80) == ("outside", source)


def test_static_snat(cluster: Cluster) -> None:
    """static-snat: containers have the configured source address outside."""
    container = cluster.run(networks=(network(cluster, "static-snat", 73, 4),))
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST_SECONDARY[4])


def test_shared_ports(cluster: Cluster) -> None:
    """shared-ports: two containers behind one host port."""
    copied = network(cluster, "shared-ports", 74, 4)
    containers = [cluster.run(Port(8080), networks=(copied,)) for _ in range(2)]
    answers = [cluster.answer(cluster.client.path, HOST[4], 8080) for _ in range(8)]
    assert {answer.server for answer in answers if answer} == {container.name for container in containers}
