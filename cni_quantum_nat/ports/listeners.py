"""Find the host's sockets that listen on a port, with sock_diag (linux/inet_diag.h).

Binding the port would not do: the runtime may hold it for the container that is being added.

A pod's start waits for this module.
"""

from __future__ import annotations

from _struct import Struct
from errno import EAFNOSUPPORT, EINVAL, ENOENT, EPROTONOSUPPORT

from ..kernel.netlink import NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket, attribute, attributes, decoding, message
from ..kernel.stderr import warn
from ..model.addresses import Address
from ..model.attachments import PROTOCOLS
from ..model.errors import KernelRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model.attachments import PortMapping
    from ..model.errors import CniError

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_FAMILIES = {4: 2, 6: 10}
_REQUEST = Struct("=BBBxL48x")  # family, protocol, attributes wanted, states, socket
_MESSAGE = Struct("=BBBB2s2s16s16s4s8sLLLLL")  # inet_diag_msg
_BYTECODE = 1
_V6_ONLY = 11
_PORT_AT_LEAST, _PORT_AT_MOST = 2, 3
_INSTRUCTION = Struct("=BBH")
_LISTENING, _UNCONNECTED = 1 << 10, 1 << 7
_STATES = {"tcp": _LISTENING, "sctp": _LISTENING, "udp": _UNCONNECTED}
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Listener:
    """A listening socket; address None: on all addresses of its families."""

    __slots__ = ("address", "families", "inode", "port")

    def __init__(self, address: Address | None, families: tuple[int, ...], port: int, inode: int) -> None:
        self.address = address
        self.families = families
        self.port = port
        self.inode = inode

    def is_shadowed_by(self, mapping: PortMapping, families: set[int], *, ipv6_localhost: bool = False) -> bool:
        """Return whether the mapping, for these families and optionally ::1, would take this socket's traffic."""
        if not mapping.host_port <= self.port <= mapping.last_host_port:
            return False
        shared = [f for f in self.families if f in families and mapping.serves(f)]
        wanted = mapping.specific_host_ip
        if self.address is None or not shared:
            return bool(shared)
        if self.address.family == 6 and self.address.is_loopback and not ipv6_localhost:
            return False  # the mapping does not apply to ::1
        return wanted is None or wanted == self.address

    def __str__(self) -> str:
        if self.address is None:
            return f"port {self.port} on all addresses"
        return f"[{self.address}]:{self.port}" if self.address.family == 6 else f"{self.address}:{self.port}"


def find_listeners(protocol: str, first: int, last: int) -> Iterator[Listener]:
    """Yield the host's listening sockets with a port from `first` to `last`; raise KernelRefused on failure.

    A kernel without sock_diag cannot list them: that is a warning, since a port can be published all the same.
    """
    try:
        netlink = NetlinkSocket(_NETLINK_SOCK_DIAG)
    except OSError as error:
        if error.errno not in (EPROTONOSUPPORT, EAFNOSUPPORT):
            raise
        warn(_cannot_list(protocol, error.errno))
        return
    try:
        for family in (4, 6):
            header = _REQUEST.pack(_FAMILIES[family], PROTOCOLS[protocol], 0, _STATES[protocol])
            request = header + attribute(_BYTECODE, _ports_between(first, last))
            for reply in netlink.dump(message(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, request)):
                if reply.error_number in (ENOENT, EINVAL) and protocol == "sctp":
                    return  # a kernel without SCTP has no SCTP sockets
                if reply.error_number == ENOENT:
                    warn(_cannot_list(protocol, ENOENT))
                    return
                if reply.error_number:
                    raise KernelRefused(f"list the host's {protocol} sockets", reply.error_number)
                yield _listener(family, reply.payload)
    finally:
        netlink.close()


def _cannot_list(protocol: str, number: int) -> CniError:
    return KernelRefused(
        f"list the host's {protocol} sockets",
        number,
        f"Services of the host are not protected from published ports. The kernel needs inet_diag: `modprobe {protocol}_diag`.",
    )


def _ports_between(first: int, last: int) -> bytes:
    """Return inet_diag bytecode. Each instruction has two jumps, in bytes: if it holds, and if not.

    A jump to 4 bytes past the end rejects. The port is in the last field of an empty instruction that follows.
    """
    code = _INSTRUCTION.pack(_PORT_AT_LEAST, 8, 20) + _INSTRUCTION.pack(0, 0, first)
    return code + _INSTRUCTION.pack(_PORT_AT_MOST, 8, 12) + _INSTRUCTION.pack(0, 0, last)


def _listener(family: int, payload: bytes) -> Listener:
    with decoding:
        fields = _MESSAGE.unpack_from(payload)
    port, packed, inode = int.from_bytes(fields[4], "big"), fields[6], fields[14]
    if family == 4:
        packed = packed[:4]
    elif packed.startswith(_MAPPED):
        family, packed = 4, packed[12:]
    if any(packed):
        return Listener(Address(family, packed), (family,), port, inode)
    only_v6 = dict(attributes(payload, _MESSAGE.size)).get(_V6_ONLY, b"\0") != b"\0"
    return Listener(None, (4,) if family == 4 else (6,) if only_v6 else (4, 6), port, inode)
