"""Replies that no kernel of today sends: cut off, with wrong lengths, with attributes that nobody knows, or without an end.

Whatever comes back, a call ends, and an error is one that says what failed: CniError or OSError.
"""

from __future__ import annotations

import errno
import signal
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables.rules import Element
from cni_quantum_nat.backends.nftables.table import NftablesTable
from cni_quantum_nat.connections.tracker import ConnectionTracker, Selection
from cni_quantum_nat.kernel import netlink
from cni_quantum_nat.kernel.routes import default_route_interfaces, interface_towards, local_addresses
from cni_quantum_nat.model.addresses import Address
from cni_quantum_nat.model.errors import AlreadyThere, CniError
from cni_quantum_nat.ports.listeners import find_listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPU_LIMIT_S = 0.2
NEWELEM, NEWSET, NEWTABLE, NEWCHAIN, NEWRULE, NEWGEN, NEWOBJ = 0xA0C, 0xA09, 0xA00, 0xA03, 0xA06, 0xA0F, 0xA12
NEWFLOW, NEWROUTE, NEWADDRESS, SOCKET = 0x100, 24, 20, 20
LAYOUT_ANSWER = 1 << 30  # the sequence number of the request for the version of the table
ELEMENT = Element("home4", (Address.parse("10.0.0.2"), "br0"), (), "net/c1/eth0")


class Endless(BaseException):
    """The program waits or works for ever. Not an Exception, so that nobody catches it."""


class Kernel:
    """In the place of a socket: it answers each request with the next of these lists of datagrams."""

    def __init__(self, answers: list[list[bytes]]) -> None:
        self._answers = list(answers)
        self._datagrams: list[bytes] = []
        self._has_timeout = False
        self.overrun = False  # the receive buffer

    def __call__(self, *_: object) -> Kernel:
        return self

    def setsockopt(self, level: int, option: int, _value: object) -> None:
        self._has_timeout |= (level, option) in ((1, 20), (1, 66))  # SO_RCVTIMEO, old and new

    def settimeout(self, seconds: float | None) -> None:
        self._has_timeout = seconds is not None

    def send(self, content: bytes) -> int:
        self._datagrams += self._answers.pop(0) if self._answers else []
        return len(content)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.overrun:
            self.overrun = False
            raise OSError(errno.ENOBUFS, "No buffer space available")
        if self._datagrams:
            return self._datagrams.pop(0)[:size]
        if self._has_timeout or flags & 0x40:  # MSG_DONTWAIT
            raise BlockingIOError(11, "nothing there")
        raise Endless("it waits for a reply that does not come")

    def recv_into(self, buffer: bytearray, size: int, flags: int = 0) -> int:
        received = self.recv(size, flags)
        buffer[: len(received)] = received
        return len(received)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        return None


def message(kind: int, payload: bytes, sequence: int = 0) -> bytes:
    return struct.pack("=LHHLL", 16 + len(payload), kind, 2, sequence, 0) + payload + b"\0" * (-len(payload) % 4)


def attribute(number: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), number) + content + b"\0" * (-len(content) % 4)


def done(sequence: int = 0) -> bytes:
    return message(3, b"\0\0\0\0", sequence)


def element(interface: bytes = b"br0") -> bytes:
    """List 10.0.0.2 as an element of home4, or without an interface of masqueraded4."""
    value = attribute(1, b"\x0a\0\0\2" + (interface.ljust(16, b"\0") if interface else b""))
    listed = attribute(0x8001, value) + attribute(6, b"\0\x0cnet/c1/eth0\0")
    counter = attribute(1, b"counter\0") + attribute(0x8002, attribute(1, b"\0" * 8) + attribute(2, b"\0" * 7 + b"\3"))
    elements = attribute(0x8001, listed + attribute(0x8007, counter))
    return b"\1\0\0\0" + attribute(1, b"quantum\0") + attribute(2, b"home4\0") + attribute(0x8003, elements)


def flow(family: int) -> bytes:
    width = 4 if family == 2 else 16
    ips = attribute(1 if family == 2 else 3, b"\x0a" + bytes(width - 2) + b"\2") + attribute(
        2 if family == 2 else 4, bytes(width)
    )
    tuples = attribute(0x8001, ips) + attribute(
        0x8002, attribute(1, b"\x11") + attribute(2, b"\0\5") + attribute(3, b"\0\7")
    )
    return (
        struct.pack(">BBH", family, 0, 0)
        + attribute(0x8001, tuples)
        + attribute(0x8002, tuples)
        + attribute(3, b"\0\0\0\x20")
        + attribute(12, b"\1\2\3\4")
    )


def route() -> bytes:
    return (
        struct.pack("=BBBBBBBBL", 2, 0, 0, 0, 254, 3, 0, 1, 0) + attribute(4, b"\1\0\0\0") + attribute(6, b"\0\0\0\0")
    )


def address() -> bytes:
    return struct.pack("=BBBBL", 2, 8, 0, 0, 1) + attribute(1, b"\x7f\0\0\1") + attribute(2, b"\x7f\0\0\1")


