"""Elements as nf_tables' netlink attributes say them (linux/netfilter/nf_tables.h), and back. No I/O."""

from __future__ import annotations

from _struct import Struct

from ...kernel.netlink import attribute, attributes, nested
from ...model.addresses import Address, Subnet
from ...model.attachments import PROTOCOL_NAMES, PROTOCOLS
from .layout import ADDRESS4, ADDRESS6, GOTO, INTERFACE, JUMP, LAYOUT_SET, PORT, PROTOCOL, SETS, SLOT, TABLE
from .rules import Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rules import Field, Fields

_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _ELEMENT_USERDATA, _ELEMENT_EXPRESSION = 1, 2, 3, 6, 7
_INTERVAL_END = 1
_EXPRESSION_DATA, _COUNTER_PACKETS = 2, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICTS = {JUMP: -3, GOTO: -4}
_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT

_INT = Struct(">l")
_UINT = Struct(">L")
_INTERFACE_BYTES = 16
_SLOT = Struct("=L")  # the kernel's own byte order: numgen and jhash make it
_WIDTHS = {ADDRESS4: 4, ADDRESS6: 16, PROTOCOL: 4, PORT: 4, SLOT: 4, INTERFACE: _INTERFACE_BYTES}


def text(content: str) -> bytes:
    """Return a name as the kernel reads it."""
    return content.encode() + b"\0"


def in_set(name: str) -> bytes:
    """Say which set a message is about."""
    return attribute(_LIST_TABLE, text(TABLE)) + attribute(_LIST_SET, text(name))


def look_up(element: Element) -> bytes:
    """Say what a request for an element looks for: its key."""
    return in_set(element.set_name) + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, _key_of(element)))


def look_up_layout(version: int) -> bytes:
    """Say what a request looks for that asks whether the table is of this version."""
    key = nested(_ELEMENT_KEY, attribute(_DATA_VALUE, version.to_bytes(2, "big")))
    return in_set(LAYOUT_SET) + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, key))


def layouts_in(payload: bytes) -> Iterator[int]:
    """Yield the versions in a message that lists them."""
    for parts in _listed_in(payload):
        yield int.from_bytes(dict(attributes(parts[_ELEMENT_KEY]))[_DATA_VALUE][:2], "big")


def take_out(element: Element) -> bytes:
    """Say what a deletion deletes: whatever has its key."""
    listed = nested(_LIST_ELEMENT, _key_of(element)) + _end_of_interval(element)
    return in_set(element.set_name) + nested(_LIST_ELEMENTS, listed)


def put_in(element: Element) -> bytes:
    """Say what an addition adds: key, data, and the owner as its comment."""
    layout, content = SETS[element.set_name], _key_of(element)
    if layout.data:
        content += nested(_ELEMENT_DATA, _encode_fields(layout.data, element.data))
    comment = text(element.owner)
    content += attribute(_ELEMENT_USERDATA, bytes((_COMMENT, len(comment))) + comment)
    listed = nested(_LIST_ELEMENT, content) + _end_of_interval(element)
    return in_set(element.set_name) + nested(_LIST_ELEMENTS, listed)


def elements_in(payload: bytes, set_name: str, ends: list[bytes] | None = None) -> Iterator[Element]:
    """Yield the elements in a message's attributes; those that only end an interval go into `ends`, as addresses."""
    layout = SETS[set_name]
    for parts in _listed_in(payload):
        if layout.has_intervals and _is_end(parts):
            if ends is not None:
                ends.append(dict(attributes(parts[_ELEMENT_KEY]))[_DATA_VALUE])
            continue
        key = _decode_fields(layout.key, parts[_ELEMENT_KEY])
        data = _decode_fields(layout.data, parts[_ELEMENT_DATA]) if _ELEMENT_DATA in parts else ()
        element = Element(set_name, key, data, _comment_of(parts.get(_ELEMENT_USERDATA, b"")))
        element.flows = _packets_of(parts.get(_ELEMENT_EXPRESSION, b""))
        yield element


def counts_in(payload: bytes, set_name: str) -> Iterator[tuple[bytes, str, str, int]]:
    """Yield of the elements the key as it is, the owner, the chain that it leads to or "", and the flows.

    Keys are not decoded: a set of a table that is to be replaced may have others.
    """
    layout = SETS[set_name]
    for parts in _listed_in(payload):
        data = parts.get(_ELEMENT_DATA, b"")
        chain = str(_decode_fields(layout.data, data)[0]) if layout.data == (GOTO,) else ""
        flows = _packets_of(parts.get(_ELEMENT_EXPRESSION, b""))
        yield parts[_ELEMENT_KEY], _comment_of(parts.get(_ELEMENT_USERDATA, b"")), chain, flows


