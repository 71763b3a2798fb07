"""The plugin's targets, relative to the better backend of portmap and bridge's ipMasq in the same run. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import calls, packets, parallel, resources
from .contenders import BACKENDS, OURS, both_of, portmap_of
from .figures import PER_SECOND, Figures, Key

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY, MANY, MOST = 0, 10_000, 28_000
_ONE_PORT = calls.variant_of(1)
_BESIDE_BOTH = {(EMPTY, "ADD"): 0.12, (EMPTY, "DEL"): 0.05, (MANY, "ADD"): 0.01, (MANY, "DEL"): 0.01}
_BESIDE_PORTMAP = {(EMPTY, "CHECK"): 0.4, (MANY, "CHECK"): 0.4}
_START = 1.0
_FIRST = 1.0
_GROWTH = 1.1
_UDP_EXTRA_MS = 0.5
_PARALLEL = 0.09
_RATE_KEPT = 0.97


class Target(NamedTuple):
    """A quantity with its upper or lower limit."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def targets_of(figures: Figures) -> list[Target]:
    """Return the targets for the measured quantities."""
    return [
        *_beside_peers(figures),
        *_first(figures),
        *_start(figures),
        *_growth(figures),
        *_udp(figures),
        *_parallel(figures),
        *_memory(figures),
        *_packets(figures),
    ]


def _call(verb: str, contender: str, containers: int = EMPTY, variant: str = _ONE_PORT) -> Key:
    return Key(calls.SECTION, verb, contender, containers, variant)


def _beside_peers(figures: Figures) -> Iterator[Target]:
    for name_of_peer, limits in ((both_of, _BESIDE_BOTH), (portmap_of, _BESIDE_PORTMAP)):
        for (containers, verb), limit in limits.items():
            peers = [_call(verb, name_of_peer(backend), containers) for backend in BACKENDS]
            ratio = figures.ratio(_call(verb, OURS, containers), peers)
            best = figures.best(peers)
            if ratio is not None and best is not None:
                yield Target(f"{verb} at {containers:,} containers / {best.key.contender}", ratio, limit)


def _first(figures: Figures) -> Iterator[Target]:
    """Compare the first ADD with an ADD of the peers that is not their first."""
    peers = [_call("ADD", both_of(backend)) for backend in BACKENDS]
    ratio, best = figures.ratio(_call(calls.FIRST, OURS), peers), figures.best(peers)
    if ratio is not None and best is not None:
        yield Target(f"{calls.FIRST} / ADD at 0 containers of {best.key.contender}", ratio, _FIRST)


def _start(figures: Figures) -> Iterator[Target]:
    peers = [Key(calls.SECTION, calls.START, portmap_of(backend)) for backend in BACKENDS]
    ratio, best = figures.ratio(Key(calls.SECTION, calls.START, OURS), peers), figures.best(peers)
    if ratio is not None and best is not None:
        yield Target(f"VERSION / {best.key.contender}", ratio, _START)


def _growth(figures: Figures) -> Iterator[Target]:
    for verb in ("ADD", "CHECK", "DEL"):
        ratio = figures.ratio(_call(verb, OURS, MANY), [_call(verb, OURS)])
        if ratio is not None:
            yield Target(f"{verb} at {MANY:,} containers / {verb} at none", ratio, _GROWTH)


def _udp(figures: Figures) -> Iterator[Target]:
    for verb in ("ADD", "CHECK", "DEL"):
        tcp = figures.median(_call(verb, OURS))
        udp = figures.median(_call(verb, OURS, variant=calls.variant_of(1, "udp")))
        if tcp is not None and udp is not None:
            yield Target(f"{verb} of a UDP port - of a TCP port, ms", udp - tcp, _UDP_EXTRA_MS)


def _parallel(figures: Figures) -> Iterator[Target]:
    peers = [Key(parallel.SECTION, parallel.ALL, both_of(backend)) for backend in BACKENDS]
    ratio = figures.ratio(Key(parallel.SECTION, parallel.ALL, OURS), peers)
    best = figures.best(peers)
    if ratio is not None and best is not None:
        yield Target(f"{parallel.COUNT} ADDs in parallel, all / {best.key.contender}", ratio, _PARALLEL)


def _memory(figures: Figures) -> Iterator[Target]:
    for verb in ("ADD", "CHECK", "DEL"):
        ours, *peers = (
            Key(resources.SECTION, f"{resources.MEMORY}, {verb}", name, 0, "", resources.MEBIBYTES)
            for name in (OURS, *map(portmap_of, BACKENDS))
        )
        ratio = figures.ratio(ours, peers)
        best = figures.best(peers)
        if ratio is not None and best is not None:
            yield Target(f"peak memory of {verb} / {best.key.contender}", ratio, 1.0)


def _packets(figures: Figures) -> Iterator[Target]:
    ours, none = (Key(packets.SECTION, packets.INBOUND, OURS, n, "", PER_SECOND) for n in (MOST, EMPTY))
    ratio = figures.ratio(ours, [none])
    if ratio is not None:
        yield Target(f"connections/s at {MOST:,} mappings / at none", ratio, _RATE_KEPT, at_least=True)
