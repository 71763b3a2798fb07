"""Netlink framing (linux/netlink.h): messages, attributes, requests and dumps, whatever their content.

A pod's start waits for this module.
"""

from __future__ import annotations

from _socket import (
    AF_NETLINK,
    AF_UNIX,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_RAW,
    SOL_SOCKET,
    socket,
    socketpair,
)
from _struct import Struct
from errno import EPERM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_MSG_DONTWAIT = 0x40

_HEADER = Struct("=LHHLL")  # length, type, flags, sequence, port
_ATTRIBUTE = Struct("=HH")  # length, type
_ERROR_NUMBER = Struct("=l")
_TWO_DESCRIPTORS = Struct("=ii")

_SO_SNDBUF, _SO_RCVBUF = 7, 8
# A request of this size fits into the kernel's default buffers of 212,992 bytes, and so does an error for each of its messages.
_SMALL_REQUEST_BYTES = 12_000
_RECEIVE_BYTES = 1 << 17
# Enough for one error for each message of a transaction: the kernel charges about 1 KiB each.
_BUFFER_BYTES_PER_BYTE_SENT = 16


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Frame one message; `payload` is the family header and the attributes."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload + b"\0" * (-len(payload) % 4)


def attribute(kind: int, payload: bytes) -> bytes:
    """Frame one attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, payload: bytes) -> bytes:
    """Frame an attribute that contains attributes."""
    return attribute(kind | _NLA_F_NESTED, payload)


def attributes(payload: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (type, payload) of the attributes from `offset` on."""
    while offset + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        yield kind & _NLA_TYPE_MASK, payload[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


class Reply:
    """A message from the kernel. `error_number` is a positive errno if it reports a failure, else 0."""

    __slots__ = ("error_number", "is_done", "kind", "payload", "sequence")

    def __init__(self, kind: int, sequence: int, payload: bytes) -> None:
        self.kind = kind
        self.sequence = sequence
        self.payload = payload
        self.is_done = kind == _NLMSG_DONE
        self.error_number = 0
        if kind == _NLMSG_ERROR or (self.is_done and len(payload) >= _ERROR_NUMBER.size):
            self.error_number = -_ERROR_NUMBER.unpack_from(payload)[0]

    @property
    def is_answer(self) -> bool:
        """Whether it carries data, rather than an acknowledgement or the end of a dump."""
        return self.kind not in (_NLMSG_ERROR, _NLMSG_DONE)


def replies(datagram: bytes) -> Iterator[Reply]:
    """Yield the messages of one datagram from the kernel."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, sequence, _ = _HEADER.unpack_from(datagram, offset)
        yield Reply(kind, sequence, datagram[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


class NetlinkSocket:
    """A netlink socket, for requests that the kernel answers before send() returns."""

    __slots__ = ("_socket",)

    def __init__(self, protocol: int) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # errors without an echo of the request

    def exchange(self, messages: bytes, at_least: int = 1) -> list[Reply]:
        """Send messages in one datagram and return all replies.

        nf_tables and the routing code answer before send() returns, so an empty queue is the end of the replies.

        Raises:
            OSError: the kernel does not take the messages, or there are fewer than `at_least` replies. Close the socket
                then: the missing replies may still arrive, and would be taken for those to a later request.
        """
        if len(messages) > _SMALL_REQUEST_BYTES:
            self._enlarge(_SO_SNDBUFFORCE, _SO_SNDBUF, 2 * len(messages))
            self._enlarge(_SO_RCVBUFFORCE, _SO_RCVBUF, _BUFFER_BYTES_PER_BYTE_SENT * len(messages))
        self._socket.send(messages)
        received: list[Reply] = []
        buffer = bytearray(_RECEIVE_BYTES)  # one for all: each reply is a datagram of its own
        while True:
            try:
                length = self._socket.recv_into(buffer, _RECEIVE_BYTES, _MSG_DONTWAIT)
                received.extend(replies(bytes(buffer[:length])))
            except BlockingIOError:
                refused_all = received and received[0].error_number == EPERM  # one reply, however many messages
                if len(received) < at_least and not refused_all:
                    raise
                return received

    def _enlarge(self, forced: int, option: int, size: int) -> None:
        """Enlarge a buffer; without the right to in the initial user namespace, as far as net.core allows."""
        try:
            self._socket.setsockopt(SOL_SOCKET, forced, size)
        except PermissionError:
            self._socket.setsockopt(SOL_SOCKET, option, size)

    def dump(self, request: bytes) -> Iterator[Reply]:
        """Request a dump and yield its messages; a failure is a Reply with `error_number`."""
        self._socket.send(request)
        while True:
            for reply in replies(self._socket.recv(_RECEIVE_BYTES)):
                if reply.error_number:
                    yield reply
                if reply.is_done or reply.error_number:
                    return
                yield reply

    def close(self) -> None:
        self._socket.close()

    def close_without_waiting(self) -> None:
        """Let the kernel close the socket in the background, where it can.

        Closing a netfilter socket waits until everything that nf_tables has deleted, by any process, is freed: an RCU grace
        period, 10 to 20 ms. So the last reference to this socket is put into the queue of a Unix socket, and the last reference
        to that one too. The kernel's garbage collector frees both: in a worker since Linux 6.9, before that within close(),
        which then waits as usual.
        """
        pair: tuple[socket, ...] = ()
        try:
            pair = trigger, queue = socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
            descriptors = _TWO_DESCRIPTORS.pack(self._socket.fileno(), queue.fileno())
            trigger.sendmsg([b"\0"], [(SOL_SOCKET, SCM_RIGHTS, descriptors)])
        except OSError:
            pass  # too many open or in flight, or forbidden by a policy: closing waits
        self._socket.close()
        for end in reversed(pair):  # closing a Unix socket starts the collector: close the trigger last
            end.close()
