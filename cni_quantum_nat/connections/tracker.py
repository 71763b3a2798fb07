"""Connection Tracker: delete conntrack entries that would outlive their port mapping or container.

As long as conntrack has an entry for a connection, it is translated by that entry, not by the rules; and a UDP entry stays as long as
somebody sends. The protocol is ctnetlink: linux/netfilter/nfnetlink_conntrack.h, and for the filter's flags net/netfilter/nf_internals.h.

    selection:  nfgenmsg, CTA_TUPLE_ORIG or CTA_TUPLE_REPLY { values }, CTA_FILTER { flags: which values are compared },
                CTA_STATUS, CTA_STATUS_MASK
    tuple:      CTA_TUPLE_IP { source, destination }, CTA_TUPLE_PROTO { number, source port, destination port }
    one flow:   nfgenmsg, CTA_TUPLE_ORIG as received, CTA_ID, CTA_ZONE if there is one

The original tuple has the addresses and ports of the first packet. The reply tuple has those of a reply before it is translated back: the
source of a container's reply is the container's address.

Linux 6.10 and newer can delete a selection: 0.3 ms with 262,144 buckets and few entries, 30 ms with 120,000 entries. Older versions, from
5.8 on, can only list it: 12 ms with few entries, because the kernel locks every bucket, and 50 ms with 120,000. IPv6 entries cannot be
selected by address: the kernel's comparison is inverted (ctnetlink_filter_match_tuple, Linux 5.8 to 6.18 at least), and "from this
address" would delete the entries of everybody else. So IPv6 entries are listed, and their bytes are compared before anything is decoded.
A pod's start waits for this module.
"""

from __future__ import annotations

from _struct import Struct
from errno import EINVAL, ENOENT

from ..kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NetlinkSocket,
    attribute,
    attributes,
    decoding,
    message,
    nested,
)
from ..kernel.routes import local_addresses
from ..kernel.sysctls import read_number
from ..model.addresses import Address
from ..model.attachments import PROTOCOLS
from ..model.errors import KernelRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from ..model.attachments import Attachment, PortMapping

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_ORIGINAL, _REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_PROTOCOL, _DESTINATION_PORT = 1, 3
_FILTER_FLAGS = {_ORIGINAL: 1, _REPLY: 2}
_BY_SOURCE, _BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_REPLIED, _SOURCE_TRANSLATED, _DESTINATION_TRANSLATED = (
    1 << 1,
    1 << 4,
    1 << 5,
)  # IPS_SEEN_REPLY, IPS_SRC_NAT, IPS_DST_NAT
_FAMILIES = {4: 2, 6: 10}

_FAMILY_HEADER = Struct(">BBH")
_FLAGS = Struct("=L")
_STATUS_BITS = Struct(">L")
_DELETES_PER_REQUEST = 64
# Where the kernel puts destination address and port of the original tuple: it comes first, with source and destination, then
# protocol, source port and destination port. Two bytes of type are before each.
_TARGET_AT = {4: (24, 52), 6: (36, 76)}
_SHORTEST_BYTES = 78  # of a message with a flow: both tuples, also those of IPv4, take more than the first one of IPv6
_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


class Selection:
    """Flows of one family with certain values in the tuple of one direction, as a filter for the kernel."""

    __slots__ = ("_family", "_filter")

    def __init__(
        self,
        family: int,
        direction: int = _ORIGINAL,
        compared: bytes = b"",
        flags: int = 0,
        *,
        untranslated: bool = False,
    ) -> None:
        """untranslated: leave out flows whose destination is translated."""
        self._family = family
        self._filter = b""
        if compared:
            self._filter += nested(direction, compared)
            self._filter += nested(_FILTER, attribute(_FILTER_FLAGS[direction], _FLAGS.pack(flags)))
        if untranslated:
            bit = _STATUS_BITS.pack(_DESTINATION_TRANSLATED)
            self._filter += attribute(_STATUS, _STATUS_BITS.pack(0)) + attribute(_STATUS_MASK, bit)

    def request(self, operation: int, flags: int) -> bytes:
        """Return the request for an operation on the selection."""
        header = _FAMILY_HEADER.pack(_FAMILIES[self._family], 0, 0)
        return message(_SUBSYSTEM | operation, NLM_F_REQUEST | flags, 1, header + self._filter)


