"""Elements of table `inet quantum` as netlink attributes, and back (linux/netfilter/nf_tables.h). No I/O.

In a concatenated key, each field is padded to four bytes. An interval of a single field is two elements: its first address, and the
address after its last one, with a flag. An interval in a concatenation has a second key, with the last addresses.
A pod's start waits for this module.
"""

from __future__ import annotations

from _struct import Struct

from ...kernel.netlink import attribute, attributes, decoding, nested
from ...model.addresses import Address, Subnet
from ...model.attachments import PROTOCOL_NAMES, PROTOCOLS
from ...model.units import PortRange
from .layout import BUCKET, GOTO, INTERFACE, LAYOUT_SET, PORT, PORTS, PROTOCOL, SETS, SUBNET, TABLE
from .rules import Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layout import SetLayout
    from .rules import Field, Fields

_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _ELEMENT_USERDATA, _ELEMENT_EXPRESSION, _ELEMENT_KEY_END = (
    1,
    2,
    3,
    6,
    7,
    10,
)
_INTERVAL_END = 1
_EXPRESSION_DATA, _COUNTER_PACKETS = 2, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_NFT_GOTO = -4
_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT, and those of rules and tables

_INT = Struct(">l")
_UINT = Struct(">L")
_INTERFACE_BYTES = 16
_BUCKET = Struct("=L")  # the kernel's own byte order: numgen and jhash make it
_WIDTHS = {PROTOCOL: 4, PORT: 4, PORTS: 4, BUCKET: 4, INTERFACE: _INTERFACE_BYTES}


def text(content: str) -> bytes:
    """Return a name as the kernel reads it."""
    return content.encode() + b"\0"


def in_set(name: str) -> bytes:
    """Frame the name of the set that a message is about."""
    return attribute(_LIST_TABLE, text(TABLE)) + attribute(_LIST_SET, text(name))


def look_up(element: Element) -> bytes:
    """Frame a request for the element with this key; an interval is found by its first address or port."""
    key = _framed_key(SETS[element.set_name], element.key, last=False)
    return in_set(element.set_name) + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, key))


def look_up_layout(version: int) -> bytes:
    """Frame a request that finds the table's version if it is this one."""
    key = nested(_ELEMENT_KEY, attribute(_DATA_VALUE, version.to_bytes(2, "big")))
    return in_set(LAYOUT_SET) + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, key))


def layout_change(version: int, comment: str | None) -> bytes:
    """Frame the table's version as an element with this comment, to be added, or without one, to be deleted."""
    content = nested(_ELEMENT_KEY, attribute(_DATA_VALUE, version.to_bytes(2, "big")))
    if comment is not None:
        content += attribute(_ELEMENT_USERDATA, user_data(comment))
    return in_set(LAYOUT_SET) + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, content))


def layouts_in(payload: bytes) -> Iterator[tuple[int, str]]:
    """Yield version and comment of the elements in a message that lists the table's version."""
    for parts in _listed_in(payload):
        with decoding:
            version = int.from_bytes(dict(attributes(parts[_ELEMENT_KEY]))[_DATA_VALUE][:2], "big")
        yield version, comment_of(parts.get(_ELEMENT_USERDATA, b""))


def deletion(element: Element) -> bytes:
    """Frame the key of the element to delete."""
    return in_set(element.set_name) + nested(
        _LIST_ELEMENTS, nested(_LIST_ELEMENT, _keys_of(element)) + _end_of(element)
    )


def addition(element: Element, owner: str) -> bytes:
    """Frame the element to add: key, data, and the owner as a comment."""
    layout, content = SETS[element.set_name], _keys_of(element)
    if layout.data:
        content += nested(_ELEMENT_DATA, _encode_data(layout, element.data))
    content += attribute(_ELEMENT_USERDATA, user_data(owner))
    return in_set(element.set_name) + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, content) + _end_of(element))


def elements_in(payload: bytes, set_name: str, ends: list[bytes] | None = None) -> Iterator[Element]:
    """Yield the elements in a message's attributes. Elements that only end an interval go into `ends`, as addresses."""
    layout = SETS[set_name]
    for parts in _listed_in(payload):
        with decoding:
            first = dict(attributes(parts[_ELEMENT_KEY]))[_DATA_VALUE]
            if _is_end(parts):
                if ends is not None:
                    ends.append(first)
                continue
            last = dict(attributes(parts.get(_ELEMENT_KEY_END, b""))).get(_DATA_VALUE, first)
            key = _decode(layout, layout.key, first, last)
            data = _decode_data(layout, parts[_ELEMENT_DATA]) if layout.data and _ELEMENT_DATA in parts else ()
        element = Element(set_name, key, data, comment_of(parts.get(_ELEMENT_USERDATA, b"")))
        element.flows = _packets_of(parts.get(_ELEMENT_EXPRESSION, b""))
        yield element


def counts_in(payload: bytes) -> Iterator[tuple[bytes, str, int]]:
    """Yield each element's raw key, its owner, and its connections.

    Keys are not decoded: a set of a table that is to be replaced may have others.
    """
    for parts in _listed_in(payload):
        flows = _packets_of(parts.get(_ELEMENT_EXPRESSION, b""))
        with decoding:
            key = parts[_ELEMENT_KEY]
        yield key, comment_of(parts.get(_ELEMENT_USERDATA, b"")), flows


def _listed_in(payload: bytes) -> Iterator[dict[int, bytes]]:
    for kind, listed in attributes(payload):
        if kind == _LIST_ELEMENTS:
            for _, content in attributes(listed):
                yield dict(attributes(content))


