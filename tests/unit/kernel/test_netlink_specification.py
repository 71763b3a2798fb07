"""Every message that is written for nf_tables and conntrack is what Linux specifies, and means what was asked for."""

from __future__ import annotations

import struct
import sys
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables import table as nftables
from cni_quantum_nat.backends.nftables.layout import SETS, subnets_set, timeout_set, udp_timeout_set
from cni_quantum_nat.backends.nftables.rules import Element
from cni_quantum_nat.connections import tracker as conntrack
from cni_quantum_nat.kernel.netlink import message
from cni_quantum_nat.model.addresses import Address, Subnet
from cni_quantum_nat.model.attachments import PortMapping
from cni_quantum_nat.model.units import PortRange
from tests.unit.kernel.netlink_specification import ACK, CREATE, DUMP, EXCL, REQUEST, Message, NotSpecified, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_quantum_nat.backends.nftables.layout import SetLayout
    from cni_quantum_nat.backends.nftables.rules import Fields

INET, IPV4, IPV6 = 1, 2, 10
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
NFT_GOTO = 0xFFFFFFFC  # -4
WIDTHS = {"inet_proto": 1, "inet_service": 2, "inet_service-inet_service": 2, "ifname": 16, "bucket": 4}
NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=15)
ADDRESSES = {
    4: st.binary(min_size=4, max_size=4).map(lambda packed: Address(4, packed)),
    6: st.binary(min_size=16, max_size=16).map(lambda packed: Address(6, packed)),
}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "inet_proto": st.sampled_from(sorted(PROTOCOLS)),
    "inet_service": st.integers(1, 65535),
    "inet_service-inet_service": st.builds(PortRange, st.integers(1, 30000), st.integers(30001, 65535)),
    "ifname": NAMES,
    "bucket": st.integers(0, 63),
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

    def dump_unchanged(self, request: bytes) -> list[Any]:
        return list(self.dump(request))

    def close_without_waiting(self) -> None:
        return None


SET_NAMES = [
    *sorted(SETS),
    subnets_set(4, 24),
    subnets_set(6, 64),
    timeout_set(4, 60),
    timeout_set(6, 60),
    udp_timeout_set(4, (30, 60)),
]


@st.composite
def elements(draw: st.DrawFn) -> Element:
    """Make an element of any set."""
    layout = SETS[draw(st.sampled_from(SET_NAMES))]
    key, data = (tuple(draw(field(kind, layout.family)) for kind in kinds) for kinds in (layout.key, layout.data))
    return Element(layout.name, key, data, draw(NAMES))


def field(kind: str, family: int) -> st.SearchStrategy[Any]:
    if kind == "address":
        return ADDRESSES[family]
    if kind == "subnet":
        return st.builds(subnet, ADDRESSES[family], st.integers(1, 32 if family == 4 else 128))
    return FIELDS[kind]


