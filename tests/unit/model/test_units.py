"""Units are equal when they are the same thing, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.addresses import Address, Subnet
from cni_quantum_nat.model.units import HostPort, Overlaps, PortRange

if TYPE_CHECKING:
    from cni_quantum_nat.model.units import Unit

ONE = Address.parse("192.0.2.1")
PORTS = [
    HostPort(family, protocol, port, address)
    for family in (4, 6)
    for protocol in ("tcp", "udp")
    for port in (80, 81)
    for address in (None, ONE, Address.parse("2001:db8::1"))
]


def test_each_field_tells_ports_apart_and_equal_ones_are_one() -> None:
    again = [HostPort(port.family, port.protocol, port.port, port.address) for port in PORTS]
    assert len({*PORTS, *again}) == len(PORTS)
    assert again == PORTS


def test_a_port_an_address_and_a_network_are_never_equal() -> None:
    assert len({ONE, Subnet(ONE, 32), HostPort(4, "tcp", 80, ONE)}) == 3


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (HostPort(4, "tcp", 80), "80/tcp"),
        (HostPort(4, "udp", 80, ONE), "80/udp on 192.0.2.1"),
        (HostPort(4, "tcp", 80, None, 20), "80-99/tcp"),
    ],
)
def test_a_port_is_written_as_messages_say_it(port: HostPort, text: str) -> None:
    assert str(port) == text


def test_a_range_is_another_unit_than_its_first_port() -> None:
    assert HostPort(4, "tcp", 80, None, 20) != HostPort(4, "tcp", 80)
    assert HostPort(4, "tcp", 80, None, 20).ports == PortRange(80, 99)
    assert HostPort(4, "tcp", 80).ports == 80


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ((100, 20), (110, 20), (110, 10)),
        ((100, 20), (105, 5), (105, 5)),
        ((100, 20), (119, 1), (119, 1)),
        ((100, 20), (100, 20), (100, 20)),
        ((100, 20), (120, 20), None),
        ((100, 1), (101, 1), None),
    ],
)
def test_common_ports(one: tuple[int, int], other: tuple[int, int], common: tuple[int, int] | None) -> None:
    first, second = (HostPort(4, "tcp", port, None, size) for port, size in (one, other))
    expected = HostPort(4, "tcp", common[0], None, common[1]) if common else None
    assert first.common_with(second) == second.common_with(first) == expected


def test_ports_of_another_family_protocol_or_address_have_nothing_in_common() -> None:
    ports = [HostPort(port.family, port.protocol, 80, port.address, 20) for port in PORTS if port.port == 80]
    assert all(one.common_with(other) is None for one in ports for other in ports if one != other)


UNITS = st.builds(
    HostPort,
    st.just(4),
    st.sampled_from(["tcp", "udp"]),
    st.integers(1, 12),
    st.sampled_from([None, ONE]),
    st.sampled_from([1, 1, 2, 5]),
) | st.sampled_from([ONE, Subnet(ONE, 32)])


@given(st.lists(UNITS), UNITS)
def test_overlaps_are_those_that_a_comparison_with_each_unit_finds(units: list[Unit], asked: Unit) -> None:
    found = Overlaps(units).of(asked)
    expected = {
        unit
        for unit in units
        if unit == asked
        or (isinstance(unit, HostPort) and isinstance(asked, HostPort) and unit.common_with(asked) is not None)
    }
    assert set(found) == expected
    assert len(found) == len(expected), "each once"