def _listed_in(payload: bytes) -> Iterator[dict[int, bytes]]:
    for kind, listed in attributes(payload):
        if kind == _LIST_ELEMENTS:
            for _, content in attributes(listed):
                yield dict(attributes(content))


def join_intervals(elements: list[Element], ends: list[bytes]) -> None:
    """Give elements of intervals, listed by their first addresses, the subnets that they stand for as keys."""
    for element in elements:
        first = element.key[0]
        assert isinstance(first, Address)  # noqa: S101 - for the type checker: so it was decoded
        bits = 8 * len(first.packed)
        after = min((end for end in ends if end > first.packed), default=b"\1" + bytes(len(first.packed)))
        size = int.from_bytes(after, "big") - int.from_bytes(first.packed, "big")
        element.key = (Subnet(first, bits - (size.bit_length() - 1)),)


def _is_end(parts: dict[int, bytes]) -> bool:
    return bool(int.from_bytes(parts.get(_ELEMENT_FLAGS, b""), "big") & _INTERVAL_END)


def _key_of(element: Element) -> bytes:
    return nested(_ELEMENT_KEY, _encode_fields(SETS[element.set_name].key, element.key))


def _encode_field(kind: str, field: Field) -> bytes:
    if isinstance(field, Address):
        return field.packed
    if isinstance(field, Subnet):
        return field.first.packed
    if isinstance(field, int):
        return _SLOT.pack(field) if kind == SLOT else field.to_bytes(2, "big") + b"\0\0"
    if kind == PROTOCOL:
        return bytes((PROTOCOLS[field], 0, 0, 0))
    return field.encode().ljust(_INTERFACE_BYTES, b"\0")


def _encode_fields(kinds: tuple[str, ...], fields: Fields) -> bytes:
    if kinds[0] in _VERDICTS:
        code = _INT.pack(_VERDICTS[kinds[0]])
        verdict = attribute(_VERDICT_CODE, code) + attribute(_VERDICT_CHAIN, text(str(fields[0])))
        return nested(_DATA_VERDICT, verdict)
    return attribute(_DATA_VALUE, b"".join(map(_encode_field, kinds, fields)))


def _decode_field(kind: str, value: bytes) -> Field:
    if kind == PORT:
        return int.from_bytes(value[:2], "big")
    if kind == PROTOCOL:
        return PROTOCOL_NAMES.get(value[0], str(value[0]))
    if kind == SLOT:
        number: int = _SLOT.unpack(value)[0]
        return number
    if kind == INTERFACE:
        return value.rstrip(b"\0").decode(errors="replace")
    return Address(4 if kind == ADDRESS4 else 6, value)


def _decode_fields(kinds: tuple[str, ...], data: bytes) -> Fields:
    content = dict(attributes(data))
    if kinds[0] in _VERDICTS:
        verdict = dict(attributes(content.get(_DATA_VERDICT, b"")))
        return (verdict.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode(),)
    value, fields = content.get(_DATA_VALUE, b""), []
    for kind in kinds:
        fields.append(_decode_field(kind, value[: _WIDTHS[kind]]))
        value = value[_WIDTHS[kind] :]
    return tuple(fields)


def _end_of_interval(element: Element) -> bytes:
    """Frame the element that ends an interval: the address after it, with a flag and nothing else."""
    subnet = element.key[0]
    if not isinstance(subnet, Subnet) or not subnet.after:
        return b""
    flag = attribute(_ELEMENT_FLAGS, _UINT.pack(_INTERVAL_END))
    return nested(_LIST_ELEMENT, nested(_ELEMENT_KEY, attribute(_DATA_VALUE, subnet.after)) + flag)


def _packets_of(expression: bytes) -> int:
    """Read the packets of an element's counter."""
    data = dict(attributes(expression)).get(_EXPRESSION_DATA, b"")
    return int.from_bytes(dict(attributes(data)).get(_COUNTER_PACKETS, b""), "big")


def _comment_of(userdata: bytes) -> str:
    while len(userdata) > 2:
        kind, length = userdata[0], userdata[1]
        if kind == _COMMENT:
            return userdata[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        userdata = userdata[2 + length :]
    return ""