def join_intervals(elements: list[Element], ends: list[bytes]) -> None:
    """Give elements of a set of intervals, listed by their first addresses, the subnets that they are for as keys."""
    for element in elements:
        first = element.key[0]
        assert isinstance(first, Subnet)  # noqa: S101 - for the type checker: so it was decoded
        bits = 8 * len(first.first.packed)
        after = min((end for end in ends if end > first.first.packed), default=b"\1" + bytes(bits // 8))
        size = int.from_bytes(after, "big") - int.from_bytes(first.first.packed, "big")
        element.key = (Subnet(first.first, bits - (size.bit_length() - 1)),)


def _is_end(parts: dict[int, bytes]) -> bool:
    return bool(int.from_bytes(parts.get(_ELEMENT_FLAGS, b""), "big") & _INTERVAL_END)


def _keys_of(element: Element) -> bytes:
    """Frame the key, and in a concatenation with an interval the key of the last addresses."""
    layout = SETS[element.set_name]
    framed = _framed_key(layout, element.key, last=False)
    if layout.has_intervals and len(layout.key) > 1:
        framed += _framed_key(layout, element.key, last=True)
    return framed


def _framed_key(layout: SetLayout, fields: Fields, *, last: bool) -> bytes:
    value = b"".join(_encode(kind, field, last=last) for kind, field in zip(layout.key, fields))
    return nested(_ELEMENT_KEY_END if last else _ELEMENT_KEY, attribute(_DATA_VALUE, value))


def _encode(kind: str, field: Field, *, last: bool = False) -> bytes:
    if isinstance(field, Address):
        return field.packed
    if isinstance(field, Subnet):
        return field.last if last else field.first.packed
    if isinstance(field, PortRange):
        return (field.last if last else field.first).to_bytes(2, "big") + b"\0\0"
    if isinstance(field, int):
        return _BUCKET.pack(field) if kind == BUCKET else field.to_bytes(2, "big") + b"\0\0"
    if kind == PROTOCOL:
        return bytes((PROTOCOLS[field], 0, 0, 0))
    return field.encode().ljust(_INTERFACE_BYTES, b"\0")


def _encode_data(layout: SetLayout, fields: Fields) -> bytes:
    if layout.data == (GOTO,):
        verdict = attribute(_VERDICT_CODE, _INT.pack(_NFT_GOTO)) + attribute(_VERDICT_CHAIN, text(str(fields[0])))
        return nested(_DATA_VERDICT, verdict)
    return attribute(_DATA_VALUE, b"".join(map(_encode, layout.data, fields)))


def _decode_data(layout: SetLayout, data: bytes) -> Fields:
    content = dict(attributes(data))
    if layout.data == (GOTO,):
        verdict = dict(attributes(content.get(_DATA_VERDICT, b"")))
        return (verdict.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode(),)
    value = content.get(_DATA_VALUE, b"")
    return _decode(layout, layout.data, value, value)


def _decode(layout: SetLayout, kinds: tuple[str, ...], first: bytes, last: bytes) -> Fields:
    """Read the fields of a key or of data, from its first value to its last one."""
    fields, offset = [], 0
    for kind in kinds:
        end = offset + _WIDTHS.get(kind, 4 if layout.family == 4 else 16)
        if end > min(len(first), len(last)):
            raise ValueError(f"{len(first)} and {len(last)} bytes, of which {kind} should end at {end}")
        fields.append(_decode_field(layout.family, kind, first[offset:end], last[offset:end]))
        offset = end
    return tuple(fields)


def _decode_field(family: int, kind: str, value: bytes, last: bytes) -> Field:
    if kind in {PORT, PORTS}:
        first = int.from_bytes(value[:2], "big")
        return first if kind == PORT else PortRange(first, int.from_bytes(last[:2], "big"))
    if kind == PROTOCOL:
        return PROTOCOL_NAMES.get(value[0], str(value[0]))
    if kind == BUCKET:
        number: int = _BUCKET.unpack(value)[0]
        return number
    if kind == INTERFACE:
        return value.rstrip(b"\0").decode(errors="replace")
    if kind == SUBNET:
        size = int.from_bytes(last, "big") - int.from_bytes(value, "big") + 1
        return Subnet(Address(family, value), 8 * len(value) - (size.bit_length() - 1))
    return Address(family, value)


def _end_of(element: Element) -> bytes:
    """Frame the element that ends an interval of a single field: the address after it, with a flag and nothing else."""
    subnet = element.key[0]
    if len(element.key) > 1 or not isinstance(subnet, Subnet) or not subnet.after:
        return b""
    flag = attribute(_ELEMENT_FLAGS, _UINT.pack(_INTERVAL_END))
    return nested(_LIST_ELEMENT, nested(_ELEMENT_KEY, attribute(_DATA_VALUE, subnet.after)) + flag)


def _packets_of(expression: bytes) -> int:
    """Read the packets of an element's counter."""
    data = dict(attributes(expression)).get(_EXPRESSION_DATA, b"")
    return int.from_bytes(dict(attributes(data)).get(_COUNTER_PACKETS, b""), "big")


def user_data(comment: str) -> bytes:
    """Return a comment as nft keeps it with an element, a rule or a table: type, length and value."""
    framed = text(comment)
    return bytes((_COMMENT, len(framed))) + framed


def comment_of(userdata: bytes) -> str:
    """Return the comment in what nft keeps with an element, a rule or a table; empty if there is none."""
    while len(userdata) > 2:
        kind, length = userdata[0], userdata[1]
        if kind == _COMMENT:
            return userdata[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        userdata = userdata[2 + length :]
    return ""
