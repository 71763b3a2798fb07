"""The data path: new connections per second through a published port and outwards, and the throughput of one connection.

    outside --- uplink --- host --- cni0 --- container
    198.51.100.2           198.51.100.1      10.88.0.2

The bridge plugin connects the container. portmap's host also has the rules of bridge's ipMasq, which together do our work.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.peer import inside
from tests.kernel.topology import Namespace

from .contenders import (
    BACKENDS,
    OURS,
    PLAIN_BRIDGE,
    CallFailed,
    Contender,
    Mapping,
    both_of,
    masquerade_of,
    portmap_of,
)
from .figures import PER_SECOND, Key, Samples
from .filling import fill
from .hosts import FIRST_PORT, Host

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from .contenders import Programs

SECTION = "packets"
INBOUND, OUTBOUND = "connections through a published port", "connections outwards, masqueraded"
INBOUND_LATENCY, OUTBOUND_LATENCY = (f"{what}, p99 of connect" for what in (INBOUND, OUTBOUND))
STREAM = "one flow through a published port"
MICROSECONDS, MEBIBYTES_PER_SECOND = "us", "MiB/s"
_OUTSIDE, _UPLINK = "198.51.100.2", "198.51.100.1"
_ACCEPTING, _DRAINING = 80, 81
_READY_S = 5


class Repeat(NamedTuple):
    """The number of runs, and the duration of each."""

    rounds: int
    seconds: float


class Way:
    """A client, a host with the rules of a contender, and a container behind it."""

    def __init__(self, name: str, contender: Contender, bridge: Contender, host: Host, client: str) -> None:
        self.name = name
        self.host = host
        self._client = client
        self.outside = Namespace("outside", host.stack)
        self.containers = host.containers
        host.contender = bridge
        request = host.timed(0)._replace(mappings=_mappings())
        fill(host)
        host.call("ADD", request)
        if contender is not bridge:
            host.contender = contender
            fill(host)
            host.call("ADD", request)
        self._connect()
        for namespace in (host.container, self.outside):
            for verb, port in (("accept", _ACCEPTING), ("drain", _DRAINING)):
                self._serve(namespace, verb, port)
        self.wait_until_ready()

    def _connect(self) -> None:
        uplink = f"link add uplink type veth peer name uplink netns {self.outside.name}"
        self.host.namespace.ip(uplink, "link set uplink up", f"address add {_UPLINK}/24 dev uplink")
        self.outside.ip("link set uplink up", f"address add {_OUTSIDE}/24 dev uplink")
        self.host.namespace.set_sysctl("ipv4/ip_forward", "1")

    def _serve(self, namespace: Namespace, verb: str, port: int) -> None:
        with inside(namespace.path):
            process = subprocess.Popen([self._client, verb, str(port)])
        self.host.stack.callback(process.wait)
        self.host.stack.callback(process.kill)

    def wait_until_ready(self) -> None:
        """Connect until it works: the servers must start, and the bridge must learn."""
        end = time.monotonic() + _READY_S
        while True:
            try:
                self.time_connections(inbound=True, seconds=0.01)
                self.time_connections(inbound=False, seconds=0.01)
            except CallFailed:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
            else:
                return

    def time_connections(self, *, inbound: bool, seconds: float) -> list[float]:
        """Return connections/s and the 99th percentile of connect, in microseconds."""
        if inbound:
            return self._run(self.outside, "connect", _UPLINK, FIRST_PORT, seconds)
        return self._run(self.host.container, "connect", _OUTSIDE, _ACCEPTING, seconds)

    def time_stream(self, seconds: float) -> float:
        """Return MiB/s of one connection through the published port."""
        return self._run(self.outside, "send", _UPLINK, FIRST_PORT + 1, seconds)[0]

    def _run(self, namespace: Namespace, verb: str, address: str, port: int, seconds: float) -> list[float]:
        command = [self._client, verb, address, str(port), str(seconds)]
        with inside(namespace.path):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + 2 * seconds)
        if done.returncode:
            raise CallFailed(f"{self.name}, {self.containers} there: {' '.join(command)}: {done.stderr}")
        return [float(word) for word in done.stdout.split()]

    def flush_conntrack(self) -> None:
        """Flush the conntrack table, so that runs do not affect each other."""
        self.host.namespace.run("conntrack", "-F")


def _mappings() -> tuple[Mapping, ...]:
    return (Mapping(FIRST_PORT, "tcp", _ACCEPTING), Mapping(FIRST_PORT + 1, "tcp", _DRAINING))


def measure(
    programs: Programs, client: str, levels: list[int], repeat: Repeat, *, stack: ExitStack, directory: Path
) -> Samples:
    """Time connections and a stream on hosts with these numbers of other containers, in turn."""
    samples = Samples()
    ways = list(_ways(programs, client, levels, stack, directory))
    for _ in range(repeat.rounds):
        for way in ways:
            _time_way(samples, way, repeat.seconds)
    return samples


def _ways(programs: Programs, client: str, levels: list[int], stack: ExitStack, directory: Path) -> list[Way]:
    known = programs.contenders()
    pairs = [(OURS, known[OURS], known[PLAIN_BRIDGE])]
    pairs += [(both_of(b), known[portmap_of(b)], known[masquerade_of(b)]) for b in BACKENDS]
    return [
        Way(name, contender, bridge, Host(stack, bridge, directory, containers), client)
        for containers in levels
        for name, contender, bridge in pairs
    ]


def _time_way(samples: Samples, way: Way, seconds: float) -> None:
    def add(what: str, value: float, unit: str) -> None:
        samples.add(Key(SECTION, what, way.name, way.containers, "", unit), value)

    for inbound, rate_name, latency_name in ((True, INBOUND, INBOUND_LATENCY), (False, OUTBOUND, OUTBOUND_LATENCY)):
        rate, latency_us = way.time_connections(inbound=inbound, seconds=seconds)
        add(rate_name, rate, PER_SECOND)
        add(latency_name, latency_us, MICROSECONDS)
        way.flush_conntrack()
    add(STREAM, way.time_stream(seconds), MEBIBYTES_PER_SECOND)
    way.flush_conntrack()
