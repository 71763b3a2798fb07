"""ADD, CHECK and DEL of one container on hosts with others; UDP compared with TCP; the first ADD of a host; and the start of each program."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING

from .contenders import (
    BACKENDS,
    BARE_PYTHON,
    NETAVARKS,
    OURS,
    OURS_PIP,
    PLAIN_BRIDGE,
    Invocation,
    Plugin,
    both_of,
    masquerade_of,
    portmap_of,
    run_in,
)
from .figures import Key, Samples, sum_with_extra
from .filling import fill
from .hosts import Host

if TYPE_CHECKING:
    from pathlib import Path

    from .contenders import Programs

SECTION = "calls"
PORTS = (1, 10)
PYTHON = "python3 -I -S"
START, FIRST = "start", "first ADD"
_SETTLE_S = 0.03  # after a DEL the kernel frees memory in the background: the next call must not wait for that
_RARELY = 5  # contenders that take ten times as long are measured only every so many rounds
_MOST_FOR_MANY_PORTS = 1000  # for each port, netavark starts three programs that read all rules: a minute with 10,000
_SLOW = (OURS_PIP, *NETAVARKS)
_FIRST_OF = (OURS, PLAIN_BRIDGE, *map(portmap_of, BACKENDS), *map(masquerade_of, BACKENDS))


def variant_of(ports: int, protocol: str = "tcp") -> str:
    """Return the variant's name: the number of ports and the protocol."""
    ending = "" if protocol == "tcp" else f", {protocol}"
    return f"{ports} port{'s' if ports > 1 else ''}{ending}"


def measure(programs: Programs, levels: list[int], rounds: int, stack: ExitStack, directory: Path) -> Samples:
    """Time all calls of all contenders in turn, on hosts with these numbers of containers."""
    begin = time.monotonic()
    samples = Samples()
    hosts = _hosts(programs, levels, stack, directory)
    for number in range(-1, rounds):  # the first round warms up
        kept = samples if number >= 0 else Samples()
        _time_start(kept, hosts)
        _time_first(kept, programs, directory)
        for host in hosts:
            if host.contender.name not in _SLOW or number % _RARELY == 0:
                _time_host(kept, host)
        print(f"{SECTION}: round {number + 1} of {rounds} after {time.monotonic() - begin:.0f} s", file=sys.stderr)
    _combine(samples, levels)
    return samples


def _combine(samples: Samples, levels: list[int]) -> None:
    """Add the sum of portmap and bridge's ipMasq, without the time for the bridge itself."""
    variants = [variant_of(ports) for ports in PORTS]
    quantities = product(("ADD", "DEL"), levels, variants)
    for backend, (verb, containers, variant) in product(BACKENDS, [*quantities, (FIRST, 0, variant_of(1))]):
        portmap = Key(SECTION, verb, portmap_of(backend), containers, variant)
        masquerade = Key(SECTION, verb, masquerade_of(backend), containers, variant_of(1))
        plain = Key(SECTION, verb, PLAIN_BRIDGE, 0, variant_of(1))
        both = Key(SECTION, verb, both_of(backend), containers, variant)
        for value in sum_with_extra(*map(samples.values, (portmap, masquerade, plain))):
            samples.add(both, value)


def _hosts(programs: Programs, levels: list[int], stack: ExitStack, directory: Path) -> list[Host]:
    hosts = []
    for contender in programs.contenders().values():
        for containers in levels if contender.name != PLAIN_BRIDGE else [0]:
            host = Host(stack, contender, directory, containers)
            host.track_flows()
            fill(host)
            hosts.append(host)
    return hosts


def _variants(host: Host) -> list[tuple[int, str]]:
    """Return the numbers of ports and the protocols that apply to the contender."""
    if host.contender.makes_interface and host.contender.name not in NETAVARKS:
        return [(1, "tcp")]
    if host.contender.name in NETAVARKS and host.containers > _MOST_FOR_MANY_PORTS:
        return [(1, "tcp")]
    return [*((ports, "tcp") for ports in PORTS), *([(1, "udp")] if host.containers == 0 else [])]


def _time_host(samples: Samples, host: Host) -> None:
    for ports, protocol in _variants(host):
        request = host.timed(ports, protocol)
        for verb in host.contender.verbs:
            key = Key(SECTION, verb, host.contender.name, host.containers, variant_of(ports, protocol))
            samples.add(key, host.call(verb, request))
        time.sleep(_SETTLE_S)


def _time_first(samples: Samples, programs: Programs, directory: Path) -> None:
    """Time an ADD where there was none before: no rules, no state directory, a configuration that was not seen."""
    for name in _FIRST_OF:
        with ExitStack() as stack:
            host = Host(stack, programs.contenders()[name], directory)
            host.track_flows()
            time.sleep(_SETTLE_S)
            samples.add(Key(SECTION, FIRST, name, 0, variant_of(1)), host.call("ADD", host.timed(1)))


def _time_start(samples: Samples, hosts: list[Host]) -> None:
    """Time the start alone: VERSION, and the interpreter without libraries."""
    at = hosts[0].namespace.path
    samples.add(Key(SECTION, START, PYTHON), run_in(at, Invocation(BARE_PYTHON, "", {})))
    for host in hosts:
        if host.containers == 0 and isinstance(host.contender, Plugin) and not host.contender.makes_interface:
            key = Key(SECTION, START, host.contender.name)
            samples.add(key, host.call("VERSION", host.timed(1)))
