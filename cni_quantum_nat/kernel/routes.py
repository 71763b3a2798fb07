"""The host's routes and addresses, over rtnetlink (linux/rtnetlink.h).

A pod's start waits for this module.
"""

from __future__ import annotations

import posix
from _socket import if_indextoname, if_nametoindex
from _struct import Struct
from errno import EEXIST

from ..model.addresses import Address
from ..model.errors import HOST_SETTING_REFUSED, NO_ROUTE, CniError
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


def interface_towards(address: Address) -> str:
    """Return the interface that the host routes this address to; raise CniError(105) if there is no route."""
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
        f"The previous plugin in the list must give the host a route to the container: `ip route get {address}`.",
    )


def interface_or_none(address: Address) -> str | None:
    try:
        return interface_towards(address)
    except CniError as error:
        if error.code != NO_ROUTE:
            raise
        return None


def default_route_interface(family: int) -> str:
    """Return the interface of the preferred default route in the main table; empty if there is none."""
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
    """Return (metric, interface index) of a route; None if it is not a default route in the main table."""
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
    """Return the addresses of all host interfaces, for these families."""
    found = []
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for family in sorted(families):
            header = _ADDRESS_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0)
            for reply in netlink.dump(message(_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, header)):
                parts = dict(attributes(reply.payload, _ADDRESS_HEADER.size))
                # On point-to-point interfaces IFA_ADDRESS is the peer's; on others IPv6 has no IFA_LOCAL.
                packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
                if not reply.error_number and packed:
                    found.append(Address(family, packed))
    finally:
        netlink.close()
    return found


def add_loopback_address(address: Address) -> bool:
    """Add an address with host scope to interface lo; return whether it is new."""
    return _change_loopback(_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address) != EEXIST


def remove_loopback_address(address: Address) -> None:
    """Remove an address from interface lo."""
    _change_loopback(_DELADDR, 0, address)


def _change_loopback(operation: int, flags: int, address: Address) -> int:
    """Add or remove an address on interface lo; return EEXIST if it was already there, else 0."""
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
            f"cannot add or remove address {address} on interface lo: {posix.strerror(error)}",
            '"ipv6Localhost" needs IPv6 on lo: `sysctl -w net.ipv6.conf.lo.disable_ipv6=0`.',
        )
    return error
