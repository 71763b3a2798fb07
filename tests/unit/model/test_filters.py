"""Networks and interfaces of clients are read as ipaddress reads them, and nothing else is."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.filters import parse_interfaces, parse_sources

NETWORKS = st.builds(
    lambda address, length: ip_network(f"{address}/{min(length, address.max_prefixlen)}", strict=False),
    st.ip_addresses() | st.sampled_from([ip_address("10.0.0.0"), ip_address("10.0.0.255"), ip_address("fd00::")]),
    st.integers(0, 128),
).filter(lambda network: network.version == 4 or network.network_address.ipv4_mapped is None)
ANYTHING = st.text(max_size=20) | st.integers() | st.none() | st.lists(st.text(), max_size=1)


def collapsed(networks: list[Any]) -> list[Any]:
    of_4 = [network for network in networks if isinstance(network, IPv4Network)]
    of_6 = [network for network in networks if isinstance(network, IPv6Network)]
    return [*collapse_addresses(of_4), *collapse_addresses(of_6)]


@given(st.lists(NETWORKS, max_size=8))
def test_the_same_addresses_and_no_network_within_another(networks: list[Any]) -> None:
    read = [ip_network(str(subnet)) for subnet in parse_sources(map(str, networks))]
    assert collapsed(read) == collapsed(networks)
    assert not [(a, b) for a in read for b in read if a is not b and a.overlaps(b)]
    assert all(network.prefixlen for network in read), "an interval set has no empty prefix"


@given(st.ip_addresses())
def test_an_address_is_the_network_of_itself(address: Any) -> None:
    if getattr(address, "ipv4_mapped", None) is None:
        assert [str(subnet) for subnet in parse_sources([str(address)])] == [str(ip_network(address))]


@given(ANYTHING)
def test_anything_else_is_a_value_error(text: object) -> None:
    try:
        read = parse_sources([text])
    except ValueError:
        return
    assert collapsed([ip_network(str(text))]) == collapsed([ip_network(str(subnet)) for subnet in read])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.0.2.1/24", r"write 192\.0\.2\.0/24"),
        ("0.0.0.0/00", "needs a prefix length"),
        ("10.0.0.0/33", "needs a prefix length from 1 to 32"),
        ("::ffff:0.0.0.0/96", "is IPv4-mapped"),
        ("::ffff:192.0.2.1", "is IPv4-mapped"),
        ("/8", "is not an IP address"),
    ],
)
def test_what_nobody_can_have_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_sources([text])


@given(st.lists(ANYTHING, max_size=4))
def test_interfaces_are_names_that_no_program_reads_as_syntax(names: list[object]) -> None:
    try:
        read = parse_interfaces(names)
    except ValueError:
        return
    assert read == tuple(dict.fromkeys(names))
    assert all(isinstance(name, str) and 1 <= len(name.encode()) <= 15 for name in read)
    assert not [name for name in read if set(name) & set('"*\\/:; \n')]
