"""Facts and settings of the host: routes, interfaces, network namespaces, sysctls."""

from __future__ import annotations

import posix
from _socket import if_indextoname, if_nametoindex
from _struct import Struct
from errno import EEXIST

from .addresses import Address
from .errors import HOST_SETTING_REFUSED, NO_ROUTE, CniError
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
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NETLINK_ROUTE = 0
_NEWADDR, _DELADDR, _GETADDR, _GETROUTE = 20, 21, 22, 26
_ADDRESS_HEADER = Struct("=BBBBL")  # ifaddrmsg: family, prefixlen, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD, _SCOPE_HOST = 2, 254
_ROUTE_HEADER = Struct("=BBBBBBBBL")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_TABLE, _RTA_MULTIPATH = 1, 4, 6, 15, 9
_NEXT_HOP_INDEX_OFFSET = 4  # in struct rtnexthop
_TABLE_MAIN = 254
_TYPE_UNICAST = 1
_FAMILIES = {4: 2, 6: 10}
_INDEX = Struct("=L")

_NET = "/proc/sys/net"
_FORWARDING = {4: f"{_NET}/ipv4/ip_forward", 6: f"{_NET}/ipv6/conf/all/forwarding"}


def interface_towards(address: Address) -> str:
    """Name the interface that the host routes this address to; CniError(105) when it has no route."""
    header = _ROUTE_HEADER.pack(_FAMILIES[address.family], len(address.packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    request = message(_GETROUTE, NLM_F_REQUEST, 1, header + attribute(_RTA_DST, address.packed))
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for reply in netlink.exchange(request):
            index = dict(attributes(reply.payload, _ROUTE_HEADER.size)).get(_RTA_OIF) if reply.is_answer else None
            if index:
                return if_indextoname(_INDEX.unpack(index)[0])
    finally:
        netlink.close()
    raise CniError(
        NO_ROUTE,
        f"the host has no route to the container's address {address}",
        "The plugin before this one in the list must leave the host with a route to the container.",
    )


def _interface_or_none(address: Address) -> str | None:
    try:
        return interface_towards(address)
    except CniError as error:
        if error.code != NO_ROUTE:
            raise
        return None


def default_route_interface(family: int) -> str:
    """Name the interface of the preferred default route of the main table, empty when there is none."""
    request = message(
        _GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 1, _ROUTE_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0)
    )
    best: tuple[int, int] | None = None
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for reply in netlink.dump(request):
            route = None if reply.error_number else _default_route(reply.payload)
            if route is not None and (best is None or route < best):
                best = route
    finally:
        netlink.close()
    return if_indextoname(best[1]) if best else ""


def _default_route(payload: bytes) -> tuple[int, int] | None:
    """Read (metric, interface index) of a route, None when it is no default route of the main table."""
    _, prefix_length, _, _, table, _, _, kind, _ = _ROUTE_HEADER.unpack_from(payload)
    if prefix_length or kind != _TYPE_UNICAST or table != _TABLE_MAIN:
        return None
    parts = dict(attributes(payload, _ROUTE_HEADER.size))
    metric = _INDEX.unpack(parts.get(_RTA_PRIORITY, b"\0\0\0\0"))[0]
    if _RTA_OIF in parts:
        return metric, _INDEX.unpack(parts[_RTA_OIF])[0]
    if _RTA_MULTIPATH in parts:
        return metric, _INDEX.unpack_from(parts[_RTA_MULTIPATH], _NEXT_HOP_INDEX_OFFSET)[0]
    return None


def local_addresses(families: set[int]) -> list[Address]:
    """Return the addresses of the host's interfaces, of these families."""
    found = []
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for family in sorted(families):
            header = _ADDRESS_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0)
            for reply in netlink.dump(message(_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, header)):
                parts = dict(attributes(reply.payload, _ADDRESS_HEADER.size))
                # With a peer, IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL without one.
                packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
                if not reply.error_number and packed:
                    found.append(Address(family, packed))
    finally:
        netlink.close()
    return found