class Flow:
    """A tracked connection: its tuples, its status, and the attributes that identify it in a delete request."""

    __slots__ = ("_family", "_parts", "_tuples")

    def __init__(self, payload: bytes) -> None:
        with decoding:
            self._family = 4 if payload[0] == _FAMILIES[4] else 6
            self._parts = dict(attributes(payload, _FAMILY_HEADER.size))
            self._tuples = {side: dict(attributes(self._parts[side])) for side in (_ORIGINAL, _REPLY)}

    def _field(self, direction: int, part: int, kind: int) -> bytes:
        return dict(attributes(self._tuples[direction].get(part, b""))).get(kind, b"")

    @property
    def sources(self) -> tuple[Address, Address]:
        """The sources of the first packet and of its reply."""
        original, reply = (self._field(side, _TUPLE_IP, _SOURCE[self._family]) for side in (_ORIGINAL, _REPLY))
        return Address(self._family, original), Address(self._family, reply)

    @property
    def protocol(self) -> int:
        """The protocol number."""
        return int.from_bytes(self._field(_ORIGINAL, _TUPLE_PROTO, _PROTOCOL), "big")

    @property
    def target(self) -> tuple[Address, int]:
        """The destination address and port of the first packet, before translation."""
        address = Address(self._family, self._field(_ORIGINAL, _TUPLE_IP, _DESTINATION[self._family]))
        return address, int.from_bytes(self._field(_ORIGINAL, _TUPLE_PROTO, _DESTINATION_PORT), "big")

    @property
    def is_translated(self) -> bool:
        """Whether its destination is translated."""
        return bool(self._status & _DESTINATION_TRANSLATED)

    def is_translated_to(self, address: Address, mappings: list[PortMapping]) -> bool:
        """Whether one of these mappings has translated it to a container's address."""
        target, port = self.target
        return (
            self.is_translated
            and self.sources[1] == address
            and any(
                self.protocol == PROTOCOLS[mapping.protocol]
                and mapping.host_port <= port <= mapping.last_host_port
                # A connection to ::1 is translated twice.
                and (mapping.specific_host_ip in (None, target) or (target.family == 6 and mapping.on_loopback_only))
                for mapping in mappings
            )
        )

    @property
    def is_source_translated(self) -> bool:
        """Whether its source is translated."""
        return bool(self._status & _SOURCE_TRANSLATED)

    @property
    def is_answered(self) -> bool:
        """Whether there was a reply."""
        return bool(self._status & _REPLIED)

    @property
    def _status(self) -> int:
        return int.from_bytes(self._parts.get(_STATUS, b""), "big")

    def delete_request(self, sequence: int) -> bytes:
        """Return the request that deletes it."""
        kept = nested(_ORIGINAL, self._parts[_ORIGINAL])
        kept += b"".join(attribute(kind, self._parts[kind]) for kind in (_ID, _ZONE) if kind in self._parts)
        header = _FAMILY_HEADER.pack(_FAMILIES[self._family], 0, 0)
        return message(_SUBSYSTEM | _DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, header + kept)


