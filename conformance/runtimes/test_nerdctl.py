"""What nerdctl alone does with ports, and what its newer versions do before ADD. The docstrings are rows of the table."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.topology import CLIENT, HOST, HOST_SECONDARY

from .nerdctl import Nerdctl
from .runtime import BACK, FRONT, NotRun, Port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cluster import Cluster
    from .runtime import Running

TABLE = "nerdctl"
SUBJECTS = ("nerdctl",)
LOCALHOST = "127.0.0.1"
_RESERVE = """
import os, socket, sys
for number in (socket.AF_INET, socket.AF_INET6):
    reserved = socket.socket(number)
    if number == socket.AF_INET6:
        reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    reserved.bind(("", int(sys.argv[1])))
    reserved.listen()
    os.set_inheritable(reserved.fileno(), True)
    os.dup(reserved.fileno())
    reserved.detach()
os.execvp("sleep", ["sleep", "infinity"])
"""


@pytest.fixture
def nerdctl(cluster: Cluster) -> Nerdctl:
    assert isinstance(cluster.runtime, Nerdctl)
    return cluster.runtime


@contextmanager
def removed(nerdctl: Nerdctl, *names: str) -> Iterator[None]:
    """Remove containers that the cluster does not know."""
    try:
        yield
    finally:
        for name in names:
            nerdctl.remove_if_there(name)


def test_all_protocols(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """tcp, udp and sctp, a range, 127.0.0.1 and two addresses of the host, in one container."""
    typed = [
        "8080:80", "8053:53/udp", "8132:80/sctp", "8090-8092:80-82", f"{LOCALHOST}:8100:80",
        f"{HOST_SECONDARY[4]}:8110:80", f"{HOST[4]}:8110:81",
    ]  # fmt: skip
    with removed(nerdctl, "all"):
        container = nerdctl.run_published("all", typed)
        client, host = cluster.client.path, cluster.host.path
        for port in (8080, 8090, 8091, 8092):
            cluster.serves(container, client, HOST[4], port)
        cluster.serves(container, client, HOST[4], 8053, "udp")
        cluster.serves(container, host, LOCALHOST, 8100)
        assert cluster.answer(client, HOST[4], 8100) is None
        for address in (HOST[4], HOST_SECONDARY[4]):
            cluster.serves(container, client, address, 8110)
        assert ("sctp", 8132) in cluster.ports_of(container)


def test_from_everywhere(cluster: Cluster) -> None:
    """A published port answers an outside host, the host, a neighbour and the container itself."""
    container, neighbour = cluster.run(Port(8080)), cluster.run()
    assert cluster.serves(container, cluster.client.path, HOST[4], 8080).source == CLIENT[4]
    for asking in (cluster.host.path, neighbour.netns, container.netns):
        cluster.serves(container, asking, HOST[4], 8080)
    cluster.serves(container, cluster.host.path, LOCALHOST, 8080)


def test_default_network(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """The network that nerdctl makes by itself, with the plugin under portmap's name, publishes a port and is cleaned up."""
    with removed(nerdctl, "default"):
        container = nerdctl.run_published("default", ["8080:80"], networks=())
        cluster.serves(container, cluster.client.path, HOST[4], 8080)
        assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])
        cluster.serves(nerdctl.restart(container), cluster.client.path, HOST[4], 8080)
    assert cluster.answer(cluster.client.path, HOST[4], 8080) is None


@pytest.mark.parametrize("ending", ["stopped", "its process killed"])
def test_ended(cluster: Cluster, nerdctl: Nerdctl, ending: str) -> None:
    """A container that is stopped, or whose process is killed, has its port again once it is started.

    nerdctl says DEL only when it is started again, or removed.
    """
    container = cluster.run(Port(8080))
    end(nerdctl, container, ending)
    assert cluster.answer(cluster.client.path, HOST[4], 8080) is None
    nerdctl.nerdctl("start", container.name)
    cluster.serves(nerdctl.running(container.name), cluster.client.path, HOST[4], 8080)


