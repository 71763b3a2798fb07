"""Read nf_tables' notifications: which tables, chains, rules, sets and elements were added and deleted.

With kernel/netlink.py, as speed matters: until they are read, the rules are missing. The 825 messages of one
`nft flush ruleset` take 2 ms; pyroute2 takes 27 ms, and 16 MB more.
"""

from __future__ import annotations

import socket
from array import array
from enum import Enum
from errno import ENOBUFS
from select import select
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Self

from ...backends.nftables.cover import COVER
from ...backends.nftables.encoding import elements_in
from ...backends.nftables.layout import TABLE, is_set
from ...kernel.netlink import attributes, replies
from ...model.errors import KERNEL_REFUSED, CniError, KernelRefused

if TYPE_CHECKING:
    from ...backends.nftables.rules import Element
    from ...kernel.netlink import Reply

_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26
_BUFFER_BYTES = 16 << 20  # enough for a flush of tens of thousands of elements, each a message
_DATAGRAM_BYTES = 1 << 17
FAMILY_HEADER_BYTES = 4
_TABLE_NAME, _SECOND_NAME = 1, 2  # attributes of every message: the table; the chain of a rule, or the set of elements
_CHAIN_NAME = 3
_NAME_OFFSET = 24  # of the table's name in a message: after its header, the family header, and the attribute's
_INSTRUCTION, _PROGRAM = Struct("=HBBL"), Struct("@HP")  # struct sock_filter, struct sock_fprog
FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}


def _filter() -> array[int]:
    """Return the classic BPF program (linux/filter.h) that drops messages that begin with the name of the cover's table.

    A datagram holds changes of one transaction. Nobody else can change that table, and its owner changes no other.
    """
    load_word, equals, give = 0x20, 0x15, 0x06
    name = f"{COVER}\0".encode()
    words = [name[at : at + 4] for at in range(0, len(name) - 3, 4)]
    code = []
    for number, word in enumerate(words):
        code.append(_INSTRUCTION.pack(load_word, 0, 0, _NAME_OFFSET + 4 * number))
        code.append(_INSTRUCTION.pack(equals, 0, 2 * (len(words) - number) - 1, int.from_bytes(word, "big")))
    code += [_INSTRUCTION.pack(give, 0, 0, 0), _INSTRUCTION.pack(give, 0, 0, _DATAGRAM_BYTES)]
    return array("B", b"".join(code))


_FILTER = _filter()


class Kind(Enum):
    """The kind of an event, by message number (enum nf_tables_msg_types)."""

    TABLE_DELETED = 2
    CHAIN_ADDED = 3
    CHAIN_DELETED = 5
    RULE_ADDED = 6
    RULE_DELETED = 8
    SET_DELETED = 11
    ELEMENTS_DELETED = 14
    LOST = -1  # the socket's buffer overflowed: anything may have happened


_INTERESTING = {kind.value for kind in Kind}


class Event(NamedTuple):
    """One notification. name: of the chain or the set. elements: those deleted from one of our sets."""

    kind: Kind
    family: str = ""
    table: str = ""
    name: str = ""
    elements: tuple[Element, ...] = ()

    @property
    def is_of_our_table(self) -> bool:
        """Whether it concerns table `inet quantum`, or something in it."""
        return (self.family, self.table) == ("inet", TABLE)


class Notifications:
    """A context manager that subscribes to notifications; the kernel queues events from its creation on.

    Those about the cover's own table are left out: a copy of our table would cause as many as the buffer holds.
    """

    def __init__(self) -> None:
        """Subscribe; raise CniError(101) if that is not permitted."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(_FILTER) // 8, _FILTER.buffer_info()[0])
            )
            self._socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
        except OSError as error:
            self._socket.close()
            raise CniError(
                KERNEL_REFUSED, f"cannot listen to nf_tables: {error.strerror}", "Run it as root."
            ) from error
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor for select(2)."""
        return self._socket.fileno()

    def wait(self, timeout_s: float, *others: int) -> bool:
        """Wait until this or another descriptor is readable; return whether one is."""
        return bool(select([self.fileno(), *others], [], [], max(0.0, timeout_s))[0])

    def read(self) -> list[Event]:
        """Return the events of the next datagram that has any of interest; none if there is no such datagram."""
        while True:
            received = self.receive()
            if received is None:
                return [Event(Kind.LOST)]
            if not received:
                return []
            if events := [event for reply in received if (event := _event_of(reply))]:
                return events

    def receive(self) -> list[Reply] | None:
        """Return the messages of the next datagram, none if there is no datagram, and None if some were lost."""
        try:
            return list(replies(self._socket.recv(_DATAGRAM_BYTES)))
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno != ENOBUFS:
                raise KernelRefused("report the changes of nf_tables", error.errno or 0) from error
            return None

    def read_all(self) -> list[Event]:
        """Return all events so far."""
        events: list[Event] = []
        while read := self.read():
            events += read
        return events


def _event_of(reply: Reply) -> Event | None:
    number = reply.kind & 0xFF
    if reply.kind >> 8 != _SUBSYSTEM or number not in _INTERESTING:
        return None
    kind = Kind(number)
    content = reply.payload[FAMILY_HEADER_BYTES:]
    parts = dict(attributes(content))
    name = parts.get(_CHAIN_NAME if kind in (Kind.CHAIN_ADDED, Kind.CHAIN_DELETED) else _SECOND_NAME, b"")
    event = Event(kind, FAMILIES.get(reply.payload[0], ""), _text(parts.get(_TABLE_NAME, b"")), _text(name))
    if kind is Kind.ELEMENTS_DELETED and event.is_of_our_table and is_set(event.name):
        return event._replace(elements=tuple(elements_in(content, event.name)))
    return event


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode(errors="replace")
