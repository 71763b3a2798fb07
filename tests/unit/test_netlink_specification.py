"""Every message that is written for nf_tables and conntrack is what Linux specifies, and means what was asked for."""

from __future__ import annotations

import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_quantum_nat.hotpath import conntrack, nftables
from cni_quantum_nat.hotpath.addresses import Address, Subnet
from cni_quantum_nat.hotpath.model import PortMapping
from cni_quantum_nat.hotpath.netlink import message
from cni_quantum_nat.hotpath.rules import Element
from cni_quantum_nat.hotpath.table import CHAIN_USE, SETS
from tests.unit.netlink_specification import ACK, CREATE, DUMP, EXCL, REQUEST, Message, NotSpecified, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_quantum_nat.hotpath.rules import Fields

INET, IPV4, IPV6 = 1, 2, 10
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
VERDICTS = {"jump": 0xFFFFFFFD, "goto": 0xFFFFFFFC}  # NFT_JUMP and NFT_GOTO are -3 and -4
WIDTHS = {"ipv4_addr": 4, "ipv6_addr": 16, "inet_proto": 1, "inet_service": 2, "ifname": 16, "slot": 4}
NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=15)
ADDRESSES = {
    4: st.binary(min_size=4, max_size=4).map(lambda packed: Address(4, packed)),
    6: st.binary(min_size=16, max_size=16).map(lambda packed: Address(6, packed)),
}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "ipv4_addr": ADDRESSES[4],
    "ipv6_addr": ADDRESSES[6],
    "inet_proto": st.sampled_from(sorted(PROTOCOLS)),
    "inet_service": st.integers(1, 65535),
    "ifname": NAMES,
    "slot": st.integers(0, 63),
    "jump": NAMES,
    "goto": NAMES,
}


class Wire:
    """In the place of a netlink socket: decodes what is sent, and answers with what it is given."""

    def __init__(self, answers: list[Any] | None = None) -> None:
        self.messages: list[Message] = []
        self._answers = answers or []

    def __call__(self, protocol: int) -> Wire:
        assert protocol == 12  # NETLINK_NETFILTER, `protonum` of both specifications
        return self

    def exchange(self, datagram: bytes, _at_least: int = 1) -> list[Any]:
        self.messages += decode(datagram)
        return []

    def dump(self, request: bytes) -> Iterator[Any]:
        self.messages += decode(request)
        yield from self._answers

    def close_without_waiting(self) -> None:
        return None


