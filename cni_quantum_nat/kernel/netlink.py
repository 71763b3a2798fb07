"""Netlink framing (linux/netlink.h): messages, attributes, requests and dumps, whatever their content.

Replies are checked, not believed: one that cannot be read is OSError(EBADMSG), for its framing here, and for its content where
decoders work in `with decoding`. One that is missing is OSError(EAGAIN): nothing waits for it.
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
from _struct import error as struct_error  # type: ignore[attr-defined]  # typeshed has it in struct alone
from errno import EAGAIN, EBADMSG, EINTR, ENOBUFS, EPERM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
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
_DUMPS_AT_MOST = 8


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
        if not _ATTRIBUTE.size <= length <= len(payload) - offset:
            raise _unreadable(f"an attribute of {length} bytes, with {len(payload) - offset} left")
        yield kind & _NLA_TYPE_MASK, payload[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _unreadable(what: str) -> OSError:
    return OSError(EBADMSG, f"the kernel's reply over netlink cannot be read: {what}")


class _Decoding:
    """In `with`: what a decoder finds missing or too short in a reply is OSError(EBADMSG)."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, (struct_error, LookupError, ValueError)):
            raise _unreadable(f"{type(error).__name__}: {error}") from error


decoding = _Decoding()


class Reply:
    """A message from the kernel. `error_number` is a positive errno if it reports a failure, else 0.

    is_interrupted: the dump that it belongs to may be inconsistent, since something changed meanwhile.
    """

    __slots__ = ("error_number", "is_done", "is_interrupted", "kind", "payload", "sequence")

    def __init__(self, kind: int, flags: int, sequence: int, payload: bytes) -> None:
        self.kind = kind
        self.is_interrupted = flags & _NLM_F_DUMP_INTR
        self.sequence = sequence
        self.payload = payload
        self.is_done = kind == _NLMSG_DONE
        self.error_number = 0
        if kind == _NLMSG_ERROR or (self.is_done and payload):
            if len(payload) < _ERROR_NUMBER.size:
                raise _unreadable(f"an error number of {len(payload)} bytes")
            self.error_number = -_ERROR_NUMBER.unpack_from(payload)[0]

    @property
    def is_answer(self) -> bool:
        """Whether it carries data, rather than an acknowledgement or the end of a dump."""
        return self.kind not in (_NLMSG_ERROR, _NLMSG_DONE)


def replies(datagram: bytes) -> Iterator[Reply]:
    """Yield the messages of one datagram from the kernel."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise _unreadable(f"a message of {length} bytes, with {len(datagram) - offset} left")
        yield Reply(kind, flags, sequence, datagram[offset + _HEADER.size : offset + length])
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
                    raise OSError(EAGAIN, f"only {len(received)} of {at_least} replies came over netlink") from None
                return received
            except OSError as error:
                # More errors than the buffer holds, where it could not be enlarged: those that it holds are still to be read.
                if error.errno != ENOBUFS:
                    raise

    def _enlarge(self, forced: int, option: int, size: int) -> None:
        """Enlarge a buffer; without the right to in the initial user namespace, as far as net.core allows."""
        try:
            self._socket.setsockopt(SOL_SOCKET, forced, size)
        except PermissionError:
            self._socket.setsockopt(SOL_SOCKET, option, size)

    def dump(self, request: bytes) -> Iterator[Reply]:
        """Request a dump and yield its messages; a failure is a Reply with `error_number`.

        The kernel makes the first part before send() returns, and each next one before recv() does: an empty queue is no reason to
        wait, but a dump without an end.

        Raises:
            OSError: EINTR if something changed meanwhile, so that there may be less, or the same twice. Only the whole dump tells.
        """
        sequence = _HEADER.unpack_from(request)[3]
        is_interrupted = 0
        self._socket.send(request)
        while True:
            try:
                datagram = self._socket.recv(_RECEIVE_BYTES, _MSG_DONTWAIT)
            except BlockingIOError:
                raise OSError(EAGAIN, "a list that comes over netlink has no end") from None
            for reply in replies(datagram):
                if reply.sequence != sequence:
                    raise _unreadable(f"it answers request {reply.sequence}, not {sequence}")
                is_interrupted |= reply.is_interrupted
                if reply.error_number:
                    yield reply
                    return
                if reply.is_done:
                    if is_interrupted:
                        raise OSError(EINTR, "what was listed changed meanwhile")
                    return
                yield reply

    def dump_unchanged(self, request: bytes) -> list[Reply]:
        """Dump until nothing changes meanwhile: each change is short, and the kernel tells of those to other objects too.

        Raises:
            OSError: EINTR if something changed each time.
        """
        for _ in range(_DUMPS_AT_MOST - 1):
            try:
                return list(self.dump(request))
            except InterruptedError:
                pass
        return list(self.dump(request))

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
