"""Port Mapper: allocates host ports, and refuses to publish ports that the host itself listens on.

A pod's start waits for this module.
"""

from __future__ import annotations

from ..kernel.sysctls import read_port_list
from ..model.attachments import PROTOCOLS
from ..model.errors import PORT_RANGE_FULL, CniError, HostPortConflict
from ..model.units import HostPort
from .listeners import find_listeners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..model.addresses import Address
    from ..model.attachments import Attachment, PortMapping
    from ..model.settings import Settings
    from .listeners import Listener

_RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"
# How many ports to ask the kernel about at once: usually the first is free; if it is not, the range may be nearly full.
_FEW, _MANY = 4, 512


def recall_ports(attachment: Attachment, earlier: list[Attachment]) -> None:
    """Reuse the host ports that were allocated before for the same mappings, to this attachment or a sibling."""
    taken = {protocol: set[int]() for protocol in PROTOCOLS}
    for mapping in attachment.port_mappings:
        taken[mapping.protocol].update(range(mapping.host_port, mapping.last_host_port + 1))
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
    """Finds free ports for mappings of one protocol on one host address. Reads the host's listeners once."""

    def __init__(self, mapping: PortMapping, attachment: Attachment, settings: Settings, after: int) -> None:
        first, last = settings.port_range
        excluded = read_port_list(_RESERVED).union(settings.shared_ports)
        self._families = attachment.published_families
        self._ipv6_localhost = attachment.inbound.ipv6_localhost
        self._listeners = list(find_listeners(mapping.protocol, first, last))
        self._free: list[int] = []  # the kernel has said so, and under the lock that stays true
        self._wanted = _FEW
        start = after + 1 if first <= after < last else first
        self._ports = (port for port in (*range(start, last + 1), *range(first, start)) if port not in excluded)

    def give(
        self, mapping: PortMapping, given: set[int], held_among: Callable[[list[HostPort]], Collection[HostPort]]
    ) -> bool:
        """Give the mapping the next free port that is not in `given`; False if there is none."""
        while self._free or self._find_more(mapping, held_among):
            mapping.host_port = self._free.pop(0)
            shadowed = any(
                listener.is_shadowed_by(mapping, self._families, ipv6_localhost=self._ipv6_localhost)
                for listener in self._listeners
            )
            if mapping.host_port not in given and not shadowed:
                return True
        mapping.host_port = 0
        return False

    def _find_more(self, mapping: PortMapping, held_among: Callable[[list[HostPort]], Collection[HostPort]]) -> bool:
        """Ask the kernel about the next ports. Return whether any of the range is left."""
        families = [family for family in self._families if mapping.serves(family)]
        while candidates := [port for _, port in zip(range(self._wanted), self._ports)]:
            self._wanted = _MANY
            units = {
                port: [HostPort(family, mapping.protocol, port, mapping.specific_host_ip) for family in families]
                for port in candidates
            }
            held = set(held_among([unit for of_port in units.values() for unit in of_port]))
            self._free = [port for port in candidates if held.isdisjoint(units[port])]
            if self._free:
                return True
        return False


def allocate_ports(
    attachment: Attachment,
    settings: Settings,
    last_ports: dict[str, int],
    held_among: Callable[[list[HostPort]], Collection[HostPort]],
) -> None:
    """Give each mapping without a host port a free one from the range.

    last_ports: by protocol, the port allocated last; changed here. held_among: asks the kernel which of these ports somebody has.

    Raises: CniError(107) when the range is full.
    """
    given = {protocol: set[int]() for protocol in PROTOCOLS}
    for mapping in attachment.port_mappings:
        given[mapping.protocol].update(range(mapping.host_port, mapping.last_host_port + 1))
    searches: dict[tuple[str, Address | None], _Search] = {}
    for mapping in attachment.port_mappings:
        if mapping.host_port:
            continue
        protocol, key = mapping.protocol, (mapping.protocol, mapping.host_ip)
        if key not in searches:
            searches[key] = _Search(mapping, attachment, settings, last_ports[protocol])
        if not searches[key].give(mapping, given[protocol], held_among):
            raise _full(mapping, settings)
        given[protocol].add(mapping.host_port)
        last_ports[protocol] = mapping.host_port


def _full(mapping: PortMapping, settings: Settings) -> CniError:
    first, last = settings.port_range
    return CniError(
        PORT_RANGE_FULL,
        f"no {mapping.protocol} port is free in portRange {first}-{last} for container port {mapping.container_port}",
        "All are held by containers, listened on by the host, or in net.ipv4.ip_local_reserved_ports. Widen portRange.",
    )


def check_host_listeners(attachment: Attachment, refuse_held: Callable[[], None]) -> None:
    """Refuse host ports that a process of the host listens on: its traffic would go to the container.

    The runtime's own reservation for this container is none. Its reservation for another one is named by that container,
    which is what people know: `refuse_held` does it, and is asked only when there is something to refuse.

    Raises: HostPortConflict, which names the process where it can be found.
    """
    families = attachment.published_families
    for protocol in sorted({mapping.protocol for mapping in attachment.port_mappings}):
        mappings = [mapping for mapping in attachment.port_mappings if mapping.protocol == protocol]
        first = min(mapping.host_port for mapping in mappings)
        last = max(mapping.last_host_port for mapping in mappings)
        for listener in find_listeners(protocol, first, last):
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
        f"host port {listener.port}/{mapping.protocol} is in use on the host: {by} listens on {listener}, "
        "and would lose its traffic to the container",
        'Publish another port, or stop that process; "hostPortConflict": "allow" lets the container have the port.',
    )
