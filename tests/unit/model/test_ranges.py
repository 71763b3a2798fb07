"""Ports in a row become a range, and the parts of a range are what they were."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.addresses import Address
from cni_quantum_nat.model.attachments import SPREAD, PortMapping
from cni_quantum_nat.model.ranges import LEAST, join, loopback_only, part_of, ports_of, share, united

LOCALHOST = Address.parse("127.0.0.1")
INTERVALS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda found: (found[0], sum(found))))


def mapping(port: int, size: int = 1, protocol: str = "tcp", host_ip: Address | None = None) -> PortMapping:
    return PortMapping(host_ip, port, protocol, port, size=size)


def row(first: int, size: int, protocol: str = "tcp", host_ip: Address | None = None) -> list[PortMapping]:
    return [mapping(port, 1, protocol, host_ip) for port in range(first, first + size)]


def shown(mappings: list[PortMapping]) -> list[tuple[int, int]]:
    return [(found.host_port, found.size) for found in mappings]


def ports_in(intervals: list[tuple[int, int]]) -> set[int]:
    return {port for first, last in intervals for port in range(first, last + 1)}


@pytest.mark.parametrize(("size", "joined"), [(LEAST - 1, LEAST - 1), (LEAST, 1), (LEAST + 1, 1)])
def test_so_many_ports_in_a_row_are_a_range(size: int, joined: int) -> None:
    assert len(join(row(100, size))) == joined


def test_order_and_other_mappings_make_no_difference() -> None:
    ports = row(100, 20)
    mixed = [*reversed(ports[10:]), mapping(7), *ports[:10], *row(100, 20, "udp"), *row(100, 20, host_ip=LOCALHOST)]
    joined = join(mixed)
    assert shown(joined) == [(100, 20), (7, 1), (100, 20), (100, 20)]
    assert [found.protocol for found in joined] == ["tcp", "tcp", "udp", "tcp"]
    assert joined[3].host_ip == LOCALHOST


def test_a_gap_ends_a_range_and_ranges_in_a_row_are_one() -> None:
    assert shown(join([*row(100, 20), *row(121, 20)])) == [(100, 20), (121, 20)]
    assert shown(join([mapping(100, 20), *row(120, 3), mapping(123, 30)])) == [(100, 53)]


def test_shifted_shared_and_allocated_ports_stay_single() -> None:
    shifted = [PortMapping(None, port, "tcp", port + 1) for port in range(100, 120)]
    shared = [PortMapping(None, port, "tcp", port, sharing=SPREAD) for port in range(200, 220)]
    allocated = [PortMapping(None, port, "tcp", port, allocated=True) for port in range(300, 320)]
    assert join([*shifted, *shared, *allocated]) == [*shifted, *shared, *allocated]


@given(st.sets(st.integers(1, 120)))
def test_joining_keeps_each_port_once(numbers: set[int]) -> None:
    joined = join([mapping(number) for number in numbers])
    assert sorted(part.host_port for one in joined for part in ports_of(one)) == sorted(numbers)
    assert all(one.size == 1 or one.size >= LEAST for one in joined)


@pytest.mark.parametrize(
    ("ports", "left"),
    [
        ({150}, [(100, 50), (150, 1), (151, 49)]),
        ({100}, [(100, 1), (101, 99)]),
        ({199}, [(100, 99), (199, 1)]),
        ({99, 200}, [(100, 100)]),
    ],
)
def test_shared_ports_of_a_range_become_single_ones(ports: set[int], left: list[tuple[int, int]]) -> None:
    parts = share(mapping(100, 100), ports, SPREAD)
    assert shown(parts) == left
    assert {part.host_port for part in parts if part.sharing} == ports & set(range(100, 200))


def test_a_short_part_of_a_range_is_single_ports() -> None:
    assert shown(part_of(mapping(100, 100), 110, 110 + LEAST - 1)) == [(110, LEAST)]
    assert shown(part_of(mapping(100, 100), 110, 112)) == [(110, 1), (111, 1), (112, 1)]
    assert part_of(mapping(100, 100), 100, 99) == []


@given(INTERVALS)
def test_united_intervals_contain_the_same_ports_and_do_not_overlap(intervals: list[tuple[int, int]]) -> None:
    result = united(intervals)
    assert ports_in(result) == ports_in(intervals)
    assert all(before[1] < after[0] for before, after in pairwise(result))


@given(INTERVALS, INTERVALS)
def test_loopback_only_is_what_no_other_address_has(
    closed: list[tuple[int, int]], opened: list[tuple[int, int]]
) -> None:
    mappings = [mapping(first, last - first + 1, host_ip=LOCALHOST) for first, last in closed]
    mappings += [mapping(first, last - first + 1) for first, last in opened]
    found = list(loopback_only(mappings))
    assert ports_in([(first, last) for _, first, last in found]) == ports_in(closed) - ports_in(opened)
