"""Units are equal when they are the same thing, and only then."""

from __future__ import annotations

import pytest

from cni_quantum_nat.model.addresses import Address, Subnet
from cni_quantum_nat.model.units import HostPort

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
    ("port", "text"), [(HostPort(4, "tcp", 80), "80/tcp"), (HostPort(4, "udp", 80, ONE), "80/udp on 192.0.2.1")]
)
def test_a_port_is_written_as_messages_say_it(port: HostPort, text: str) -> None:
    assert str(port) == text
