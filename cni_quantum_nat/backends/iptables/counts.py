"""Count the connections that the rules of the iptables backend have translated. For scrapes and operators: it runs a program for each family."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...connections.counts import DNAT, MASQUERADE, SNAT, add_up
from .programs import list_counted_rules
from .provider import names_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...connections.counts import CountedFlows, Flows
    from ...state.directory import State

# A rule of table nat sees the first packet of each connection. QUANTUM-IN-... masquerades connections that are counted as DNAT already.
_COUNTED = re.compile(
    r"\[(?P<packets>\d+):\d+\] (?P<rule>-A (?:QUANTUM-(?:HOST|ANY)-IP|QUANTUM-OUT-\S+) .* -j (?P<target>DNAT|MASQUERADE|SNAT)\b.*)"
)
_TYPES = {"DNAT": DNAT, "MASQUERADE": MASQUERADE, "SNAT": SNAT}


def live_flows(state: State, family: int) -> Flows:
    """Return the connections counted so far, by network and type. CniError if the rules cannot be listed."""
    return add_up(_counted(state, family))


def flows_by_owner(state: State, family: int) -> dict[str, int]:
    """Return the connections counted so far, by attachment. CniError if the rules cannot be listed."""
    flows: dict[str, int] = {}
    for owner, _, count in _counted(state, family):
        flows[owner] = flows.get(owner, 0) + count
    return flows


def _counted(state: State, family: int) -> Iterator[CountedFlows]:
    names = names_of(state)
    for line in list_counted_rules(family).splitlines():
        if found := _COUNTED.fullmatch(line):
            yield names.owner_of(found["rule"]), _TYPES[found["target"]], int(found["packets"])