def namespace_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the network namespace that a path names, None when the path is gone."""
    try:
        status = posix.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


class HostSettings:
    """Changes settings, and remembers what they were, so that a failed ADD can put them back."""

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def forwards(self, family: int) -> bool:
        """Whether the host forwards packets of this family."""
        return _read(_FORWARDING[family]) == "1"

    def enable_forwarding(self, family: int, container_addresses: list[Address]) -> None:
        """Let the host forward packets of this family.

        A host that forwards ignores router advertisements where `accept_ra` is 1, and would lose its default
        route; 2 keeps it. Interfaces that lead to containers are left out: a container must not become a router.
        """
        if family == 6:
            towards_containers = {_interface_or_none(address) for address in container_addresses}
            for interface in set(posix.listdir(f"{_NET}/ipv6/conf")) - towards_containers - {"all", "default", "lo"}:
                accept_ra = f"{_NET}/ipv6/conf/{interface}/accept_ra"
                if _read(accept_ra) == "1":
                    self._set(accept_ra, "2")
        self._set(_FORWARDING[family], "1")

    def enable_route_localnet(self, interface: str) -> None:
        """Let packets with a source in 127.0.0.0/8 be routed to this interface; chain `guard` keeps others out."""
        self._set(f"{_NET}/ipv4/conf/{interface}/route_localnet", "1")

    def enable_ipv6_localhost(self, alias: Address) -> None:
        """Make the alias of ::1 an address of this host; chain `guard` keeps it to this host."""
        if _change_loopback(_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, alias) != EEXIST:
            self._undo.append(lambda: _remove_alias(alias))

    def restore(self) -> None:
        """Put back what was changed, last first."""
        while self._undo:
            self._undo.pop()()

    def _set(self, path: str, value: str) -> None:
        before = _read(path)
        if before == value:
            return
        _write(path, value)
        self._undo.append(lambda: _write(path, before))


def _remove_alias(alias: Address) -> None:
    _change_loopback(_DELADDR, 0, alias)


def _change_loopback(operation: int, flags: int, address: Address) -> int:
    """Add or remove an address of interface lo; returns EEXIST where there was nothing to add, else 0."""
    bits = len(address.packed) * 8
    header = _ADDRESS_HEADER.pack(_FAMILIES[address.family], bits, _IFA_F_NODAD, _SCOPE_HOST, if_nametoindex("lo"))
    request = header + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        replies = netlink.exchange(message(operation, flags | NLM_F_REQUEST | NLM_F_ACK, 1, request))
    finally:
        netlink.close()
    error = next((reply.error_number for reply in replies), 0)
    if error not in (0, EEXIST):
        raise CniError(
            HOST_SETTING_REFUSED,
            f"cannot change address {address} of interface lo: {posix.strerror(error)}",
            '"ipv6Localhost" needs IPv6 on lo: net.ipv6.conf.lo.disable_ipv6 = 0.',
        )
    return error


def _read(path: str, most_bytes: int = 64) -> str:
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise _refused("read", path, error) from error
    try:
        return posix.read(descriptor, most_bytes).decode().strip()
    finally:
        posix.close(descriptor)


def read_number(path: str) -> int:
    """Read a setting or counter that is a number; 0 where the kernel has none of it."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return int(posix.read(descriptor, 64))
    finally:
        posix.close(descriptor)


def read_port_list(path: str) -> set[int]:
    """Read a setting that is a list of ports and ranges of them, as 8080,9148-9150."""
    ports: set[int] = set()
    for part in filter(None, _read(path, 1 << 16).split(",")):
        first, _, last = part.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports


def _write(path: str, value: str) -> None:
    try:
        descriptor = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(descriptor, value.encode())
        finally:
            posix.close(descriptor)
    except OSError as error:
        raise _refused(f"set to {value}", path, error) from error


def _refused(what: str, path: str, error: OSError) -> CniError:
    return CniError(
        HOST_SETTING_REFUSED,
        f"cannot {what} {path}: {posix.strerror(error.errno or 0)}",
        "Set it before the plugin runs, or make /proc/sys/net writable for it; "
        '"ipForwarding": false leaves forwarding to you.',
    )
