"""The metrics for prometheus_client. docs/metrics.md describes their names and labels."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    UntypedMetricFamily,
)

from ...backends.iptables.programs import PREFIXES
from ...model.attachments import NFTABLES
from ...state.counters import BACKENDS, FLOW_TYPES, REFUSED, VERBS
from ...version import __version__
from ..tables import complain
from .scrape import take_scrape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from ...state.counters import Calls, Cells
    from ...state.directory import State
    from .scrape import Scrape

_SOURCES = {backend: (NFTABLES,) if backend == NFTABLES else tuple(PREFIXES.values()) for backend in BACKENDS}
_PER_CALL = ("operation", "backend", "network")


class NatCollector:
    """Collects the metrics on each request, one at a time; prints each error once, until it is resolved."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._turn = threading.Lock()
        self._told: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; raise CniError if neither records nor rules can be read."""
        with self._turn:
            scrape = take_scrape(self._state)
            complain(error for error in scrape.complaints if error.message not in self._told)
            self._told = {error.message for error in scrape.complaints}
        yield from families_of(scrape)


def families_of(scrape: Scrape) -> Iterator[Metric]:
    """Yield the metrics of a scrape."""
    yield _rules(scrape)
    yield _port_mappings(scrape)
    yield _connections(scrape)
    yield _refused(scrape)
    yield from _operations(scrape)
    yield from _conntrack(scrape)
    if scrape.has_table is not None:
        yield GaugeMetricFamily(
            "nat_table_present", "Whether table inet quantum exists (1) or not (0).", value=scrape.has_table
        )
    if scrape.has_cover is not None:
        yield GaugeMetricFamily(
            "nat_cover_present",
            "Whether `reconcile --watch` keeps a copy of table inet quantum, which translates during a flush (1), or not (0).",
            value=scrape.has_cover,
        )
    yield GaugeMetricFamily(
        "nat_last_rebuild_timestamp_seconds", "When the rules were last rebuilt; 0 for never.", value=scrape.rebuilt_at
    )
    yield InfoMetricFamily("nat_build", "The version of quantum-nat that wrote this.", value={"version": __version__})
    yield GaugeMetricFamily("nat_damaged_records", "Records that cannot be read.", value=scrape.damaged)


def _rules(scrape: Scrape) -> Metric:
    # Current numbers are gauges, but names that end in _total are counters': so these are untyped.
    family = UntypedMetricFamily(
        "nat_rules_total", "Current number of NAT rules.", labels=("type", "backend", "network")
    )
    for (kind, backend, network), number in sorted(scrape.rules.items()):
        family.add_metric((kind, backend, network), number)
    return family


def _port_mappings(scrape: Scrape) -> Metric:
    family = UntypedMetricFamily(
        "nat_port_mappings_total", "Current number of port mappings.", labels=("backend", "network")
    )
    for where, number in sorted(scrape.port_mappings.items()):
        family.add_metric(where, number)
    return family


def _connections(scrape: Scrape) -> Metric:
    family = CounterMetricFamily(
        "nat_connections", "Translated connections so far.", labels=("type", "backend", "network")
    )
    for network, cells in scrape.counters.items():
        for backend in _backends_of(network, cells, scrape):
            for kind in FLOW_TYPES:
                family.add_metric((kind, backend, network), _flows(cells, backend, kind))
    return family


def _refused(scrape: Scrape) -> Metric:
    family = CounterMetricFamily(
        "nat_refused_packets", "Packets from clients that allowFrom does not let in.", labels=("network",)
    )
    for network, cells in scrape.counters.items():
        family.add_metric((network,), _flows(cells, NFTABLES, REFUSED))
    return family


def _flows(cells: Cells, backend: str, kind: str) -> int:
    return sum(cells.gone(source, kind) + cells.seen(source, kind) for source in _SOURCES[backend])


def _operations(scrape: Scrape) -> Iterator[Metric]:
    counts = CounterMetricFamily("nat_operations", "Calls, including failed ones.", labels=_PER_CALL)
    failures = CounterMetricFamily("nat_operation_errors", "Failed calls.", labels=(*_PER_CALL, "code"))
    durations = HistogramMetricFamily(
        "nat_operation_duration_seconds", "Duration of calls, without the start of the program.", labels=_PER_CALL
    )
    for network, cells in scrape.counters.items():
        for backend in _backends_of(network, cells, scrape):
            for verb in VERBS:
                labels, calls = (verb, backend, network), cells.calls(backend, verb)
                counts.add_metric(labels, calls.count)
                durations.add_metric(labels, _cumulative(calls), calls.sum_us / 1_000_000)
                for code, number in calls.failures.items():
                    if number:
                        failures.add_metric((*labels, code), number)
    return iter((counts, failures, durations))


def _cumulative(calls: Calls) -> list[tuple[str, float]]:
    buckets, sum_so_far = [], 0
    for bucket_ms, number in calls.buckets.items():
        sum_so_far += number
        buckets.append((str(bucket_ms / 1000), float(sum_so_far)))
    return [*buckets, ("+Inf", float(calls.count))]


def _backends_of(network: str, cells: Cells, scrape: Scrape) -> list[str]:
    """Return the backends that the network uses or has used."""
    has_rules = {backend for _, backend, of_network in scrape.rules if of_network == network}
    return [
        backend
        for backend in BACKENDS
        if backend in has_rules
        or any(cells.calls(backend, verb).count for verb in VERBS)
        or any(_flows(cells, backend, kind) for kind in FLOW_TYPES)
    ]


def _conntrack(scrape: Scrape) -> Iterator[Metric]:
    if scrape.conntrack_entries is not None:
        yield GaugeMetricFamily(
            "nat_conntrack_entries", "Entries in the conntrack table, of all kinds.", value=scrape.conntrack_entries
        )
    if scrape.conntrack_limit is not None:
        yield GaugeMetricFamily(
            "nat_conntrack_entries_limit", "Maximum entries in the conntrack table.", value=scrape.conntrack_limit
        )
