"""Addresses, records, owners."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.addresses import Address, Endpoint
from cni_quantum_nat.model.attachments import (
    BY_CLIENT,
    EXCLUSIVE,
    OWNER_MAX_BYTES,
    SPREAD,
    Attachment,
    AttachmentId,
    Inbound,
    Outbound,
    PortMapping,
)
from cni_quantum_nat.model.json_text import dumps, loads

NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,199}", fullmatch=True)
INTERFACES = st.text(
    st.characters(codec="ascii", exclude_characters='/: "', categories=["L", "N", "P"]), min_size=1, max_size=15
)
ADDRESSES = st.ip_addresses().map(lambda address: Address.parse(str(address)))
ENDPOINTS = st.builds(
    lambda address, share, name: Endpoint(address, 1 + share % (len(address.packed) * 8), name),
    ADDRESSES,
    st.integers(0, 127),
    st.sampled_from(["", "cni0"]),
)
MAPPINGS = st.builds(
    PortMapping,
    st.none() | ADDRESSES,
    st.integers(1, 65535),
    st.sampled_from(["tcp", "udp", "sctp"]),
    st.integers(1, 65535),
    allocated=st.booleans(),
    sharing=st.sampled_from([EXCLUSIVE, SPREAD, BY_CLIENT]),
    allow_from=st.lists(ENDPOINTS.map(lambda endpoint: endpoint.network), max_size=2).map(tuple),
    publish_on=st.lists(INTERFACES, max_size=2).map(tuple),
)
FAMILIES = st.sampled_from([(), (4,), (6,), (4, 6)])
ATTACHMENTS = st.builds(
    lambda identity, more: Attachment(identity, **more),
    st.builds(AttachmentId, NAMES, NAMES, INTERFACES),
    st.fixed_dictionaries(
        {
            "netns": st.text(),
            "netns_identity": st.tuples(st.integers(0), st.integers(0)),
            "endpoints": st.lists(ENDPOINTS, max_size=3),
            "port_mappings": st.lists(MAPPINGS, max_size=3),
            "outbound": st.builds(
                Outbound,
                FAMILIES,
                st.dictionaries(st.sampled_from([4, 6]), st.lists(INTERFACES, max_size=2).map(tuple)),
                st.dictionaries(st.sampled_from([4, 6]), ADDRESSES),
            ),
            "backend": st.sampled_from(["nftables", "iptables"]),
            "inbound": st.builds(
                Inbound,
                snat=st.booleans(),
                masquerade_all=st.booleans(),
                ipv6_localhost=st.booleans(),
                allow_from=st.lists(ENDPOINTS.map(lambda endpoint: endpoint.network), max_size=2).map(tuple),
                publish_on=st.lists(INTERFACES, max_size=2).map(tuple),
                conditions=st.dictionaries(st.sampled_from([4, 6]), st.lists(st.text(), max_size=2).map(tuple)),
                mark_bit=st.none() | st.integers(0, 31),
                set_mark_chain=st.text(),
            ),
            "established_timeout_s": st.integers(1),
            "udp_timeouts_s": st.none() | st.tuples(st.integers(1), st.integers(1)),
            "created_at": st.floats(0, 1e10),
        }
    ),
)


@given(st.ip_addresses())
def test_an_address_is_parsed_and_formatted_as_by_ipaddress(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    ours = Address.parse(str(address))
    assert (ours.family, ours.packed) == (address.version, address.packed)
    assert ipaddress.ip_address(str(ours)) == address
    # CPython 3.13 looks into IPv4-mapped addresses, older ones do not: neither do we.
    is_mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    assert ours.is_loopback == (address.is_loopback and not is_mapped)
    assert ours.is_unspecified == (address.is_unspecified and not is_mapped)


@given(ENDPOINTS)
def test_the_network_of_an_endpoint_matches_ipaddress(endpoint: Endpoint) -> None:
    network = ipaddress.ip_network(str(endpoint), strict=False)
    assert ipaddress.ip_network(str(endpoint.network)) == network
    after = int(network.broadcast_address) + 1
    assert endpoint.network.after in (b"", after.to_bytes(len(endpoint.address.packed) + 1, "big")[1:])
    assert str(Endpoint.parse(str(endpoint))) == str(endpoint)


@pytest.mark.parametrize(
    "text",
    ["10.0.0.2", "10.0.0.2/", "10.0.0.2/0", "10.0.0.2/33", "10.0.0.2/-1", "fd00::1/129", "x/24", "10.0.0.2/٣", "1/24"],
)
def test_an_address_without_a_usable_prefix_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"prefix length|not an IP address"):
        Endpoint.parse(text)


@given(ATTACHMENTS)
def test_a_record_is_read_as_it_was_written(attachment: Attachment) -> None:
    record = attachment.as_record()
    written: Any = loads(dumps(record))
    assert Attachment.from_record(written).as_record() == record


@given(NAMES, NAMES, INTERFACES)
def test_an_owner_fits_into_a_comment_and_begins_with_its_network(network: str, container: str, interface: str) -> None:
    owner = AttachmentId(network, container, interface).owner
    assert len(owner.encode()) <= OWNER_MAX_BYTES
    assert owner.startswith(f"{network}/"[:100])
    assert '"' not in owner


def test_long_owners_that_differ_at_the_end_are_different() -> None:
    one = AttachmentId("n" * 60, "c" * 80, "eth0")
    two = AttachmentId("n" * 60, "c" * 80, "eth1")
    assert one.owner != two.owner