@pytest.mark.parametrize("ending", ["stopped", "its process killed"])
def test_successor(cluster: Cluster, nerdctl: Nerdctl, ending: str) -> None:
    """Another container can have the port meanwhile; then the first is refused, and the other one keeps the port."""
    container = cluster.run(Port(8080))
    end(nerdctl, container, ending)
    successor = cluster.run(Port(8080))
    cluster.serves(successor, cluster.client.path, HOST[4], 8080)
    with pytest.raises(NotRun, match="8080"):
        nerdctl.nerdctl("start", container.name)
    cluster.serves(successor, cluster.client.path, HOST[4], 8080)
    nerdctl.remove_by_force(container)
    cluster.forget(container)
    cluster.serves(successor, cluster.client.path, HOST[4], 8080)


def end(nerdctl: Nerdctl, container: Running, ending: str) -> None:
    """End what runs in a container."""
    if ending == "stopped":
        nerdctl.nerdctl("stop", "--time=0", container.name)
    else:
        nerdctl.kill_process(container)


def test_removed_by_force(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """Of a container that is removed by force while it runs nothing is left; the port can be had at once."""
    container = cluster.run(Port(8080))
    nerdctl.remove_by_force(container)
    cluster.forget(container)
    assert cluster.left_over() == []
    cluster.serves(cluster.run(Port(8080)), cluster.client.path, HOST[4], 8080)


def test_restarts(cluster: Cluster) -> None:
    """Ten restarts in a row."""
    container = cluster.run(Port(8080), Port(8053, 53, "udp"))
    for _ in range(10):
        container = cluster.restart(container)
        cluster.serves(container, cluster.client.path, HOST[4], 8080)
    cluster.serves(container, cluster.client.path, HOST[4], 8053, "udp")


def test_two_networks_restarted(cluster: Cluster) -> None:
    """A container on two networks keeps its port and its outbound NAT over a restart."""
    container = cluster.restart(cluster.run(Port(8080), networks=(FRONT, BACK)))
    cluster.serves(container, cluster.client.path, HOST[4], 8080)
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])


def test_same_port_twice(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """A port that is published twice in one command is published once, or refused by nerdctl itself."""
    with removed(nerdctl, "twice"):
        try:
            container = nerdctl.run_published("twice", ["8080:80", "8080:80"])
        except NotRun as error:
            assert "quantum-nat" not in str(error)  # noqa: PT017 - both are right
        else:
            cluster.serves(container, cluster.client.path, HOST[4], 8080)
    assert cluster.left_over() == []


@pytest.mark.differs("nerdctl", "defect 25: nerdctl looks for free ports in portmap's chains, which are not there")
def test_two_without_host_port(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """Two containers that publish port 80 without saying where are given two ports."""
    with removed(nerdctl, "first", "second"):
        containers = [nerdctl.run_published(name, ["80"]) for name in ("first", "second")]
        ports = [cluster.ports_of(container) for container in containers]
        assert ports[0].isdisjoint(ports[1])


@contextmanager
def reserved(cluster: Cluster, container_id: str, port: int) -> Iterator[None]:
    """Do what nerdctl 2.1.6 and newer do before ADD: `sleep infinity` holds the port, and a file has its process ID."""
    pid_file = Path("/run/nerdctl/default", container_id, "port-reserver.pid")
    pid_file.parent.mkdir(parents=True)
    reserver = subprocess.Popen(
        ["nsenter", f"--net={cluster.host.path}", sys.executable, "-c", _RESERVE, str(port)], close_fds=True
    )
    pid_file.write_text(str(reserver.pid))
    try:
        cluster.wait_for_listener(port)
        yield
    finally:
        reserver.kill()
        reserver.wait()
        pid_file.unlink()
        pid_file.parent.rmdir()


def test_reserved(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """A port that nerdctl 2.1.6 and newer hold for the container is the container's."""
    with removed(nerdctl, "reserved"), reserved(cluster, nerdctl.create("reserved", "8080:80"), 8080):
        cluster.serves(nerdctl.start_created("reserved"), cluster.client.path, HOST[4], 8080)


def test_reserved_for_another(cluster: Cluster, nerdctl: Nerdctl) -> None:
    """A port that somebody else holds in the same way is refused: the file of another container names the process."""
    with removed(nerdctl, "refused"), reserved(cluster, "0" * 64, 8080):
        nerdctl.create("refused", "8080:80")
        with pytest.raises(NotRun, match="8080"):
            nerdctl.start_created("refused")
    assert cluster.left_over() == []
