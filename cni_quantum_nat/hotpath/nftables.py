"""Elements in and out of table `inet quantum`, over netlink (linux/netfilter/nf_tables.h).

One batch is one transaction: all of it happens, or nothing. Nothing here lists a set, but `owned_elements` and
`counted_flows`, which garbage collection, healing and metrics use.
"""

from __future__ import annotations

from _struct import Struct
from errno import EEXIST, ENOENT

from .addresses import Address, Subnet
from .errors import NOT_AVAILABLE, AlreadyThere, CniError, KernelRefused, NotThere
from .model import PROTOCOL_NAMES, PROTOCOLS
from .netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkSocket,
    attribute,
    attributes,
    message,
    nested,
)
from .rules import Element
from .table import ADDRESS4, ADDRESS6, CHAIN_USE, GOTO, INTERFACE, JUMP, PORT, PROTOCOL, SETS, SLOT, TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .netlink import Reply
    from .rules import Field, Fields

_NETLINK_NETFILTER = 12
_NFPROTO_INET = 1
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETTABLE, _GETCHAIN, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 1, 4, 12, 13, 14, 16

_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_USERS = 1, 3, 6
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _ELEMENT_USERDATA, _ELEMENT_EXPRESSION = 1, 2, 3, 6, 7
_INTERVAL_END = 1
_EXPRESSION_DATA, _COUNTER_PACKETS = 2, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICTS = {JUMP: -3, GOTO: -4}
_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT

_FAMILY_HEADER = Struct(">BBH")  # family, version, resource
_INT = Struct(">l")
_UINT = Struct(">L")
_REGISTER_BYTES = 4
_INTERFACE_BYTES = 16
_SLOT = Struct("=L")  # the kernel's own byte order: numgen and jhash make it
_WIDTHS = {ADDRESS4: 4, ADDRESS6: 16, PROTOCOL: 4, PORT: 4, SLOT: 4, INTERFACE: _INTERFACE_BYTES}

_GETS_PER_REQUEST = 64  # so that the answers fit into a socket's default buffer


def _request(operation: int, flags: int, sequence: int, payload: bytes, family: int = _NFPROTO_INET) -> bytes:
    return message(_SUBSYSTEM | operation, flags | NLM_F_REQUEST, sequence, _FAMILY_HEADER.pack(family, 0, 0) + payload)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


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
        verdict = attribute(_VERDICT_CODE, code) + attribute(_VERDICT_CHAIN, _text(str(fields[0])))
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


def _element_message(operation: int, flags: int, sequence: int, element: Element) -> bytes:
    layout = SETS[element.set_name]
    content = nested(_ELEMENT_KEY, _encode_fields(layout.key, element.key))
    if operation == _NEWSETELEM:
        if layout.data:
            content += nested(_ELEMENT_DATA, _encode_fields(layout.data, element.data))
        comment = _text(element.owner)
        content += attribute(_ELEMENT_USERDATA, bytes((_COMMENT, len(comment))) + comment)
    listed = nested(_LIST_ELEMENT, content)
    if layout.has_intervals and operation != _GETSETELEM:
        listed += _end_of_interval(element)
    where = attribute(_LIST_TABLE, _text(TABLE)) + attribute(_LIST_SET, _text(element.set_name))
    return _request(operation, flags, sequence, where + nested(_LIST_ELEMENTS, listed))


def _end_of_interval(element: Element) -> bytes:
    """Frame the element that ends an interval: the address after it, with a flag and nothing else."""
    subnet = element.key[0]
    if not isinstance(subnet, Subnet) or not subnet.after:
        return b""
    flag = attribute(_ELEMENT_FLAGS, _UINT.pack(_INTERVAL_END))
    return nested(_LIST_ELEMENT, nested(_ELEMENT_KEY, attribute(_DATA_VALUE, subnet.after)) + flag)


def _elements_of(reply: Reply, set_name: str) -> Iterator[Element]:
    layout = SETS[set_name]
    for parts in _parts_of(reply):
        key = _decode_fields(layout.key, parts[_ELEMENT_KEY])
        data = _decode_fields(layout.data, parts[_ELEMENT_DATA]) if _ELEMENT_DATA in parts else ()
        element = Element(set_name, key, data, _comment_of(parts.get(_ELEMENT_USERDATA, b"")))
        element.flows = _packets_of(parts.get(_ELEMENT_EXPRESSION, b""))
        yield element


def _parts_of(reply: Reply) -> Iterator[dict[int, bytes]]:
    for kind, listed in attributes(reply.payload, _FAMILY_HEADER.size):
        if kind == _LIST_ELEMENTS:
            for _, content in attributes(listed):
                yield dict(attributes(content))


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


