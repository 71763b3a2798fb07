"""What Linux says of nf_tables' and ctnetlink's messages, and a decoder that believes nothing else.

Restated, as far as this project speaks of it, from Documentation/netlink/specs/nftables.yaml and conntrack.yaml of Linux (as of 6.18):
names, types, numbers and byte order of operations and attributes. Where those are silent or only approximate, from the headers:

- nftables.yaml calls setelem-attrs.flags binary; it is be32 (NFTA_SET_ELEM_FLAGS, linux/netfilter/nf_tables.h).
- conntrack.yaml has no operation to delete, 0x102 (IPCTNL_MSG_CT_DELETE, linux/netfilter/nfnetlink_conntrack.h).
- conntrack.yaml nests tuple-attrs in `filter`; it has flags there, in the host's byte order (net/netfilter/nf_internals.h).
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

HOST = sys.byteorder
BIG = "big"

REQUEST, ACK, DUMP, EXCL, CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_NESTED, _TYPE = 0x8000, 0x3FFF


class Scalar(NamedTuple):
    """An integer of so many bytes."""

    size: int
    order: str = BIG


class Text(NamedTuple):
    """A string that ends with its first NUL."""


class Binary(NamedTuple):
    """Bytes, as many as there may be."""

    least: int = 0
    most: int = 1 << 16


class Nest(NamedTuple):
    """Attributes of the set of this name."""

    of: str


class Attribute(NamedTuple):
    """What stands under a number."""

    name: str
    type: Scalar | Text | Binary | Nest
    may_repeat: bool = False


_U8, _U16, _U32, _U64 = Scalar(1), Scalar(2), Scalar(4), Scalar(8)

SETS: dict[str, dict[int, Attribute]] = {
    "batch": {1: Attribute("genid", _U32)},
    "table": {1: Attribute("name", Text()), 2: Attribute("flags", _U32)},
    "chain": {1: Attribute("table", Text()), 2: Attribute("handle", _U64), 3: Attribute("name", Text())},
    "rule": {1: Attribute("table", Text()), 2: Attribute("chain", Text()), 3: Attribute("handle", _U64)},
    "set": {1: Attribute("table", Text()), 2: Attribute("name", Text()), 3: Attribute("flags", _U32)},
    "generation": {1: Attribute("id", _U32), 2: Attribute("proc-pid", _U32), 3: Attribute("proc-name", Text())},
    "elements of a set": {
        1: Attribute("table", Text()),
        2: Attribute("set", Text()),
        3: Attribute("elements", Nest("list of elements")),
        4: Attribute("set-id", _U32),
    },
    "list of elements": {1: Attribute("elem", Nest("element"), may_repeat=True)},
    "element": {
        1: Attribute("key", Nest("data")),
        2: Attribute("data", Nest("data")),
        3: Attribute("flags", _U32),
        4: Attribute("timeout", _U64),
        5: Attribute("expiration", _U64),
        6: Attribute("userdata", Binary(most=256)),
        8: Attribute("pad", Binary()),
        9: Attribute("objref", Text()),
        10: Attribute("key-end", Nest("data")),
    },
    "data": {1: Attribute("value", Binary(1, 64)), 2: Attribute("verdict", Nest("verdict"))},
    "verdict": {1: Attribute("code", _U32), 2: Attribute("chain", Text()), 3: Attribute("chain-id", _U32)},
    "conntrack": {
        1: Attribute("tuple-orig", Nest("tuple")),
        2: Attribute("tuple-reply", Nest("tuple")),
        3: Attribute("status", _U32),
        8: Attribute("mark", _U32),
        12: Attribute("id", _U32),
        18: Attribute("zone", _U16),
        21: Attribute("mark-mask", _U32),
        25: Attribute("filter", Nest("filter")),
        26: Attribute("status-mask", _U32),
    },
    "tuple": {
        1: Attribute("tuple-ip", Nest("tuple-ip")),
        2: Attribute("tuple-proto", Nest("tuple-proto")),
        3: Attribute("tuple-zone", _U16),
    },
    "tuple-ip": {
        1: Attribute("ip-v4-src", _U32),
        2: Attribute("ip-v4-dst", _U32),
        3: Attribute("ip-v6-src", Binary(16, 16)),
        4: Attribute("ip-v6-dst", Binary(16, 16)),
    },
    "tuple-proto": {
        1: Attribute("proto-num", _U8),
        2: Attribute("proto-src-port", _U16),
        3: Attribute("proto-dst-port", _U16),
        4: Attribute("proto-icmp-id", _U16),
        5: Attribute("proto-icmp-type", _U8),
        6: Attribute("proto-icmp-code", _U8),
        7: Attribute("proto-icmpv6-id", _U16),
        8: Attribute("proto-icmpv6-type", _U8),
        9: Attribute("proto-icmpv6-code", _U8),
    },
    "filter": {1: Attribute("orig-flags", Scalar(4, HOST)), 2: Attribute("reply-flags", Scalar(4, HOST))},
}

OPERATIONS = {
    0x10: ("batch-begin", "batch"),
    0x11: ("batch-end", "batch"),
    0xA01: ("gettable", "table"),
    0xA04: ("getchain", "chain"),
    0xA07: ("getrule", "rule"),
    0xA0A: ("getset", "set"),
    0xA0C: ("newsetelem", "elements of a set"),
    0xA0D: ("getsetelem", "elements of a set"),
    0xA0E: ("delsetelem", "elements of a set"),
    0xA10: ("getgen", "generation"),
    0x101: ("conntrack-get", "conntrack"),
    0x102: ("conntrack-delete", "conntrack"),
}

Value = int | str | bytes | dict[str, list["Value"]]


class Message(NamedTuple):
    """A message as Linux reads it; `attributes` are by name, in lists, since some may repeat."""

    operation: str
    flags: int
    sequence: int
    family: int
    resource: int
    attributes: dict[str, list[Value]]


class NotSpecified(Exception):
    """The message is not what Linux specifies; it says where."""


def decode(datagram: bytes) -> list[Message]:
    """Decode all messages of a datagram; NotSpecified where one differs from the specification in anything."""
    messages = []
    while datagram:
        if len(datagram) < 16:
            raise NotSpecified(f"{len(datagram)} bytes are no header")
        length, kind, flags, sequence, port = struct.unpack_from("=LHHLL", datagram)
        if not 20 <= length <= len(datagram) or length % 4 or port:
            raise NotSpecified(f"length {length} of {len(datagram)}, port {port}")
        if kind not in OPERATIONS:
            raise NotSpecified(f"there is no operation {kind:#x}")
        name, of = OPERATIONS[kind]
        family, version, resource = struct.unpack_from(">BBH", datagram, 16)
        if version or not flags & REQUEST:
            raise NotSpecified(f"{name}: version {version}, flags {flags:#x}")
        messages.append(Message(name, flags, sequence, family, resource, _attributes(name, of, datagram[20:length])))
        datagram = datagram[length:]
    return messages


def _attributes(where: str, of: str, content: bytes) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    while content:
        if len(content) < 4:
            raise NotSpecified(f"{where}: {len(content)} bytes are left over")
        length, number = struct.unpack_from("=HH", content)
        padded = -(-length // 4) * 4
        if not 4 <= length <= padded <= len(content):
            raise NotSpecified(f"{where}: an attribute of {length} bytes in {len(content)}")
        if any(content[length:padded]):
            raise NotSpecified(f"{where}: padding that is not zero")
        specified = SETS[of].get(number & _TYPE)
        if specified is None:
            raise NotSpecified(f"{where}: there is no attribute {number & _TYPE} in {of}")
        place = f"{where} / {specified.name}"
        if specified.name in found and not specified.may_repeat:
            raise NotSpecified(f"{place}: twice")
        if bool(number & _NESTED) != isinstance(specified.type, Nest):
            raise NotSpecified(f"{place}: the flag for nests is wrong")
        found.setdefault(specified.name, []).append(_value(place, specified.type, content[4:length]))
        content = content[padded:]
    return found


def _value(place: str, kind: Scalar | Text | Binary | Nest, content: bytes) -> Value:
    match kind:
        case Scalar(size, order):
            if len(content) != size:
                raise NotSpecified(f"{place}: {len(content)} bytes, not {size}")
            return int.from_bytes(content, "big" if order == BIG else "little")
        case Text():
            if not content.endswith(b"\0") or b"\0" in content[:-1]:
                raise NotSpecified(f"{place}: {content!r} is no string")
            return content[:-1].decode()
        case Binary(least, most):
            if not least <= len(content) <= most:
                raise NotSpecified(f"{place}: {len(content)} bytes, not {least} to {most}")
            return content
        case Nest(of):
            return _attributes(place, of, content)
