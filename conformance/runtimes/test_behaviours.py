"""Behaviours of every runtime. The docstrings are the rows of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.topology import CLIENT, HOST, HOST_SECONDARY

from .runtime import BACK, FRONT, NotRun, Port

if TYPE_CHECKING:
    from .cluster import Cluster

LOCALHOST = "127.0.0.1"
_IPV4_ALONE = (
    "nerdctl 1.7.7 asks for 0.0.0.0 where no address is given, which is IPv4 alone; see the rows of nerdctl alone"
)


@pytest.mark.needs("ports")
@pytest.mark.differs("nerdctl", _IPV4_ALONE)
def test_outside(cluster: Cluster) -> None:
    """Published tcp and udp ports answer another host over IPv4 and IPv6, and the container sees the client's address."""
    container = cluster.run(Port(8080, 80), Port(8053, 53, "udp"))
    for family in (4, 6):
        for port, protocol in ((8080, "tcp"), (8053, "udp")):
            answer = cluster.serves(container, cluster.client.path, HOST[family], port, protocol)
            assert answer.source == CLIENT[family]


@pytest.mark.needs("ports")
def test_range(cluster: Cluster) -> None:
    """A range of three ports is published."""
    container = cluster.run(*(Port(8080 + at, 80 + at) for at in range(3)))
    for at in range(3):
        cluster.serves(container, cluster.client.path, HOST[4], 8080 + at)
    assert cluster.ports_of(container) == {("tcp", 8080), ("tcp", 8081), ("tcp", 8082)}


@pytest.mark.needs("ports")
@pytest.mark.differs("nerdctl", "nerdctl 1.7.7 takes no IPv6 address of the host; see the rows of nerdctl alone")
def test_host_ip(cluster: Cluster) -> None:
    """A port published on 127.0.0.1 is open to the host only; one on another address, at that address only."""
    container = cluster.run(
        Port(8080, 80, host_ip=LOCALHOST),
        Port(8081, 81, host_ip=HOST_SECONDARY[4]),
        Port(8081, 81, host_ip=HOST_SECONDARY[6]),
    )
    cluster.serves(container, cluster.host.path, LOCALHOST, 8080)
    assert cluster.answer(cluster.client.path, HOST[4], 8080) is None
    for family in (4, 6):
        cluster.serves(container, cluster.client.path, HOST_SECONDARY[family], 8081)
        assert cluster.answer(cluster.client.path, HOST[family], 8081) is None


@pytest.mark.needs("ports")
@pytest.mark.differs("nerdctl", _IPV4_ALONE)
def test_host(cluster: Cluster) -> None:
    """The host reaches published ports at its own addresses and at 127.0.0.1."""
    container = cluster.run(Port(8080))
    for address in (HOST[4], HOST[6], LOCALHOST):
        cluster.serves(container, cluster.host.path, address, 8080)


@pytest.mark.needs("ports")
@pytest.mark.differs("nerdctl", _IPV4_ALONE)
def test_neighbour(cluster: Cluster) -> None:
    """The container itself, and one on the same network, reach them at the host's address."""
    container, other_container = cluster.run(Port(8080)), cluster.run()
    for asking in (other_container, container):
        for family in (4, 6):
            cluster.serves(container, asking.netns, HOST[family], 8080)


def test_masquerade(cluster: Cluster) -> None:
    """Traffic to the outside has the host's address, traffic within the network the container's own."""
    container, other_container = cluster.run(), cluster.run()
    for family in (4, 6):
        outside = cluster.answer(container.netns, CLIENT[family], 80)
        assert outside == ("outside", HOST[family])
        inside = cluster.serves(other_container, container.netns, other_container.addresses[FRONT.name][family], 80)
        assert inside.source == container.addresses[FRONT.name][family]


def test_remove(cluster: Cluster) -> None:
    """Stopping and removing a container leaves no elements or records."""
    ports = () if "ports" in cluster.runtime.lacks else (Port(8080), Port(8053, 53, "udp"))
    container = cluster.run(*ports)
    assert cluster.left_over()
    cluster.remove(container)
    assert cluster.left_over() == []
    assert cluster.answer(cluster.client.path, HOST[4], 8080) is None


@pytest.mark.needs("ports")
@pytest.mark.differs("nerdctl", _IPV4_ALONE)
def test_restart(cluster: Cluster) -> None:
    """A restarted container has its ports again."""
    container = cluster.restart(cluster.run(Port(8080), Port(8053, 53, "udp")))
    cluster.serves(container, cluster.client.path, HOST[4], 8080)
    cluster.serves(container, cluster.client.path, HOST[6], 8053, "udp")


def test_killed_hard(cluster: Cluster) -> None:
    """A container that was killed behind the runtime's back leaves nothing after the clean-up."""
    container, other = cluster.run(Port(8080)), cluster.run(Port(8090))
    cluster.kill_hard(container)
    cluster.runtime.clean_up(container)
    if "ports" not in cluster.runtime.lacks:
        cluster.serves(other, cluster.client.path, HOST[4], 8090)
        cluster.serves(cluster.run(Port(8080)), cluster.client.path, HOST[4], 8080)
    cluster.remove_all()
    cluster.wait_until_nothing_is_left()


@pytest.mark.needs("verbs")
def test_verbs(cluster: Cluster) -> None:
    """CHECK and STATUS pass, CHECK fails when the table is gone, and GC removes dead containers."""
    container = cluster.run()
    cluster.runtime.status(container)
    cluster.runtime.check(container)
    cluster.host.run("nft", "delete", "table", "inet", "quantum")
    with pytest.raises(NotRun, match=r"quantum-nat reconcile"):
        cluster.runtime.check(container)
    cluster.kill_hard(container)
    cluster.runtime.collect_garbage(container)
    assert cluster.left_over() == []


