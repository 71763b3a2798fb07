"""Port Mapper: gives a host port to who asks for any, and keeps those that the host itself listens on."""

from __future__ import annotations

from ..kernel.sysctls import read_port_list
from ..model.attachments import PROTOCOLS
from ..model.errors import PORT_RANGE_FULL, CniError, HostPortConflict
from ..state.claims import free_ports
from .listeners import find_listeners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..model.attachments import Attachment, PortMapping
    from ..model.settings import Settings
    from ..state.claims import PortClaims
    from .listeners import Listener

_RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"


def recall_ports(attachment: Attachment, earlier: list[Attachment]) -> None:
    """Give mappings without a host port the one that was allocated for them before: to this attachment or a sibling."""
    taken = {protocol: set[int]() for protocol in PROTOCOLS}
    for mapping in attachment.port_mappings:
        taken[mapping.protocol].add(mapping.host_port)
    known: dict[object, list[PortMapping]] = {}
    for former in (mapping for record in earlier for mapping in record.port_mappings if mapping.allocated):
        known.setdefault(former.asked_for, []).append(former)
    for mapping in attachment.port_mappings:
        if mapping.host_port:
            continue
        for former in known.get(mapping.asked_for, ()):
            if former.host_port not in taken[mapping.protocol]:
                mapping.host_port = former.host_port
                taken[mapping.protocol].add(mapping.host_port)
                break


class _Search:
    """Finds one free port after the other for the mappings of a protocol; what it looks at is read once."""

    def __init__(self, protocol: str, attachment: Attachment, settings: Settings, claims: PortClaims) -> None:
        first, last = settings.port_range
        excluded = read_port_list(_RESERVED).union(settings.shared_ports)
        excluded.update(m.host_port for m in attachment.port_mappings if m.protocol == protocol)
        self._listeners = list(find_listeners(protocol, first, last))
        self._families = attachment.published_families
        self._ports = free_ports(claims.counts(protocol), first, last, claims.last_allocated(protocol), excluded)

    def give(self, mapping: PortMapping, is_free: Callable[[PortMapping], bool]) -> bool:
        """Give the next free port to the mapping; False when there is none."""
        for port in self._ports:
            mapping.host_port = port
            shadowed = any(listener.is_shadowed_by(mapping, self._families) for listener in self._listeners)
            if not shadowed and is_free(mapping):
                return True
        mapping.host_port = 0
        return False


def allocate_ports(
    attachment: Attachment,
    settings: Settings,
    claims: PortClaims,
    *,
    is_free: Callable[[PortMapping], bool],
    count_again: Callable[[], None],
) -> None:
    """Give a free port of the range to each mapping that has none yet.

    is_free: asks the kernel, which may know of more than the records do.
    count_again: makes the counts exact, at a price that grows with the number of records.

    Raises: CniError(107) when the range is full.
    """
    searches: dict[str, _Search] = {}
    for mapping in attachment.port_mappings:
        if mapping.host_port:
            continue
        protocol = mapping.protocol
        if protocol not in searches:
            searches[protocol] = _Search(protocol, attachment, settings, claims)
        if not searches[protocol].give(mapping, is_free):
            count_again()
            searches[protocol] = _Search(protocol, attachment, settings, claims)
            if not searches[protocol].give(mapping, is_free):
                raise _full(mapping, settings)
        claims.note_allocated(protocol, mapping.host_port)


def _full(mapping: PortMapping, settings: Settings) -> CniError:
    first, last = settings.port_range
    return CniError(
        PORT_RANGE_FULL,
        f"no {mapping.protocol} port is free in portRange {first}-{last} for container port {mapping.container_port}",
        "All are held by containers, listened on by the host, or in net.ipv4.ip_local_reserved_ports. Widen portRange.",
    )


def refuse_shadowing(attachment: Attachment, refuse_held: Callable[[], None]) -> None:
    """Refuse host ports that a process of the host listens on: its traffic would go to the container.

    The runtime's own reservation for this container is none. Its reservation for another one is named by that container,
    which is what people know: `refuse_held` does it, and is asked only when there is something to refuse.

    Raises: HostPortConflict, which names the process where it can be found.
    """
    families = attachment.published_families
    for protocol in sorted({mapping.protocol for mapping in attachment.port_mappings}):
        mappings = [mapping for mapping in attachment.port_mappings if mapping.protocol == protocol]
        ports = [mapping.host_port for mapping in mappings]
        for listener in find_listeners(protocol, min(ports), max(ports)):
            for mapping in mappings:
                if listener.is_shadowed_by(mapping, families, ipv6_localhost=attachment.inbound.ipv6_localhost):
                    _refuse(mapping, listener, attachment.id.container_id, refuse_held)


def _refuse(mapping: PortMapping, listener: Listener, container_id: str, refuse_held: Callable[[], None]) -> None:
    from ..kernel.processes import holders_of  # only where a host port is in use on the host

    holders = holders_of(listener.inode)
    if any(holder.serves_container(container_id) for holder in holders):
        return
    refuse_held()
    by = " and ".join(map(str, holders)) or "a process that cannot be seen from here"
    raise HostPortConflict(
        f"host port {mapping.host_port}/{mapping.protocol} is in use on the host: {by} listens on {listener}, "
        "and would lose its traffic to the container",
        'Publish another port, or stop that process; "hostPortConflict": "allow" lets the container have the port.',
    )
