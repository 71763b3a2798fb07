"""Elements in and out of table `inet quantum`, over netlink (linux/netfilter/nf_tables.h).

One batch is one transaction: all of it happens, or nothing. Nothing here lists a set, but `owned_elements` and
`counted_flows`, which garbage collection, healing and a person's commands use.
"""

from __future__ import annotations

from _struct import Struct
from errno import EEXIST, ENOENT

from ...kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkSocket,
    attribute,
    attributes,
    message,
)
from ...model.errors import NEWER_VERSION, NOT_AVAILABLE, AlreadyThere, CniError, KernelRefused, NotThere
from .encoding import (
    counts_in,
    elements_in,
    in_set,
    join_intervals,
    layouts_in,
    look_up,
    look_up_layout,
    put_in,
    take_out,
    text,
)
from .layout import CHAIN_USE, LAYOUT, LAYOUT_SET, SETS, TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...kernel.netlink import Reply
    from .rules import Element

_NETLINK_NETFILTER = 12
_NFPROTO_INET = 1
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETTABLE, _GETCHAIN, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 1, 4, 12, 13, 14, 16

_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_USERS = 1, 3, 6

_FAMILY_HEADER = Struct(">BBH")  # family, version, resource
_UINT = Struct(">L")
_LAYOUT_SEQUENCE = 1 << 30  # of the request for the version, beside those for elements or chains
_GETS_PER_REQUEST = 64  # so that the answers fit into a socket's default buffer


def _request(operation: int, flags: int, sequence: int, payload: bytes, family: int = _NFPROTO_INET) -> bytes:
    return message(_SUBSYSTEM | operation, flags | NLM_F_REQUEST, sequence, _FAMILY_HEADER.pack(family, 0, 0) + payload)