def subnet(address: Address, prefix_length: int) -> Subnet:
    """Return the subnet of this length that the address is in."""
    bits = 8 * len(address.packed)
    first = int.from_bytes(address.packed, "big") >> (bits - prefix_length) << (bits - prefix_length)
    return Subnet(Address(address.family, first.to_bytes(bits // 8, "big")), prefix_length)


def as_linux_reads(layout: SetLayout, kinds: tuple[str, ...], value: bytes) -> list[object]:
    """Take a value apart as nf_tables does: fields in registers of four bytes, each filled up with zeros."""
    fields: list[object] = []
    for kind in kinds:
        width = WIDTHS.get(kind, 4 if layout.family == 4 else 16)
        content, padding = value[:width], value[width : -(-width // 4) * 4]
        assert not any(padding)
        assert len(content) == width
        value = value[-(-width // 4) * 4 :]
        match kind:
            case "address" | "subnet":
                fields.append(str(ip_address(content)))
            case "inet_proto":  # by its name, as an interface may have the name of a protocol
                fields.append(PROTOCOL_NAMES[int.from_bytes(content, "big")])
            case "inet_service" | "inet_service-inet_service":
                fields.append(int.from_bytes(content, "big"))
            case "bucket":
                fields.append(int.from_bytes(content, sys.byteorder))
            case _:
                fields.append(content.rstrip(b"\0").decode())
    assert value == b""
    return fields


def as_meant(field: object, *, last: bool = False) -> object:
    """Return a field as `as_linux_reads` should; of a subnet or a range, the first address or port, or the last one."""
    if isinstance(field, PortRange):
        return field.last if last else field.first
    if isinstance(field, Subnet):
        addresses = ip_network(str(field))
        return str(addresses[-1] if last else addresses[0])
    if isinstance(field, Address):
        return str(ip_address(field.packed))
    return field


def assert_is_element(element: Element, listed: list[Any], *, with_data: bool) -> None:
    """See that what is listed is the element: with its last addresses and ports, or with what ends it, where it is an interval."""
    layout = SETS[element.set_name]
    first, *ends = listed
    expected = {"key"} | ({"userdata"} if with_data else set()) | ({"data"} if with_data and layout.data else set())
    assert as_linux_reads(layout, layout.key, first["key"][0]["value"][0]) == list(map(as_meant, element.key))
    if {"subnet", "inet_service-inet_service"} & {*layout.key} and len(layout.key) > 1:
        expected |= {"key-end"}
        ending = as_linux_reads(layout, layout.key, first["key-end"][0]["value"][0])
        assert ending == [as_meant(field, last=True) for field in element.key]
    assert set(first) == expected
    if with_data:
        kind, size, *comment = first["userdata"][0]
        assert (kind, size, bytes(comment)) == (0, len(comment), element.owner.encode() + b"\0")
        if layout.data:
            assert_is_data(layout, element.data, first["data"][0])
    assert ends == list(ends_of(element))


def ends_of(element: Element) -> Iterator[dict[str, list[Any]]]:
    """Return the element that must end an interval of one field: none where that goes up to the last address there is."""
    interval = element.key[0]
    if len(element.key) > 1 or not isinstance(interval, Subnet):
        return
    addresses = ip_network(str(interval))
    after = int(addresses[-1]) + 1
    if after >> addresses.max_prefixlen == 0:
        packed = after.to_bytes(addresses.max_prefixlen // 8, "big")
        yield {"key": [{"value": [packed]}], "flags": [1]}  # NFT_SET_ELEM_INTERVAL_END


def assert_is_data(layout: SetLayout, fields: Fields, data: dict[str, Any]) -> None:
    if layout.data == ("goto",):
        assert data == {"verdict": [{"code": [NFT_GOTO], "chain": [fields[0]]}]}
    else:
        assert as_linux_reads(layout, layout.data, data["value"][0]) == list(map(as_meant, fields))


def test_every_set_is_covered() -> None:
    assert {kind for layout in SETS.values() for kind in (*layout.key, *layout.data)} <= FIELDS.keys() | {
        "address",
        "subnet",
    }


@settings(deadline=None, max_examples=300)
@given(
    st.lists(elements(), max_size=5),
    st.lists(elements(), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([b"", b"\0\0\1\7"]),
)
def test_a_transaction(delete: list[Element], add: list[Element], exclusive: bool, generation: bytes) -> None:
    with patch.object(nftables, "NetlinkSocket", Wire()) as wire:
        nftables.NftablesTable().commit(delete=delete, add=add, exclusive=exclusive, generation=generation)
    begin, *body, end = wire.messages
    assert (begin.operation, end.operation) == ("batch-begin", "batch-end")
    assert {(m.family, m.resource, m.flags) for m in (begin, end)} == {(0, 10, REQUEST)}  # NFNL_SUBSYS_NFTABLES
    assert begin.attributes == ({"genid": [0x107]} if generation else {})
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
        assert as_linux_reads(SETS[element.set_name], SETS[element.set_name].key, one["key"][0]["value"][0]) == list(
            map(as_meant, element.key)
        )


def test_everything_else_that_is_asked_of_nftables() -> None:
    with patch.object(nftables, "NetlinkSocket", Wire()) as wire:
        table = nftables.NftablesTable()
        table.exists()
        table.state_of("boot")
        with patch.object(nftables.NftablesTable, "set_names", lambda _: SET_NAMES):
            table.owned_elements()
            list(table.counted_flows())
        table.set_names()
    by_operation: dict[str, list[Message]] = {}
    for sent in wire.messages:
        by_operation.setdefault(sent.operation, []).append(sent)
    assert set(by_operation) == {"getgen", "gettable", "getchain", "getrule", "getset", "getsetelem"}
    assert {str(m.attributes) for m in by_operation["gettable"]} == {str({"name": ["quantum"]})}
    assert {str(m.attributes["table"]) for m in by_operation["getchain"]} == {str(["quantum"])}
    listed = [*by_operation["getrule"], *by_operation["getset"]]
    assert all((m.flags, m.attributes) == (REQUEST | DUMP, {"table": ["quantum"]}) for m in listed)
    dumped = {m.attributes["set"][0] for m in by_operation["getsetelem"] if m.flags == REQUEST | DUMP}
    assert dumped >= set(SET_NAMES)


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
        tracker.delete_of_addresses([address])
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
        tracker.delete_stale_udp(mappings, {4, 6})
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
