"""Connection counts that never go backwards, although the kernel's counters go with their elements.

For each source (who counts) and type of translation, a network's counters have `gone`, the flows of elements that no longer exist,
and `seen`, the flows of elements that existed at the last scrape. The total is `gone` plus the present count. Flows counted
after the last scrape are lost only if the rules disappear without a trace, as with `nft flush ruleset`.

Flows are added only for networks that have counters: with `metrics` false, none are made.

Packets that allowFrom refused are counted in the same way, as one more type.

A pod's start waits for this module.
"""

from __future__ import annotations

from ..state.counters import FLOW_TYPES, REFUSED, CounterFile, counted_networks, unless_impossible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..state.counters import Cells
    from ..state.directory import State

    # By network and type of translation.
    Flows = dict[str, dict[str, int]]
    # Whose they are, their type, how many.
    CountedFlows = tuple[str, str, int]
    Change = Callable[[Cells, str, dict[str, int]], None]

DNAT, MASQUERADE, SNAT = FLOW_TYPES
_COUNTED = (*FLOW_TYPES, REFUSED)


def add_up(counted: Iterable[CountedFlows]) -> Flows:
    """Add up flows by network and type. Flows without an owner, or of a shared port, belong to no network."""
    flows: Flows = {}
    for owner, kind, count in counted:
        # A network's name that fills a comment by itself stands there abbreviated: nobody's, then.
        network, slash, _ = owner.partition("/")
        if count and slash:
            of_network = flows.setdefault(network, {})
            of_network[kind] = of_network.get(kind, 0) + count
    return flows


def add_gone(state: State, source: str, counted: Iterable[CountedFlows]) -> None:
    """Keep the flows of rules that were deleted, as they were when they were last read, for the network of their owner.

    An undo puts such rules back with counters of 0, so it changes nothing here.
    """
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
    for kind in _COUNTED:
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
    for kind in _COUNTED:
        cells.add_gone(source, kind, max(live.get(kind, 0), cells.seen(source, kind)))
        cells.set_seen(source, kind, 0)