class NftablesTable:
    """The table in the kernel, through one socket that is opened when it is first needed."""

    __slots__ = ("_is_known", "_socket")

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None
        self._is_known = False  # that it is not of a newer program

    def commit(self, *, delete: Iterable[Element] = (), add: Iterable[Element] = (), exclusive: bool = False) -> None:
        """Delete, then add, in one transaction.

        With `exclusive`, an element that exists already, also an equal one, is an error.

        Raises: NotThere, AlreadyThere, KernelRefused; nothing has changed then.
        """
        flags = NLM_F_CREATE | NLM_F_EXCL if exclusive else NLM_F_CREATE
        operations = [(_DELSETELEM, 0, take_out(element)) for element in delete]
        operations += [(_NEWSETELEM, flags, put_in(element)) for element in add]
        if not operations:
            return
        last = len(operations)
        body = [
            _request(operation, flags | (NLM_F_ACK if number == last else 0), number, payload)
            for number, (operation, flags, payload) in enumerate(operations, 1)
        ]
        replies = self._exchange(_batch(_BATCH_BEGIN, 0) + b"".join(body) + _batch(_BATCH_END, last + 1))
        errors = [reply.error_number for reply in replies if reply.error_number]
        _raise_first(errors, "change the elements of table inet quantum")

    def find(self, elements: list[Element]) -> list[Element | None]:
        """Return what the kernel holds under the key of each element, None where nothing; CniError(108) when it is newer."""
        found: list[Element | None] = [None] * len(elements)
        for start in range(0, max(1, len(elements)), _GETS_PER_REQUEST):
            chunk = elements[start : start + _GETS_PER_REQUEST]
            requests = [_request(_GETSETELEM, 0, start + i, look_up(element)) for i, element in enumerate(chunk)]
            if not self._is_known:
                requests.append(_LAYOUT_REQUEST)
            if not requests:
                break
            for reply in self._exchange(b"".join(requests), len(requests)):
                if reply.sequence == _LAYOUT_SEQUENCE:
                    self._note_layout(reply)
                elif reply.is_answer:
                    held = next(
                        elements_in(reply.payload[_FAMILY_HEADER.size :], elements[reply.sequence].set_name), None
                    )
                    if held is not None:
                        held.key = elements[reply.sequence].key  # an interval comes back as its first address
                    found[reply.sequence] = held
                elif reply.error_number not in (0, ENOENT):
                    raise KernelRefused("look up an element of table inet quantum", reply.error_number)
        return found

    def damaged_chains(self) -> list[str]:
        """Say which chains of the table are missing, or do not have all their rules, or that it is of an older program.

        CniError(108) when it is of a newer one.
        """
        expected = list(CHAIN_USE.items())
        where = attribute(_CHAIN_TABLE, text(TABLE))
        requests = [
            _request(_GETCHAIN, 0, i, where + attribute(_CHAIN_NAME, text(name)))
            for i, (name, _) in enumerate(expected)
        ]
        requests.append(_LAYOUT_REQUEST)
        problems = []
        for reply in self._exchange(b"".join(requests), len(requests)):
            if reply.sequence == _LAYOUT_SEQUENCE:
                problems += self._note_layout(reply)
                continue
            name, use = expected[reply.sequence]
            if reply.error_number:
                problems.append(f"chain {name} is missing")
            elif reply.is_answer:
                users = dict(attributes(reply.payload, _FAMILY_HEADER.size)).get(_CHAIN_USERS, b"\0\0\0\0")
                if _UINT.unpack(users)[0] != use:
                    problems.append(f"chain {name} was altered: {_UINT.unpack(users)[0]} rules and jumps, not {use}")
        return problems

    def _note_layout(self, reply: Reply) -> list[str]:
        """Say whether the version is another one; CniError(108) when it is newer."""
        if reply.is_answer:
            self._is_known = True
            return []
        layout = self._read_layout()
        if layout > LAYOUT:
            raise CniError(
                NEWER_VERSION,
                f"table inet {TABLE} has version {layout}, and this quantum-nat knows no newer one than {LAYOUT}",
                "Use the newer quantum-nat that made it. To go back to this one: nft delete table inet quantum, and then "
                "quantum-nat reconcile; connections that are established may break.",
            )
        return [f"the table has version {layout}, not {LAYOUT}"]

    def _read_layout(self) -> int:
        """Return the version of the table, 0 where it says none."""
        return max((version for content in self._list(LAYOUT_SET) for version in layouts_in(content)), default=0)

    def check_layout(self) -> None:
        """See that the table is not of a newer program; CniError(108)."""
        self.find([])

    def owned_elements(self, owner_prefix: str = "") -> list[Element]:
        """List every set, and return the elements whose owner begins with the prefix: nothing for ADD, DEL or CHECK."""
        self.check_layout()
        listed: list[Element] = []
        for name, layout in SETS.items():
            elements: list[Element] = []
            ends: list[bytes] = []
            for content in self._list(name):
                elements += elements_in(content, name, ends)
            if layout.has_intervals:
                join_intervals(elements, ends)
            listed += elements
        return [element for element in listed if element.owner.startswith(owner_prefix)]

    def counted_flows(self) -> Iterator[tuple[str, str, str, int]]:
        """List what counts flows: set, owner, the chain that an element leads to or "", flows. For scrapes and rebuilds.

        A key is told once, although the kernel may list one twice while the set grows.
        """
        for name, layout in SETS.items():
            if layout.counter:
                found = {counted[0]: counted for content in self._list(name) for counted in counts_in(content, name)}
                for _, owner, chain, flows in found.values():
                    yield name, owner, chain, flows

    def _list(self, set_name: str) -> Iterator[bytes]:
        """Yield the attributes of the messages that list a set; nothing where it is not there."""
        try:
            for reply in self._open().dump(_request(_GETSETELEM, NLM_F_DUMP, 0, in_set(set_name))):
                if reply.error_number == ENOENT:
                    return
                if reply.error_number:
                    raise KernelRefused(f"list set {set_name}", reply.error_number)
                yield reply.payload[_FAMILY_HEADER.size :]
        except OSError as error:
            self.close()  # with what it has not read yet
            raise KernelRefused(f"list set {set_name}", error.errno or 0) from error

    def exists(self) -> bool:
        """Whether the table exists; CniError(50) where nf_tables cannot be used at all."""
        replies = self._exchange(
            _request(_GETGEN, NLM_F_ACK, 1, b"", family=0)
            + _request(_GETTABLE, NLM_F_ACK, 2, attribute(_TABLE_NAME, text(TABLE))),
            2,
        )
        for reply in replies:
            if reply.error_number and reply.sequence == 1:
                raise _unusable(OSError(reply.error_number, ""))
        return any(reply.is_answer and reply.sequence == 2 for reply in replies)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close_without_waiting()
            self._socket = None

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            try:
                self._socket = NetlinkSocket(_NETLINK_NETFILTER)
            except OSError as error:
                raise _unusable(error) from error
        return self._socket

    def _exchange(self, messages: bytes, at_least: int = 1) -> list[Reply]:
        try:
            return self._open().exchange(messages, at_least)
        except OSError as error:
            self.close()
            raise KernelRefused("take an nf_tables request", error.errno or 0) from error


_LAYOUT_REQUEST = _request(_GETSETELEM, 0, _LAYOUT_SEQUENCE, look_up_layout(LAYOUT))


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