class NftablesTable:
    """The table in the kernel, through one socket that is opened when it is first needed."""

    __slots__ = ("_socket",)

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None

    def commit(self, *, delete: Iterable[Element] = (), add: Iterable[Element] = (), exclusive: bool = False) -> None:
        """Delete, then add, in one transaction.

        With `exclusive`, an element that exists already, also an equal one, is an error.

        Raises: NotThere, AlreadyThere, KernelRefused; nothing has changed then.
        """
        flags = NLM_F_CREATE | NLM_F_EXCL if exclusive else NLM_F_CREATE
        operations = [(_DELSETELEM, 0, element) for element in delete]
        operations += [(_NEWSETELEM, flags, element) for element in add]
        if not operations:
            return
        last = len(operations)
        body = [
            _element_message(operation, flags | (NLM_F_ACK if number == last else 0), number, element)
            for number, (operation, flags, element) in enumerate(operations, 1)
        ]
        replies = self._exchange(_batch(_BATCH_BEGIN, 0) + b"".join(body) + _batch(_BATCH_END, last + 1))
        errors = [reply.error_number for reply in replies if reply.error_number]
        _raise_first(errors, "change the elements of table inet quantum")
        if not replies:
            raise KernelRefused("confirm a change of table inet quantum", 0)

    def find(self, elements: list[Element]) -> list[Element | None]:
        """Return what the kernel holds under the key of each element, None where nothing."""
        found: list[Element | None] = [None] * len(elements)
        for start in range(0, len(elements), _GETS_PER_REQUEST):
            chunk = elements[start : start + _GETS_PER_REQUEST]
            requests = [_element_message(_GETSETELEM, 0, start + i, element) for i, element in enumerate(chunk)]
            for reply in self._exchange(b"".join(requests)):
                if reply.is_answer:
                    held = next(_elements_of(reply, elements[reply.sequence].set_name), None)
                    if held is not None:
                        held.key = elements[reply.sequence].key  # an interval comes back as its first address
                    found[reply.sequence] = held
                elif reply.error_number not in (0, ENOENT):
                    raise KernelRefused("look up an element of table inet quantum", reply.error_number)
        return found

    def damaged_chains(self) -> list[str]:
        """Say which chains of the table are missing, or do not have all their rules."""
        expected = list(CHAIN_USE.items())
        where = attribute(_CHAIN_TABLE, _text(TABLE))
        requests = [
            _request(_GETCHAIN, 0, i, where + attribute(_CHAIN_NAME, _text(name)))
            for i, (name, _) in enumerate(expected)
        ]
        problems = []
        for reply in self._exchange(b"".join(requests)):
            name, use = expected[reply.sequence]
            if reply.error_number:
                problems.append(f"chain {name} is missing")
            elif reply.is_answer:
                users = dict(attributes(reply.payload, _FAMILY_HEADER.size)).get(_CHAIN_USERS, b"\0\0\0\0")
                if _UINT.unpack(users)[0] != use:
                    problems.append(f"chain {name} was altered: {_UINT.unpack(users)[0]} rules and jumps, not {use}")
        return problems

    def owned_elements(self, owner_prefix: str) -> list[Element]:
        """List every set, and return the elements whose owner begins with the prefix. For garbage collection only."""
        owned = []
        for name in SETS:
            for reply in self._list(name):
                owned += [element for element in _elements_of(reply, name) if element.owner.startswith(owner_prefix)]
        return owned

    def counted_flows(self) -> Iterator[tuple[str, str, str, int]]:
        """List what counts flows: set, owner, the chain that an element leads to or "", flows. For scrapes and rebuilds.

        Keys are not decoded: a set of a table that is to be replaced may have others. A key is told once, although the
        kernel may list one twice while the set grows.
        """
        for name, layout in SETS.items():
            if layout.counter:
                found = {parts[_ELEMENT_KEY]: parts for reply in self._list(name) for parts in _parts_of(reply)}
                for parts in found.values():
                    flows = _packets_of(parts.get(_ELEMENT_EXPRESSION, b""))
                    leads = layout.data == (GOTO,)
                    chain = str(_decode_fields(layout.data, parts.get(_ELEMENT_DATA, b""))[0]) if leads else ""
                    yield name, _comment_of(parts.get(_ELEMENT_USERDATA, b"")), chain, flows

    def _list(self, set_name: str) -> Iterator[Reply]:
        where = attribute(_LIST_TABLE, _text(TABLE)) + attribute(_LIST_SET, _text(set_name))
        for reply in self._open().dump(_request(_GETSETELEM, NLM_F_DUMP, 0, where)):
            if reply.error_number == ENOENT:
                return
            if reply.error_number:
                raise KernelRefused(f"list set {set_name}", reply.error_number)
            yield reply

    def exists(self) -> bool:
        """Whether the table exists; CniError(50) where nf_tables cannot be used at all."""
        replies = self._exchange(
            _request(_GETGEN, NLM_F_ACK, 1, b"", family=0)
            + _request(_GETTABLE, NLM_F_ACK, 2, attribute(_TABLE_NAME, _text(TABLE)))
        )
        for reply in replies:
            if reply.error_number and reply.sequence == 1:
                raise _unusable(OSError(reply.error_number, ""))
        return any(reply.is_answer and reply.sequence == 2 for reply in replies)

    def close(self) -> None:
        """Close the socket. After a deletion the kernel makes this wait for an RCU grace period, 10 to 20 ms."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            try:
                self._socket = NetlinkSocket(_NETLINK_NETFILTER)
            except OSError as error:
                raise _unusable(error) from error
        return self._socket

    def _exchange(self, messages: bytes) -> list[Reply]:
        try:
            return self._open().exchange(messages)
        except OSError as error:
            raise KernelRefused("take an nf_tables request", error.errno or 0) from error


def _batch(kind: int, sequence: int) -> bytes:
    return message(kind, NLM_F_REQUEST, sequence, _FAMILY_HEADER.pack(0, 0, _SUBSYSTEM >> 8))


def _raise_first(errors: list[int], what: str) -> None:
    """Raise for the error that says most: one that we have no answer to, else a missing thing, else a held key."""
    for number in errors:
        if number not in (ENOENT, EEXIST):
            raise KernelRefused(what, number)
    if ENOENT in errors:
        raise NotThere(what, ENOENT)
    if errors:
        raise AlreadyThere(what, EEXIST)


def _unusable(error: OSError) -> CniError:
    from posix import strerror

    return CniError(
        NOT_AVAILABLE,
        f"nftables cannot be used: {strerror(error.errno or 0)}",
        "The plugin needs CAP_NET_ADMIN in the host's network namespace and a kernel with nf_tables "
        '(5.7 or newer; module nf_tables). Without nf_tables, set "backend": "iptables".',
    )
