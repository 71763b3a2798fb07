"""The flows that the rules of the iptables backend have translated. Only a scrape or a person asks: it starts a program for each family."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...connections.counts import DNAT, MASQUERADE, SNAT, add_up
from .programs import list_counted_rules
from .text import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...connections.counts import CountedFlows, Flows

# A rule of table nat sees the first packet of each flow. QUANTUM-IN-... only sends replies back: those flows are counted as DNAT.
_COUNTED = re.compile(
    r"\[(?P<packets>\d+):\d+\] (?P<rule>-A (?:QUANTUM-(?:HOST|ANY)-IP|QUANTUM-OUT-\S+) .* -j (?P<target>DNAT|MASQUERADE|SNAT)\b.*)"
)
_TYPES = {"DNAT": DNAT, "MASQUERADE": MASQUERADE, "SNAT": SNAT}


def live_flows(family: int) -> Flows:
    """Return the flows that the rules have counted, by network and type; CniError where they cannot be listed."""
    return add_up(_counted(list_counted_rules(family)))


def flows_by_owner(family: int) -> dict[str, int]:
    """Return the flows that the rules have counted, by attachment; CniError where they cannot be listed."""
    flows: dict[str, int] = {}
    for owner, _, count in _counted(list_counted_rules(family)):
        flows[owner] = flows.get(owner, 0) + count
    return flows


def _counted(listing: str) -> Iterator[CountedFlows]:
    for line in listing.splitlines():
        if found := _COUNTED.fullmatch(line):
            yield owner_of(found["rule"]), _TYPES[found["target"]], int(found["packets"])