@st.composite
def elements(draw: st.DrawFn) -> Element:
    """Make an element of any set; of a set of intervals, a subnet."""
    layout = SETS[draw(st.sampled_from(sorted(SETS)))]
    key: Fields = tuple(draw(FIELDS[kind]) for kind in layout.key)
    if layout.has_intervals:
        address = key[0]
        assert isinstance(address, Address)
        bits = 8 * len(address.packed)
        prefix_length = draw(st.integers(1, bits))
        first = int.from_bytes(address.packed, "big") >> (bits - prefix_length) << (bits - prefix_length)
        key = (Subnet(Address(address.family, first.to_bytes(bits // 8, "big")), prefix_length),)
    return Element(layout.name, key, tuple(draw(FIELDS[kind]) for kind in layout.data), draw(NAMES))


def as_linux_reads(kinds: tuple[str, ...], value: bytes) -> list[object]:
    """Take a value apart as nf_tables does: fields in registers of four bytes, each filled up with zeros."""
    fields: list[object] = []
    for kind in kinds:
        width = WIDTHS[kind]
        field, padding = value[:width], value[width : -(-width // 4) * 4]
        assert not any(padding)
        assert len(field) == width
        value = value[-(-width // 4) * 4 :]
        match kind:
            case "ipv4_addr" | "ipv6_addr":
                fields.append(str(ip_address(field)))
            case "inet_proto" | "inet_service":
                fields.append(int.from_bytes(field, "big"))
            case "slot":
                fields.append(int.from_bytes(field, sys.byteorder))
            case _:
                fields.append(field.rstrip(b"\0").decode())
    assert value == b""
    return fields


def as_meant(field: object) -> object:
    """Return a field as `as_linux_reads` should."""
    if isinstance(field, Subnet):
        return str(ip_address(field.first.packed))
    if isinstance(field, Address):
        return str(ip_address(field.packed))
    return PROTOCOLS.get(field, field) if isinstance(field, str) else field


def assert_is_element(element: Element, listed: list[Any], *, with_data: bool) -> None:
    """See that what is listed is the element, and behind a subnet its end."""
    layout = SETS[element.set_name]
    first, *ends = listed
    assert as_linux_reads(layout.key, first["key"][0]["value"][0]) == list(map(as_meant, element.key))
    expected = (
        {"key", "userdata", "data"} if with_data and layout.data else {"key", "userdata"} if with_data else {"key"}
    )
    assert set(first) == expected
    if with_data:
        kind, size, *comment = first["userdata"][0]
        assert (kind, size, bytes(comment)) == (0, len(comment), element.owner.encode() + b"\0")
        if layout.data:
            assert_is_data(layout.data, element.data, first["data"][0])
    subnet = element.key[0]
    if not isinstance(subnet, Subnet):
        assert ends == []
        return
    bits = 8 * len(subnet.first.packed)
    after = int.from_bytes(subnet.first.packed, "big") + (1 << (bits - subnet.prefix_length))
    if after >> bits:
        assert ends == []  # it goes up to the last address there is
        return
    assert ends == [{"key": [{"value": [after.to_bytes(bits // 8, "big")]}], "flags": [1]}]  # NFT_SET_ELEM_INTERVAL_END


def assert_is_data(kinds: tuple[str, ...], fields: Fields, data: dict[str, Any]) -> None:
    if kinds[0] in VERDICTS:
        assert data == {"verdict": [{"code": [VERDICTS[kinds[0]]], "chain": [fields[0]]}]}
    else:
        assert as_linux_reads(kinds, data["value"][0]) == list(map(as_meant, fields))


def test_every_set_is_covered() -> None:
    assert {kind for layout in SETS.values() for kind in (*layout.key, *layout.data)} <= FIELDS.keys()


@settings(deadline=None, max_examples=300)
@given(st.lists(elements(), max_size=5), st.lists(elements(), min_size=1, max_size=5), st.booleans())
def test_a_transaction(delete: list[Element], add: list[Element], exclusive: bool) -> None:
    with patch.object(nftables, "NetlinkSocket", Wire()) as wire:
        nftables.NftablesTable().commit(delete=delete, add=add, exclusive=exclusive)
    begin, *body, end = wire.messages
    assert (begin.operation, end.operation) == ("batch-begin", "batch-end")
    assert {(m.family, m.resource, m.flags) for m in (begin, end)} == {(0, 10, REQUEST)}  # NFNL_SUBSYS_NFTABLES
    assert [m.operation for m in body] == ["delsetelem"] * len(delete) + ["newsetelem"] * len(add)
    assert len({m.sequence for m in wire.messages}) == len(wire.messages)
    for element, sent in zip([*delete, *add], body, strict=True):
        is_new = sent.operation == "newsetelem"
        assert (sent.family, sent.resource) == (INET, 0)
        assert sent.flags & ~ACK == REQUEST | (CREATE if is_new else 0) | (EXCL if is_new and exclusive else 0)
        assert (sent.attributes["table"], sent.attributes["set"]) == (["quantum"], [element.set_name])
        listed: Any = sent.attributes["elements"][0]
        assert_is_element(element, listed["elem"], with_data=is_new)
    assert body[-1].flags & ACK


@settings(deadline=None)
@given(st.lists(elements(), min_size=1, max_size=100))
def test_looking_elements_up(wanted: list[Element]) -> None:
    with patch.object(nftables, "NetlinkSocket", Wire()) as wire:
        nftables.NftablesTable().find(wanted)
    asked = [m for m in wire.messages if m.attributes["set"] != ["layout"]]
    assert {(m.operation, m.flags, m.family) for m in wire.messages} == {("getsetelem", REQUEST, INET)}
    for element, sent in zip(wanted, asked, strict=True):
        listed: Any = sent.attributes["elements"][0]
        (one,) = listed["elem"]
        assert as_linux_reads(SETS[element.set_name].key, one["key"][0]["value"][0]) == list(map(as_meant, element.key))


def test_everything_else_that_is_asked_of_nftables() -> None:
    with patch.object(nftables, "NetlinkSocket", Wire()) as wire:
        table = nftables.NftablesTable()
        table.exists()
        table.damaged_chains()
        table.owned_elements()
        list(table.counted_flows())
    by_operation: dict[str, list[Message]] = {}
    for sent in wire.messages:
        by_operation.setdefault(sent.operation, []).append(sent)
    assert set(by_operation) == {"getgen", "gettable", "getchain", "getsetelem"}
    assert [m.attributes for m in by_operation["gettable"]] == [{"name": ["quantum"]}]
    chains = [(m.attributes["table"], m.attributes["name"]) for m in by_operation["getchain"]]
    assert chains == [(["quantum"], [name]) for name in CHAIN_USE]
    dumped = {m.attributes["set"][0] for m in by_operation["getsetelem"] if m.flags == REQUEST | DUMP}
    assert dumped >= set(SETS)


MAPPINGS = st.builds(
    PortMapping,
    st.one_of(st.none(), ADDRESSES[4], ADDRESSES[6]),
    st.integers(1, 65535),
    st.just("udp"),
    st.integers(1, 65535),
)


@settings(deadline=None, max_examples=200)
@given(st.one_of(ADDRESSES[4], ADDRESSES[6]))
def test_selecting_a_containers_connections(address: Address) -> None:
    with patch.object(conntrack, "NetlinkSocket", Wire()) as wire, conntrack.ConnectionTracker() as tracker:
        tracker.forget_container([address])
    if address.family == 6:  # they are listed, and compared by the program
        assert [(m.operation, m.flags, m.family, m.attributes) for m in wire.messages] == [
            ("conntrack-get", REQUEST | DUMP, IPV6, {})
        ]
        return
    source = {"tuple-ip": [{"ip-v4-src": [int.from_bytes(address.packed, "big")]}]}
    assert [(m.operation, m.flags, m.family) for m in wire.messages] == [("conntrack-delete", REQUEST | ACK, IPV4)] * 2
    assert [m.attributes for m in wire.messages] == [
        {"tuple-orig": [source], "filter": [{"orig-flags": [1]}]},  # CTA_FILTER_FLAG_CTA_IP_SRC
        {"tuple-reply": [source], "filter": [{"reply-flags": [1]}]},
    ]


@settings(deadline=None, max_examples=200)
@given(st.lists(MAPPINGS, min_size=1, max_size=3))
def test_selecting_stale_udp(mappings: list[PortMapping]) -> None:
    local = [Address.parse("192.0.2.1"), Address.parse("2001:db8::1")]
    with (
        patch.object(conntrack, "NetlinkSocket", Wire()) as wire,
        patch.object(conntrack, "local_addresses", lambda _: local),
        conntrack.ConnectionTracker() as tracker,
    ):
        tracker.forget_stale_udp(mappings, {4, 6})
    for sent in wire.messages:
        tuples: Any = sent.attributes["tuple-orig"][0]
        protocol = tuples["tuple-proto"][0]
        assert protocol["proto-num"] == [17]
        if sent.operation == "conntrack-get":
            assert sent.flags == REQUEST | DUMP
            continue
        assert (sent.operation, sent.family) == ("conntrack-delete", IPV4)
        (target,) = tuples["tuple-ip"][0]["ip-v4-dst"]
        wanted = [(m.specific_host_ip or local[0], m.host_port) for m in mappings]
        meant = [(int.from_bytes(a.packed, "big"), port) for a, port in wanted if a.family == 4]
        assert (target, protocol["proto-dst-port"][0]) in meant
        # CTA_FILTER_FLAG_CTA_IP_DST, CTA_PROTO_NUM and CTA_PROTO_DST_PORT
        assert sent.attributes["filter"] == [{"orig-flags": [2 | 8 | 32]}]


def flow(family: int, source: bytes, zone: int | None) -> bytes:
    """Write a connection as Linux lists it."""

    def attribute(number: int, content: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(content), number) + content + b"\0" * (-len(content) % 4)

    width = 4 if family == IPV4 else 16
    ips = attribute(1 if family == IPV4 else 3, source) + attribute(2 if family == IPV4 else 4, bytes(width))
    ports = attribute(1, b"\x11") + attribute(2, b"\0\5") + attribute(3, b"\0\7")
    tuples = attribute(0x8001, ips) + attribute(0x8002, ports)
    content = (
        attribute(0x8001, tuples) + attribute(0x8002, tuples) + attribute(3, b"\0\0\0\0") + attribute(12, b"\1\2\3\4")
    )
    return (
        struct.pack(">BBH", family, 0, 0)
        + content
        + (attribute(18, zone.to_bytes(2, "big")) if zone is not None else b"")
    )


@settings(deadline=None)
@given(st.sampled_from([IPV4, IPV6]), st.binary(min_size=16, max_size=16), st.none() | st.integers(0, 65535))
def test_deleting_one_connection(family: int, source: bytes, zone: int | None) -> None:
    source = source[:4] if family == IPV4 else source
    with patch.object(conntrack, "NetlinkSocket", Wire()) as wire, conntrack.ConnectionTracker() as tracker:
        tracker.delete([conntrack.Flow(flow(family, source, zone))])
    (sent,) = wire.messages
    assert (sent.operation, sent.flags, sent.family) == ("conntrack-delete", REQUEST | ACK, family)
    assert set(sent.attributes) == {"tuple-orig", "id"} | ({"zone"} if zone is not None else set())
    assert sent.attributes["id"] == [0x01020304]
    assert zone is None or sent.attributes["zone"] == [zone]
    tuples: Any = sent.attributes["tuple-orig"][0]
    assert tuples["tuple-proto"] == [{"proto-num": [17], "proto-src-port": [5], "proto-dst-port": [7]}]


@pytest.mark.parametrize(
    "wrong",
    [
        message(0xA0F, REQUEST, 1, b"\1\0\0\0"),  # a reply's
        message(0xA01, REQUEST, 1, b"\1\1\0\0"),  # a version
        message(0xA01, REQUEST, 1, b"\1\0\0\0" + b"\x05\0\1\0q\0\0\0"),  # a name without its NUL
        message(0xA01, REQUEST, 1, b"\1\0\0\0" + b"\x06\0\x63\0q\0\0\0"),  # an unknown attribute
        message(0xA01, REQUEST, 1, b"\1\0\0\0" + b"\x06\0\1\x80q\0\0\0"),  # a nest that is none
        message(0xA01, REQUEST, 1, b"\1\0\0\0" + b"\x06\0\1\0q\0\0\1"),  # padding
        message(0xA01, REQUEST, 1, b"\1\0\0\0" + b"\x06\0\2\0\0\1\0\0"),  # flags of two bytes
        message(0xA01, 0, 1, b"\1\0\0\0"),
    ],
)
def test_the_decoder_is_strict(wrong: bytes) -> None:
    with pytest.raises(NotSpecified):
        decode(wrong)