def listening() -> bytes:
    return bytes((2, 10, 0, 0)) + b"\x1f\x90\0\0" + bytes(64) + attribute(8, b"\1")


def look_at_flows(family: int) -> None:
    with ConnectionTracker() as tracker:
        for found in tracker.flows(Selection(family)):
            _ = (found.sources, found.protocol, found.target, found.is_translated, found.is_answered)
            found.delete_request(1)


def forget(address: str) -> None:
    with ConnectionTracker() as tracker:
        tracker.delete_of_addresses([Address.parse(address)])


def listed(name: bytes, content: bytes) -> list[list[bytes]]:
    """List the sets, of which there is one, and then its elements."""
    one = b"\1\0\0\0" + attribute(1, b"quantum\0") + attribute(2, name + b"\0")
    return [[message(NEWSET, one), done()], [message(NEWELEM, content), done()]]


OF_TABLE = b"\1\0\0\0" + attribute(1, b"quantum\0")

# What is asked, and what a kernel says to it.
CALLS: dict[str, tuple[Callable[[], Any], list[list[bytes]]]] = {
    "find elements": (
        lambda: NftablesTable().find([ELEMENT]),
        [[message(NEWELEM, element()), message(NEWELEM, element(), LAYOUT_ANSWER)]],
    ),
    "commit": (lambda: NftablesTable().commit(add=[ELEMENT]), [[message(2, b"\0" * 20, 1)]]),
    "table exists": (
        lambda: NftablesTable().exists(),
        [[message(NEWGEN, b"\0" * 4, 1), message(NEWTABLE, b"\1\0\0\0", 2)]],
    ),
    "state of the table": (
        lambda: NftablesTable().state_of("boot"),
        [
            [
                message(NEWTABLE, b"\1\0\0\0" + attribute(1, b"quantum\0")),
                message(NEWCHAIN, b"\1\0\0\0" + attribute(3, b"guard\0"), 1),
                *(message(2, struct.pack("=l", -2) + bytes(16), 1) for _ in range(6)),
                message(NEWELEM, element(), LAYOUT_ANSWER),
            ],
            [message(NEWRULE, b"\1\0\0\0" + attribute(2, b"guard\0")), done()],
        ],
    ),
    "owned elements": (
        lambda: NftablesTable().owned_elements(),
        [[message(NEWELEM, element(), LAYOUT_ANSWER)], *listed(b"home4", element())],
    ),
    "generation of the ruleset": (
        lambda: NftablesTable().generation(),
        [[message(NEWGEN, b"\0" * 4 + attribute(1, b"\0\0\0\7"), 1)]],
    ),
    "chains": (lambda: NftablesTable().chains(), [[message(NEWCHAIN, OF_TABLE + attribute(3, b"guard\0")), done()]]),
    "maps and sets": (
        lambda: NftablesTable().maps_and_sets(),
        [[message(NEWSET, OF_TABLE + attribute(2, b"home4\0") + attribute(3, b"\0\0\0\0")), done()]],
    ),
    "time-outs": (lambda: NftablesTable().timeouts(), [[message(NEWOBJ, OF_TABLE + attribute(2, b"t60\0")), done()]]),
    "counted flows": (
        lambda: list(NftablesTable().counted_flows()),
        listed(b"masqueraded4", element(b"")),
    ),
    "IPv4 flows": (lambda: look_at_flows(4), [[message(NEWFLOW, flow(2), 1) + message(NEWFLOW, flow(2), 1), done(1)]]),
    "IPv6 flows": (
        lambda: look_at_flows(6),
        [[message(NEWFLOW, flow(10), 1) + message(NEWFLOW, flow(10), 1), done(1)]],
    ),
    "forget an IPv4 container": (
        lambda: forget("10.0.0.2"),
        [[message(2, b"\0" * 20, 1)], [message(2, b"\0" * 20, 1)]],
    ),
    "forget an IPv6 container": (
        lambda: forget("a00::2"),
        [[message(NEWFLOW, flow(10), 1), done(1)], [message(2, b"\0" * 20)]],
    ),
    "interface towards": (lambda: interface_towards(Address.parse("10.0.0.2")), [[message(NEWROUTE, route())]]),
    "default route": (lambda: default_route_interfaces(4), [[message(NEWROUTE, route()), done()]]),
    "local addresses": (lambda: local_addresses({4}), [[message(NEWADDRESS, address(), 1), done(1)]]),
    "listeners": (
        lambda: list(find_listeners("tcp", 1, 65535)),
        [[message(SOCKET, listening(), 1), done(1)], [done(1)]],
    ),
}


@st.composite
def hostile(draw: st.DrawFn, answers: list[list[bytes]]) -> list[list[bytes]]:
    """Change what a kernel says: bytes, lengths, flags; cut it off, put something in, leave something out."""
    changed = [[bytearray(datagram) for datagram in answer] for answer in answers]
    worth_it = [answer for answer in changed if len(answer) > 1] or changed
    for _ in range(draw(st.integers(1, 3))):
        answer = draw(st.sampled_from(worth_it))
        if answer:
            change(draw, answer, draw(st.integers(0, len(answer) - 1)))
    return [[bytes(datagram) for datagram in answer] for answer in changed]


