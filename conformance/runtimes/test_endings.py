"""Crashes and stops of daemons, containers and runtimes. The docstrings are the rows of the table."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.topology import CLIENT, HOST, NETNS_DIRECTORY

from .conftest import started
from .runtime import Port

if TYPE_CHECKING:
    from .cluster import Cluster

_PLUGIN = Path(os.environ["QUANTUM_NAT_PLUGIN"])


@pytest.mark.needs("daemon")
def test_crash(cluster: Cluster) -> None:
    """Containers survive a crash of the runtime, with ports and outbound NAT, and are removed after its next start."""
    container = cluster.run(Port(8080), Port(8053, 53, "udp"))
    cluster.runtime.end_daemon(signal.SIGKILL)
    for port, protocol in ((8080, "tcp"), (8053, "udp")):
        cluster.serves(container, cluster.client.path, HOST[4], port, protocol)
    assert cluster.answer(container.netns, CLIENT[4], 80) == ("outside", HOST[4])
    cluster.runtime.start_daemon()
    cluster.remove(container)
    cluster.wait_until_nothing_is_left()


@pytest.mark.needs("daemon")
def test_lost_meanwhile(cluster: Cluster) -> None:
    """A container that was lost while the runtime was down leaves nothing after the next start and clean-up."""
    container, other = cluster.run(Port(8080)), cluster.run(Port(8090))
    cluster.runtime.end_daemon(signal.SIGKILL)
    cluster.kill_hard(container)
    cluster.runtime.start_daemon()
    cluster.runtime.clean_up(container)
    cluster.serves(other, cluster.client.path, HOST[4], 8090)
    cluster.serves(cluster.run(Port(8080)), cluster.client.path, HOST[4], 8080)
    cluster.remove_all()
    cluster.wait_until_nothing_is_left()


def test_stop(subject: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A runtime stopped while containers run leaves no process, mount, cgroup or network namespace."""
    before = traces()
    with started(subject, _PLUGIN, tmp_path_factory) as cluster:
        cluster.run(Port(8080))
        cluster.run()
        assert traces() - before
    assert_gone(before, cluster)


@pytest.mark.needs("daemon")
def test_stop_after_crash(subject: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither does a runtime whose daemon had crashed."""
    before = traces()
    with started(subject, _PLUGIN, tmp_path_factory) as cluster:
        cluster.run(Port(8080))
        cluster.runtime.end_daemon(signal.SIGKILL)
    assert_gone(before, cluster)


def assert_gone(before: set[str], cluster: Cluster) -> None:
    """Fail if something is left that was not there before."""
    assert traces() - before == set()
    assert cluster.runtime.cgroup.directories() == []


def traces() -> set[str]:
    """Return all processes, mounts and named network namespaces."""
    processes = {f"process {process} {name}" for process, name in running()}
    mounts = {f"mount {line.split()[1]}" for line in Path("/proc/self/mounts").read_text().splitlines()}
    namespaces = {f"namespace {path.name}" for path in NETNS_DIRECTORY.iterdir()}
    return processes | mounts | namespaces


def running() -> list[tuple[int, str]]:
    """Return the processes in this PID namespace, without zombies."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            status = (directory / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        name, _, state = status.partition("(")[2].rpartition(") ")
        if state[0] != "Z":
            found.append((int(directory.name), name))
    return found
