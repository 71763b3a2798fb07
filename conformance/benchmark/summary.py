"""Writes the rows of docs/performance.md: what a user wants to know of all that was measured. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import calls, packets, parallel, reconciling, resources
from .contenders import BACKENDS, OURS, both_of, portmap_of
from .figures import MILLISECONDS, PER_SECOND, Figures, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ONE_PORT = calls.variant_of(1)
_MEMORY = f"{resources.MEMORY}, ADD"


class Row(NamedTuple):
    """A quantity, where its figures are, and which peer does the same job."""

    label: str
    section: str
    what: str
    containers: int = 0
    variant: str = ""
    unit: str = MILLISECONDS
    peer: Callable[[str], str] = both_of

    def median(self, figures: Figures, contender: str) -> str:
        """Return the median in print, a dash where there is none."""
        median = figures.median(Key(self.section, self.what, contender, self.containers, self.variant, self.unit))
        return "-" if median is None else f"{median:,.{0 if median >= 100 else 1}f}"


ROWS = (
    Row("ADD, no other containers, ms", calls.SECTION, "ADD", 0, _ONE_PORT),
    Row("ADD, 10,000 other containers, ms", calls.SECTION, "ADD", 10_000, _ONE_PORT),
    Row("The first ADD after a boot, ms", calls.SECTION, calls.FIRST, 0, _ONE_PORT),
    Row("DEL, no other containers, ms", calls.SECTION, "DEL", 0, _ONE_PORT),
    Row("DEL, 10,000 other containers, ms", calls.SECTION, "DEL", 10_000, _ONE_PORT),
    Row(
        "CHECK, 10,000 other containers, ms (portmap alone)", calls.SECTION, "CHECK", 10_000, _ONE_PORT, peer=portmap_of
    ),
    Row(f"{parallel.COUNT} ADDs at the same time, ms", parallel.SECTION, parallel.ALL),
    Row(
        "Peak memory of an ADD, MiB (portmap alone)",
        resources.SECTION,
        _MEMORY,
        unit=resources.MEBIBYTES,
        peer=portmap_of,
    ),
    Row("New connections/s, no other published ports", packets.SECTION, packets.INBOUND, 0, unit=PER_SECOND),
    Row("New connections/s, 28,000 other published ports", packets.SECTION, packets.INBOUND, 28_000, unit=PER_SECOND),
    Row("Repair after `nft flush ruleset`, 10,000 containers, ms", reconciling.SECTION, reconciling.FLUSHED, 10_000),
)


def summary(figures: Figures) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| | Quantum NAT | {' | '.join(map(both_of, BACKENDS))} |"
    yield "|---|---:|---:|---:|"
    for row in ROWS:
        names = (OURS, *map(row.peer, BACKENDS))
        yield f"| {row.label} | {' | '.join(row.median(figures, name) for name in names)} |"
