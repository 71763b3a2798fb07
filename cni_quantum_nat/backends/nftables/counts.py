"""Connections that the elements of table `inet quantum` have counted: rules see the first packet of each.

A pod's start waits for this module.
"""

from __future__ import annotations

from ...connections.counts import DNAT, MASQUERADE, SNAT, add_up
from ...state.counters import REFUSED
from .layout import counts_refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...connections.counts import CountedFlows, Flows
    from .rules import Element
    from .table import NftablesTable

_MASQUERADED = ("masqueraded", "network_masqueraded")
_FIXED = ("fixed", "network_fixed")


def live_flows(table: NftablesTable) -> Flows:
    """List the table's counters, and add them up by network and type. The cost grows with the number of containers."""
    listed = table.counted_flows()
    return add_up((owner, _type(set_name), flows) for set_name, owner, flows in listed)


def counted(elements: Iterable[Element]) -> Iterator[CountedFlows]:
    """Yield owner, type and number of connections of the elements that have counted any."""
    for element in elements:
        if element.flows:
            yield element.owner, _type(element.set_name), element.flows


def _type(set_name: str) -> str:
    """Name the translation of the connections that a set counts, or REFUSED for packets."""
    if counts_refused(set_name):
        return REFUSED
    if set_name.startswith(_MASQUERADED):
        return MASQUERADE
    return SNAT if set_name.startswith(_FIXED) else DNAT
