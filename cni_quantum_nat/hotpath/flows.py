"""Connection counts that never go backwards, although the kernel's counters go with their elements.

For each source (who counts) and type of translation a network's counters have `gone`, the flows of what is not there any
more, and `seen`, those of what was there at the last scrape. The total is what is gone and what is there. What was counted
after the last scrape is lost only where the rules are lost without a trace, as by `nft flush ruleset`.

Flows are added only for networks that have counters: with `metrics` false, none are made.
"""

from __future__ import annotations

from .counters import FLOW_TYPES, CounterFile, counted_networks, unless_impossible
from .table import FIXED_SOURCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .counters import Cells
    from .nftables import NftablesTable
    from .rules import Element
    from .state import State

    # By network and type of translation.
    Flows = dict[str, dict[str, int]]
    # Whose they are, their type, how many.
    CountedFlows = tuple[str, str, int]
    Change = Callable[[Cells, str, dict[str, int]], None]

DNAT, MASQUERADE, SNAT = FLOW_TYPES
_SOURCE_SETS = ("masqueraded", "outbound", "cidr_outbound")


def flow_type(set_name: str, chain: str) -> str:
    """Say what is done to the flows that an element counts; `chain` is where it leads, if to one."""
    if not set_name.startswith(_SOURCE_SETS):
        return DNAT
    return SNAT if chain.startswith(FIXED_SOURCE) else MASQUERADE


def add_up(counted: Iterable[CountedFlows]) -> Flows:
    """Add up flows by network and type; what nobody owns, or several, is no network's."""
    flows: Flows = {}
    for owner, kind, count in counted:
        # A network's name that fills a comment by itself stands there abbreviated: nobody's, then.
        network, slash, _ = owner.partition("/")
        if count and slash:
            of_network = flows.setdefault(network, {})
            of_network[kind] = of_network.get(kind, 0) + count
    return flows


def live_flows(table: NftablesTable) -> Flows:
    """List what is in the table now, and add it up. Grows with the number of containers."""
    counted = table.counted_flows()
    return add_up((owner, flow_type(set_name, chain), flows) for set_name, owner, chain, flows in counted)


def add_gone(state: State, source: str, deleted: Iterable[Element]) -> None:
    """Keep the flows of elements that a transaction has deleted, as they were when it looked at them.

    Added for the network that their owner names. An undo puts such elements back with counters of 0, so it changes nothing here.
    """
    counted = ((e.owner, flow_type(e.set_name, str(e.data[0]) if e.data else ""), e.flows) for e in deleted if e.flows)
    for network, flows in add_up(counted).items():
        _change(state, network, _add_gone, source, flows)


def note_lost(state: State, source: str, live: Flows) -> None:
    """Keep what a rebuild has lost, for all networks: the flows that were there before, as far as anybody saw them."""
    for network in counted_networks(state):
        _change(state, network, _note_lost, source, live.get(network, {}))


def settle(cells: Cells, source: str, before: Cells, live: dict[str, int], *, tells_deletions: bool) -> None:
    """Let a scrape's listing be what is seen.

    before: the cells before the listing began. What has gone since may be in the listing or not; it is taken off, so
    that nothing is counted twice. tells_deletions: whether `add_gone` hears of them; where not, a decrease is one.
    """
    for kind in FLOW_TYPES:
        since = cells.gone(source, kind) - before.gone(source, kind)
        flows, seen = max(0, live.get(kind, 0) - since), cells.seen(source, kind)
        if tells_deletions:
            flows = max(flows, seen)
        elif flows < seen:
            cells.add_gone(source, kind, seen - flows)
        cells.set_seen(source, kind, flows)


def _change(state: State, network: str, change: Change, source: str, flows: dict[str, int]) -> None:
    file = CounterFile(state, network)
    unless_impossible(lambda: file.change(lambda cells: change(cells, source, flows), create=False))


def _add_gone(cells: Cells, source: str, flows: dict[str, int]) -> None:
    for kind, count in flows.items():
        cells.add_gone(source, kind, count)
        cells.set_seen(source, kind, max(0, cells.seen(source, kind) - count))


def _note_lost(cells: Cells, source: str, live: dict[str, int]) -> None:
    for kind in FLOW_TYPES:
        cells.add_gone(source, kind, max(live.get(kind, 0), cells.seen(source, kind)))
        cells.set_seen(source, kind, 0)