def change(draw: st.DrawFn, answer: list[bytearray], which: int) -> None:
    datagram = answer[which]
    at = draw(st.integers(0, max(0, len(datagram) - 1)))
    match draw(st.sampled_from(["cut", "length", "bytes", "insert", "lose", "repeat", "interrupted"])):
        case "cut":
            del datagram[at:]
        case "length":  # of an attribute or message: two bytes where one may begin
            at -= at % 4
            datagram[at : at + 2] = struct.pack("=H", draw(st.sampled_from([0, 1, 3, 4, 5, 8, 255, 65535])))
        case "bytes":
            replacement = draw(st.binary(min_size=1, max_size=8))
            datagram[at : at + len(replacement)] = replacement
        case "insert":
            datagram[at:at] = draw(st.binary(min_size=4, max_size=12))
        case "lose":
            del answer[which]
        case "repeat":
            answer.insert(which, bytearray(datagram))
        case "interrupted":
            datagram[6:8] = struct.pack("=H", 0x12)  # NLM_F_MULTI | NLM_F_DUMP_INTR


@contextmanager
def limited() -> Iterator[None]:
    """Raise Endless when it takes more CPU time than anything here can need."""

    def give_up(*_: object) -> None:
        raise Endless("it works for ever")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S, CPU_LIMIT_S)  # again: it may come where exceptions are ignored
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def ask(name: str, answers: list[list[bytes]]) -> Any:
    with patch.object(netlink, "socket", Kernel(answers)), limited():
        try:
            return CALLS[name][0]()
        except Endless as endless:
            raise AssertionError(str(endless)) from endless


@pytest.mark.parametrize("name", CALLS)
def test_the_unchanged_replies_are_understood(name: str) -> None:
    """Otherwise what is changed would be refused for another reason."""
    ask(name, CALLS[name][1])


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=150, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_hostile_replies_end_in_an_answer_or_a_clear_error(name: str, data: st.DataObject) -> None:
    answers = data.draw(hostile(CALLS[name][1]))
    try:
        ask(name, answers)
    except (CniError, OSError):
        return


def list_addresses(*answers: list[bytes]) -> list[str]:
    """List the host's addresses while the kernel answers so, one dump after the other."""
    with patch.object(netlink, "socket", Kernel(list(answers))), limited():
        return [str(found) for found in local_addresses({4})]


def interrupted(datagram: bytes) -> bytes:
    """Set NLM_F_DUMP_INTR: something changed since the part before."""
    return datagram[:6] + struct.pack("=H", 0x12) + datagram[8:]


WHOLE = [message(NEWADDRESS, address(), 1), done(1)]
CHANGED = [interrupted(message(NEWADDRESS, address(), 1)), done(1)]


def test_a_listing_is_repeated_until_nothing_changes_meanwhile() -> None:
    assert list_addresses(CHANGED, [WHOLE[0], interrupted(done(1))], WHOLE) == ["127.0.0.1"]


def test_a_listing_that_changes_each_time_is_an_error() -> None:
    with pytest.raises(InterruptedError, match="changed meanwhile"):
        list_addresses(*[CHANGED] * 20)


def test_a_reply_to_another_request_is_an_error() -> None:
    with pytest.raises(OSError, match="it answers request 7, not 1"):
        list_addresses([message(NEWADDRESS, address(), 7), done(7)])


def test_a_dump_without_an_end_is_an_error() -> None:
    with pytest.raises(BlockingIOError, match="a list that comes over netlink has no end"):
        list_addresses(WHOLE[:1])


@pytest.mark.parametrize("name", CALLS)
def test_no_reply_at_all_is_an_error_in_words(name: str) -> None:
    with pytest.raises((CniError, OSError), match=r"only 0 of \d+ replies came over netlink|has no end"):
        ask(name, [])


def test_too_few_replies_are_an_error_in_words() -> None:
    only = [message(NEWGEN, b"\0" * 4, 1)]
    with pytest.raises(CniError, match="take an nf_tables request: only 1 of 2 replies came"):
        ask("table exists", [only])


@pytest.mark.parametrize("length", [0, 15, 255])
def test_the_error_says_which_length_is_wrong(length: int) -> None:
    wrong = struct.pack("=L", length) + WHOLE[0][4:]
    with pytest.raises(OSError, match=f"a message of {length} bytes, with {len(wrong)} left") as caught:
        list_addresses([wrong])
    assert caught.value.errno == errno.EBADMSG


def test_errors_that_do_not_fit_the_buffer_do_not_hide_those_that_do() -> None:
    """ENOBUFS comes first; the errors that were queued before it say what is wrong."""
    kernel = Kernel([[message(2, struct.pack("=l", -errno.EEXIST) + bytes(16), 1)]])
    kernel.overrun = True
    with patch.object(netlink, "socket", kernel), pytest.raises(AlreadyThere):
        NftablesTable().commit(add=[ELEMENT])