@pytest.mark.needs("status")
def test_status(cluster: Cluster) -> None:
    """While the plugin cannot work, the runtime's own status says why, by STATUS."""
    container = cluster.run()
    directory = cluster.runtime.state_directory
    kept = directory.rename(directory.with_name("kept"))
    directory.touch()
    try:
        with pytest.raises(NotRun, match=f"cannot use the state directory {directory}"):
            cluster.runtime.status(container)
    finally:
        directory.unlink()
        kept.rename(directory)
    cluster.runtime.status(container)


@pytest.mark.needs("daemon")
def test_daemon_restart(cluster: Cluster) -> None:
    """Containers keep their ports and outbound NAT while the runtime restarts, and can be removed after."""
    container = cluster.run(Port(8080))
    cluster.runtime.restart_daemon()
    cluster.serves(container, cluster.client.path, HOST[4], 8080)
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])
    cluster.remove(container)
    cluster.wait_until_nothing_is_left()


def test_fifty(cluster: Cluster) -> None:
    """Fifty containers start in parallel and are removed in parallel."""
    mappings = [Port(9000 + number) for number in range(50)]
    containers = cluster.run_all(mappings)
    if "ports" not in cluster.runtime.lacks:
        for container, port in zip(containers, mappings, strict=True):
            cluster.serves(container, cluster.client.path, HOST[4], port.host_port)
    cluster.remove_at_once(containers)
    cluster.wait_until_nothing_is_left()


@pytest.mark.needs("reload")
def test_reload(cluster: Cluster) -> None:
    """After `nft flush ruleset`, the runtime's own reload restores the ports."""
    container = cluster.run(Port(8080))
    cluster.host.run("nft", "flush", "ruleset")
    assert cluster.answer(cluster.client.path, HOST[4], 8080) is None
    cluster.runtime.reload_network(container)
    cluster.serves(container, cluster.client.path, HOST[4], 8080)


def test_live_ports(cluster: Cluster) -> None:
    """An operator publishes a port of a running container and takes it back; what is left is gone when the container is removed."""
    container = cluster.run()
    cluster.operate("publish", container.id, "8080:80")
    cluster.serves(container, cluster.client.path, HOST[4], 8080)
    cluster.operate("unpublish", container.id, "8080")
    assert cluster.answer(cluster.client.path, HOST[4], 8080) is None
    cluster.operate("publish", container.id, "8081:80")
    cluster.serves(container, cluster.client.path, HOST[4], 8081)
    cluster.remove(container)
    assert cluster.answer(cluster.client.path, HOST[4], 8081) is None


@pytest.mark.needs("reload")
def test_live_ports_reload(cluster: Cluster) -> None:
    """A port that was published on the running container comes back with the runtime's own reload."""
    container = cluster.run(Port(8081))
    cluster.operate("publish", container.id, "8080:80")
    cluster.runtime.reload_network(container)
    for port in (8080, 8081):
        cluster.serves(container, cluster.client.path, HOST[4], port)


def test_reconcile(cluster: Cluster) -> None:
    """After `nft flush ruleset`, `quantum-nat reconcile` restores ports and masquerade."""
    container = cluster.run(Port(8080))
    cluster.host.run("nft", "flush", "ruleset")
    assert cluster.answer(container.netns, CLIENT[4], 80) is None
    cluster.operate("reconcile")
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])
    if "ports" not in cluster.runtime.lacks:
        cluster.serves(container, cluster.client.path, HOST[4], 8080)


@pytest.mark.needs("several networks")
def test_two_networks(cluster: Cluster) -> None:
    """A container on two networks has its ports once, and outbound NAT on both."""
    container = cluster.run(Port(8080), networks=(FRONT, BACK))
    assert set(container.addresses) == {FRONT.name, BACK.name}
    cluster.serves(container, cluster.client.path, HOST[4], 8080)
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])
    cluster.remove(container)
    assert cluster.left_over() == []


@pytest.mark.needs("ports")
def test_conflict(cluster: Cluster) -> None:
    """A host port that is in use is refused, and the user reads who uses it."""
    holder = cluster.run(Port(8080))
    with pytest.raises(NotRun) as refused:
        cluster.run(Port(8080, 81))
    assert "8080" in str(refused.value)
    assert holder.id[:12] in str(refused.value)
    cluster.serves(holder, cluster.client.path, HOST[4], 8080)
    cluster.remove(holder)
    assert cluster.left_over() == []


@pytest.mark.needs("own host ports")
def test_own_host_ports(cluster: Cluster) -> None:
    """Host ports that the runtime publishes itself work beside the plugin's table, and so does outbound NAT."""
    container = cluster.run(Port(8080), Port(8053, 53, "udp"))
    cluster.serves(container, cluster.client.path, HOST[4], 8080)
    cluster.serves(container, cluster.client.path, HOST[4], 8053, "udp")
    assert cluster.ports_of(container) == set()
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])


def test_pip(cluster_of_pip: Cluster) -> None:
    """The command that pip installs does the same: a port, outbound NAT, and nothing is left."""
    container = cluster_of_pip.run(Port(8080))
    cluster_of_pip.serves(container, cluster_of_pip.client.path, HOST[4], 8080)
    assert cluster_of_pip.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])
    cluster_of_pip.remove(container)
    assert cluster_of_pip.left_over() == []
