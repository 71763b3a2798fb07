"""The flows that the elements of table `inet quantum` have counted: the rules see the first packet of each flow."""

from __future__ import annotations

from ...connections.counts import DNAT, MASQUERADE, SNAT, add_up
from .layout import FIXED_SOURCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...connections.counts import CountedFlows, Flows
    from .rules import Element
    from .table import NftablesTable

_SOURCE_SETS = ("masqueraded", "outbound", "cidr_outbound")


def live_flows(table: NftablesTable) -> Flows:
    """List what the table counts now, and add it up by network and type. Grows with the number of containers."""
    listed = table.counted_flows()
    return add_up((owner, _type(set_name, chain), flows) for set_name, owner, chain, flows in listed)


def counted(elements: Iterable[Element]) -> Iterator[CountedFlows]:
    """Yield owner, type and number of flows of those elements that have counted any."""
    for element in elements:
        if element.flows:
            yield element.owner, _type(element.set_name, str(element.data[0]) if element.data else ""), element.flows


def _type(set_name: str, chain: str) -> str:
    """Name the translation of the flows that an element counts; `chain` is the one that it leads to, or empty."""
    if not set_name.startswith(_SOURCE_SETS):
        return DNAT
    return SNAT if chain.startswith(FIXED_SOURCE) else MASQUERADE
