"""Collect the data for metrics: the records, the networks' counters, the kernel's live counters, the conntrack table."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...backends.iptables import counts as iptables_counts
from ...backends.iptables.programs import PREFIXES
from ...backends.nftables import cover
from ...backends.nftables.counts import live_flows
from ...backends.nftables.table import NftablesTable
from ...connections.counts import settle
from ...model.attachments import NFTABLES
from ...model.errors import IO_FAILURE, STATE_DAMAGED, CniError
from ...nat.records import Records, here_of
from ...nat.rules import rules_of
from ...state.counters import Cells, CounterFile, counted_networks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...connections.counts import Flows
    from ...model.attachments import Attachment
    from ...state.directory import State

_CONNTRACK = Path("/proc/sys/net/netfilter")


@dataclass
class Scrape:
    """The data of one scrape.

    rules: by type, backend and network. port_mappings: by backend and network. counters: by network, with the live ones as
    seen. has_table: whether there is a table inet quantum; None if that cannot be read.
    has_cover: whether `reconcile --watch` keeps a copy of it; None likewise. rebuilt_at: when the rules were last
    rebuilt, in seconds since the epoch; 0 for never. conntrack_entries, conntrack_limit: None if connections are not tracked. damaged: the number of unreadable records.
    complaints: errors that do not prevent a result.
    """

    rules: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    port_mappings: Counter[tuple[str, str]] = field(default_factory=Counter)
    counters: dict[str, Cells] = field(default_factory=dict)
    has_table: bool | None = None
    has_cover: bool | None = None
    rebuilt_at: float = 0
    conntrack_entries: int | None = None
    conntrack_limit: int | None = None
    damaged: int = 0
    complaints: list[CniError] = field(default_factory=list)


def take_scrape(state: State) -> Scrape:
    """Collect everything once. Scrapes exclude each other, but ADD and DEL do not wait for them.

    Raises:
        CniError: (50) nf_tables cannot be used, and no network uses iptables; (5) the state directory cannot be read.
    """
    scrape = Scrape()
    try:
        _count_records(state, scrape)
        with _alone(state):
            _count_flows(state, scrape)
    except OSError as error:
        raise CniError(
            IO_FAILURE, f"cannot read the state directory {state.directory}: {error.strerror}", "Run it as root."
        ) from error
    scrape.rebuilt_at = state.rebuilt_at()
    scrape.conntrack_entries = _conntrack("nf_conntrack_count")
    scrape.conntrack_limit = _conntrack("nf_conntrack_max")
    return scrape


def _count_records(state: State, scrape: Scrape) -> None:
    records = Records(state, here_of(state))
    unreadable = records.damaged
    for attachment in records.attachments:
        try:
            _count_rules(attachment, scrape)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            unreadable.append(CniError(STATE_DAMAGED, f"the record of {attachment.id} is damaged: {error!r}"))
    scrape.damaged = len(unreadable)
    scrape.complaints += unreadable


def _count_rules(attachment: Attachment, scrape: Scrape) -> None:
    where = attachment.backend, attachment.id.network
    rules = [(str(rule.nat_type), *where) for rule in rules_of(attachment)]
    scrape.rules.update(rules)
    scrape.port_mappings[where] += sum(mapping.size for mapping in attachment.port_mappings)


@contextmanager
def _alone(state: State) -> Iterator[None]:
    """Exclude other scrapes: the older of two listings would look like a decrease."""
    try:
        directory = os.open(f"{state.directory}/counters", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield  # there are no counters to store
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _count_flows(state: State, scrape: Scrape) -> None:
    """Read the counters, then list, then store what was seen; settle() explains this order."""
    before = {}
    for network in counted_networks(state):
        try:
            before[network] = CounterFile(state, network).read()
        except OSError as error:
            scrape.complaints.append(_unreadable(state, network, error))
    live = _list_flows(state, scrape)
    for network, cells in before.items():
        stored = CounterFile(state, network).change(partial(_store, network, cells, live), create=False)
        if stored is not None:
            scrape.counters[network] = stored


def _store(network: str, before: Cells, live: dict[str, Flows], cells: Cells) -> None:
    for source, flows in live.items():
        settle(cells, source, before, flows.get(network, {}), tells_deletions=source == NFTABLES)


def _list_flows(state: State, scrape: Scrape) -> dict[str, Flows]:
    """Return the live connection counts by source; if one cannot be read, it is left out and its totals stay."""
    live: dict[str, Flows] = {}
    has_iptables = state.has_iptables()
    table = NftablesTable(state.realm)
    try:
        scrape.has_table = table.exists()
        scrape.has_cover = cover.presence() == cover.PRESENT
        live[NFTABLES] = live_flows(table)
    except CniError as error:
        if not has_iptables:
            raise
        scrape.complaints.append(error)
    finally:
        table.close()
    for family, source in PREFIXES.items() if has_iptables else ():
        try:
            live[source] = iptables_counts.live_flows(state, family)
        except CniError as error:
            scrape.complaints.append(error)
    return live


def _unreadable(state: State, network: str, error: OSError) -> CniError:
    return CniError(
        IO_FAILURE,
        f"cannot read {state.directory}/counters/{network}: {error.strerror}",
        f"Remove it with `rm {state.directory}/counters/{network}`; the network's counters then start again from 0.",
    )


def _conntrack(name: str) -> int | None:
    try:
        return int((_CONNTRACK / name).read_text())
    except (OSError, ValueError):
        return None  # the module is not loaded
