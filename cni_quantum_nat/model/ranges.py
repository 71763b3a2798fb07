"""Ranges among port mappings: host ports in a row that each lead to the same port of the container. No I/O.

A range is one element in the kernel, one rule, one entry of a record, and one unit: it is taken, refused and released as a whole.
A pod's start waits for this module.
"""

from __future__ import annotations

from .attachments import EXCLUSIVE, PortMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    Interval = tuple[int, int]  # the first and the last port

# Fewer ports in a row stay single ones: docs/development/ruleset.md has the figures. Whoever changes this number raises LAYOUT in
# backends/nftables/layout.py: records say which ranges there are, and the table must have the same.
LEAST = 16


def join(mappings: list[PortMapping]) -> list[PortMapping]:
    """Return the mappings with ranges in place of ports in a row, wherever these stand in the list. No two mappings overlap.

    Ports that are shared, or were allocated, stay single. A range takes the place of the first of its ports in the list.
    """
    if len(mappings) < LEAST and all(mapping.size == 1 for mapping in mappings):
        return mappings
    rows: dict[object, list[PortMapping]] = {}
    for mapping in mappings:
        if mapping.host_port == mapping.container_port and not (mapping.allocated or mapping.sharing):
            rows.setdefault((mapping.protocol, mapping.host_ip, mapping.filters), []).append(mapping)
    ranges: dict[PortMapping, PortMapping] = {}  # by each of the mappings in it
    for of_address in rows.values():
        for row in _in_a_row(sorted(of_address, key=lambda mapping: mapping.host_port)):
            size = row[-1].last_host_port - row[0].host_port + 1
            if size >= LEAST:
                ranges.update(dict.fromkeys(row, _range_of(row[0], row[0].host_port, size)))
    return list(dict.fromkeys(ranges.get(mapping, mapping) for mapping in mappings))


def _in_a_row(ordered: list[PortMapping]) -> Iterator[list[PortMapping]]:
    """Yield the mappings in groups, each of which has its ports in a row."""
    row: list[PortMapping] = []
    for mapping in ordered:
        if row and row[-1].last_host_port + 1 != mapping.host_port:
            yield row
            row = []
        row.append(mapping)
    if row:
        yield row


def share(mapping: PortMapping, ports: Collection[int], sharing: str) -> list[PortMapping]:
    """Return the mapping, with this sharing if its host port is one of `ports`; of a range, those ports become single ones."""
    if mapping.size == 1:
        mapping.sharing = sharing if mapping.host_port in ports else EXCLUSIVE
        return [mapping]
    parts: list[PortMapping] = []
    first = mapping.host_port
    for port in sorted(port for port in ports if mapping.host_port <= port <= mapping.last_host_port):
        parts += part_of(mapping, first, port - 1)
        parts.append(_range_of(mapping, port, 1))
        parts[-1].sharing = sharing
        first = port + 1
    return [*parts, *part_of(mapping, first, mapping.last_host_port)] if parts else [mapping]


def part_of(mapping: PortMapping, first: int, last: int) -> list[PortMapping]:
    """Return the ports from first to last of a range: a range, or single ports if there are too few for one."""
    part = _range_of(mapping, first, last - first + 1)
    return [part] if part.size >= LEAST else ports_of(part)


def ports_of(mapping: PortMapping) -> list[PortMapping]:
    """Return the ports of a range as single ones."""
    return [_range_of(mapping, port, 1) for port in range(mapping.host_port, mapping.last_host_port + 1)]


def _range_of(mapping: PortMapping, first: int, size: int) -> PortMapping:
    return PortMapping(
        mapping.host_ip,
        first,
        mapping.protocol,
        first,
        size=size,
        created_at=mapping.created_at,
        live=mapping.live,
        allow_from=mapping.allow_from,
        publish_on=mapping.publish_on,
    )


def united(intervals: Iterable[Interval]) -> list[Interval]:
    """Return intervals that contain the same ports and do not overlap, in order."""
    result: list[Interval] = []
    for first, last in sorted(intervals):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def loopback_only(mappings: list[PortMapping]) -> Iterator[tuple[str, int, int]]:
    """Yield the container ports that are published on 127.0.0.1 and on no other address: protocol, first and last."""
    closed: dict[str, list[Interval]] = {}
    opened: dict[str, list[Interval]] = {}
    for mapping in mappings:
        last = mapping.container_port + mapping.size - 1
        of_kind = closed if mapping.on_loopback_only else opened
        of_kind.setdefault(mapping.protocol, []).append((mapping.container_port, last))
    for protocol, intervals in closed.items():
        for first, last in _without(united(intervals), united(opened.get(protocol, ()))):
            yield protocol, first, last


def _without(intervals: list[Interval], others: list[Interval]) -> Iterator[Interval]:
    """Yield what is left of intervals without the ports of others. Both are in order and do not overlap among themselves."""
    place = 0
    for first, last in intervals:
        while place < len(others) and others[place][1] < first:
            place += 1
        rest, at = first, place
        while at < len(others) and others[at][0] <= last:
            if rest < others[at][0]:
                yield rest, others[at][0] - 1
            rest = others[at][1] + 1
            at += 1
        if rest <= last:
            yield rest, last