class ConnectionTracker:
    """The kernel's connection tracking table. Use it in `with`. Every method raises KernelRefused if the kernel refuses."""

    __slots__ = ("_netlink",)

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(_NETLINK_NETFILTER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close_without_waiting()

    def delete_of_addresses(self, addresses: list[Address]) -> None:
        """Delete the entries from and to these container addresses: connections to published ports, and masqueraded ones."""
        for address in addresses:
            if address.family == 6:
                self.delete(list(filter(_from(address), self.flows(Selection(6), containing=address.packed))))
                continue
            source = nested(_TUPLE_IP, attribute(_SOURCE[4], address.packed))
            for direction in (_ORIGINAL, _REPLY):
                self._delete_selected(Selection(4, direction, source, _BY_SOURCE), _from(address))

    def delete_published(self, address: Address, mappings: list[PortMapping]) -> None:
        """Delete the entries of connections that came to a container's address by one of these mappings."""
        if address.family == 6:
            found = self.flows(Selection(6), containing=address.packed)
        else:
            source = nested(_TUPLE_IP, attribute(_SOURCE[4], address.packed))
            found = self.flows(Selection(4, _REPLY, source, _BY_SOURCE))
        self.delete([flow for flow in found if flow.is_translated_to(address, mappings)])

    def delete_stale_udp(self, mappings: list[PortMapping], families: set[int]) -> None:
        """Delete the UDP entries to the host ports of `mappings`, so that clients that are sending already reach the container.

        Only entries to this host's addresses; of a shared port, only those that are not translated to another member.
        """
        entries = read_number(_COUNT)
        for family in sorted(families):
            targets = _targets(mappings, family)
            ms_to_select = len(targets.ports) * _ms_to_delete(entries)
            if family == 4 and not targets.ranges and ms_to_select <= _ms_to_list(len(targets.port_numbers), entries):
                for (address, port), shared in targets.ports.items():
                    self._delete_selected(_udp_to(address, port, untranslated=shared), targets.is_stale)
            else:
                self._delete_listed(family, targets, entries)

    def delete_untranslated(self, attachments: list[Attachment]) -> int:
        """Delete the entries of connections that began while the rules were not there; return how many.

        conntrack would keep them as they are for as long as they go on. A client that kept sending to a host port is translated once its
        entry is deleted, and so is a container's request that went out with its own address. Entries that are translated are left alone.
        """
        families = {f for a in attachments for f in (*a.published_families, *a.outbound.masquerade)}
        if not families:
            return 0
        local: dict[int, list[Address]] = {4: [], 6: []}
        for address in local_addresses(families):
            local[address.family].append(address)
        ports: dict[int, Targets] = {number: Targets() for number in PROTOCOLS.values()}
        for attachment in attachments:
            for port in attachment.host_ports:
                for address in [port.address] if port.address is not None else local[port.family]:
                    ports[PROTOCOLS[port.protocol]].add(address, port.port, port.size)
        sources = {
            endpoint.address
            for attachment in attachments
            for endpoint in attachment.endpoints
            if endpoint.address.family in attachment.outbound.masquerade and not attachment.is_network
        }
        deleted = 0
        for family in families:
            flows = [flow for flow in self.flows(Selection(family)) if _began_without_rules(flow, ports, sources)]
            self.delete(flows)
            deleted += len(flows)
        return deleted

    def flows(self, selection: Selection, containing: bytes = b"", to_any: Targets | None = None) -> Iterator[Flow]:
        """List the flows of a selection. Those that do not contain these bytes, or go to none of these targets, are skipped undecoded."""
        for reply in self._netlink.dump(selection.request(_GET, NLM_F_DUMP)):
            if reply.error_number:
                raise KernelRefused(
                    "list tracked connections",
                    reply.error_number,
                    "It needs module nf_conntrack_netlink, and Linux 5.8 or newer.",
                )
            if containing in reply.payload and (to_any is None or to_any.may_be_of(reply.payload)):
                yield Flow(reply.payload)

    def _delete_listed(self, family: int, targets: Targets, entries: int) -> None:
        """List the UDP entries of a family, and delete those to one of these targets.

        The kernel selects by one port. For many ports it lists all UDP once, and entries to other targets are skipped as bytes.
        """
        ports = targets.port_numbers
        by_port = not targets.ranges and len(ports) * _ms_to_list(1, entries) <= _ms_to_list_all(entries)
        for port in ports if by_port else {0}:
            self.delete(list(filter(targets.is_stale, self.flows(_udp(family, port), to_any=targets))))

    def _delete_selected(self, selection: Selection, is_meant: Callable[[Flow], bool]) -> None:
        replies = self._netlink.exchange(selection.request(_DELETE, NLM_F_ACK))
        error = max((reply.error_number for reply in replies), default=0)
        if error in (EINVAL, ENOENT):  # before Linux 6.10 a tuple must name one flow
            self._delete_one_by_one(selection, is_meant)
        elif error:
            raise KernelRefused("delete conntrack entries", error)

    def _delete_one_by_one(self, selection: Selection, is_meant: Callable[[Flow], bool]) -> None:
        """List the selection and check each flow again: some older kernels compare the reply tuple wrongly."""
        self.delete(list(filter(is_meant, self.flows(selection))))

    def delete(self, flows: list[Flow]) -> None:
        """Delete these flows. A flow that has ended by itself is not an error."""
        for start in range(0, len(flows), _DELETES_PER_REQUEST):
            chunk = flows[start : start + _DELETES_PER_REQUEST]
            requests = b"".join(flow.delete_request(i) for i, flow in enumerate(chunk))
            for reply in self._netlink.exchange(requests):
                if reply.error_number not in (0, ENOENT):  # it may have ended by itself
                    raise KernelRefused("delete a conntrack entry", reply.error_number)


def _ms_to_delete(entries: int) -> float:
    """Estimate how long the kernel takes to delete a selection, with 262,144 buckets and so many entries. Measured with Linux 6.18."""
    return 0.3 + entries / 4000


def _ms_to_list(selections: int, entries: int) -> float:
    """Estimate how long it takes to list selections that match next to nothing, or all UDP if that is faster."""
    return min(selections * (12 + entries / 3000), _ms_to_list_all(entries))


def _ms_to_list_all(entries: int) -> float:
    """Estimate how long it takes to list all UDP, and to skip most of it."""
    return 12 + entries / 250


def _from(address: Address) -> Callable[[Flow], bool]:
    return lambda flow: address in flow.sources


def is_tracking() -> bool:
    """Whether the host tracks any connection."""
    return read_number(_COUNT) > 0


class Targets:
    """Addresses of the host with ports that lead to containers.

    ports: whether the port is shared, by address and port. ranges: by address, first and last ports; a range is never shared.
    """

    __slots__ = ("_ends", "ports", "ranges")

    def __init__(self) -> None:
        self.ports: dict[tuple[Address, int], bool] = {}
        self.ranges: dict[Address, list[tuple[int, int]]] = {}
        self._ends: set[bytes] = set()

    def add(self, address: Address, port: int, size: int = 1, *, is_shared: bool = False) -> None:
        """Add a port, or a range of this size from it on."""
        if size == 1:
            self.ports[address, port] = is_shared
            self._ends.add(address.packed + port.to_bytes(2, "big"))
        else:
            self.ranges.setdefault(address, []).append((port, port + size - 1))

    @property
    def port_numbers(self) -> set[int]:
        """The ports, without those of ranges, whatever their address."""
        return {port for _, port in self.ports}

    def has(self, address: Address, port: int) -> bool:
        """Whether this port on this address is among them."""
        return (address, port) in self.ports or any(a <= port <= b for a, b in self.ranges.get(address, ()))

    def is_stale(self, flow: Flow) -> bool:
        """Whether the flow goes to one of them, and would have to go to another container by now."""
        return self.has(*flow.target) and not (self.ports.get(flow.target) and flow.is_translated)

    def may_be_of(self, payload: bytes) -> bool:
        """Whether a flow, not decoded yet, goes to one of them. True if it is not at its usual place."""
        if len(payload) < _SHORTEST_BYTES:
            return True
        family = 4 if payload[0] == _FAMILIES[4] else 6
        address, port = _TARGET_AT[family]
        if payload[address - 2] != _DESTINATION[family] or payload[port - 2] != _DESTINATION_PORT:
            return True
        packed, number = payload[address : address + (4 if family == 4 else 16)], payload[port : port + 2]
        if packed + number in self._ends:
            return True
        return bool(self.ranges) and self.has(Address(family, packed), int.from_bytes(number, "big"))


def _targets(mappings: list[PortMapping], family: int) -> Targets:
    """Return the addresses of a family and the ports that the mappings are published on."""
    targets = Targets()
    local = local_addresses({family}) if any(mapping.specific_host_ip is None for mapping in mappings) else []
    for mapping in mappings:
        specific = mapping.specific_host_ip
        for address in local if specific is None else [specific]:
            if mapping.serves(address.family) and address.family == family:
                targets.add(address, mapping.host_port, mapping.size, is_shared=bool(mapping.sharing))
    return targets


def _udp(family: int, port: int) -> Selection:
    """Select UDP, to one port unless it is 0."""
    compared = attribute(_PROTOCOL, bytes((PROTOCOLS["udp"],))) + attribute(_DESTINATION_PORT, port.to_bytes(2, "big"))
    flags = _BY_PROTOCOL | (_BY_DESTINATION_PORT if port else 0)
    return Selection(family, _ORIGINAL, nested(_TUPLE_PROTO, compared), flags)


def _udp_to(address: Address, port: int, *, untranslated: bool) -> Selection:
    """Select UDP to one IPv4 address and port."""
    compared = nested(_TUPLE_IP, attribute(_DESTINATION[4], address.packed)) + nested(
        _TUPLE_PROTO,
        attribute(_PROTOCOL, bytes((PROTOCOLS["udp"],))) + attribute(_DESTINATION_PORT, port.to_bytes(2, "big")),
    )
    flags = _BY_DESTINATION | _BY_PROTOCOL | _BY_DESTINATION_PORT
    return Selection(4, _ORIGINAL, compared, flags, untranslated=untranslated)


def _began_without_rules(flow: Flow, ports: dict[int, Targets], sources: set[Address]) -> bool:
    if flow.protocol in ports and ports[flow.protocol].has(*flow.target):
        return not flow.is_translated
    return flow.sources[0] in sources and not (flow.is_source_translated or flow.is_translated or flow.is_answered)
