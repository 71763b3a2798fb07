"""The elements that an attachment needs in the table's sets and maps, by unit. No I/O.

A pod's start waits for this module.
"""

from __future__ import annotations

from ...model.addresses import Address, Endpoint, Subnet
from ...model.attachments import BY_CLIENT, EXCLUSIVE, SPREAD
from ...model.ranges import loopback_only, united
from ...model.units import HostPort, PortRange
from .layout import (
    BUCKETS,
    BY_INTERFACE,
    BY_SOURCE,
    DEFAULT_TIMEOUT_S,
    IPV6_LOCALHOST_ALIAS,
    ON_ONE_ADDRESS,
    PUBLISH,
    SETS,
    SHARED,
    SPREAD_BY_CLIENT,
    SPREAD_EVENLY,
    Policy,
    network_timeout_set,
    network_udp_timeout_set,
    ranges_set,
    subnets_set,
    timeout_set,
    udp_timeout_set,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...model.attachments import Attachment, PortMapping
    from ...model.units import Unit

    Field = Address | Subnet | PortRange | str | int
    Fields = tuple[Field, ...]
    Identity = tuple[str, Fields]

_KINDS = {EXCLUSIVE: PUBLISH, SPREAD: SPREAD_EVENLY, BY_CLIENT: SPREAD_BY_CLIENT}
_ALIAS = Address.parse(IPV6_LOCALHOST_ALIAS)
_NOBODY = {4: Address(4, bytes(4)), 6: Address(6, bytes(16))}


class Element:
    """An element of the set `set_name`: `key` and `data` have the fields of its layout, `owner` is its comment.

    policy: the policy that it leads to, if any.
    flows: how many connections the kernel has counted; rules see the first packet of each.
    """

    __slots__ = ("data", "flows", "key", "owner", "policy", "set_name")

    def __init__(self, set_name: str, key: Fields, data: Fields, owner: str, policy: Policy | None = None) -> None:
        self.set_name = set_name
        self.key = key
        self.data = data
        self.owner = owner
        self.policy = policy
        self.flows = 0

    @property
    def identity(self) -> Identity:
        """Set and key, which are unique in the kernel."""
        return self.set_name, self.key

    def is_same(self, other: Element) -> bool:
        """Whether both have the same effect and the same owner."""
        return (self.identity, self.data, self.owner) == (other.identity, other.data, other.owner)

    @property
    def family(self) -> int:
        """4 or 6."""
        return SETS[self.set_name].family

    @property
    def is_foreign(self) -> bool:
        """Whether its record is in another state directory."""
        return ":" in self.owner

    @property
    def is_counted(self) -> bool:
        """Whether the kernel counts its connections."""
        return SETS[self.set_name].counter

    def __str__(self) -> str:
        data = f" : {_joined(self.data)}" if self.data else ""
        return f"{self.set_name} {{ {_joined(self.key)}{data} }}"


def _joined(fields: Fields) -> str:
    return " . ".join(str(field) for field in fields)


def plan_rules(attachment: Attachment, units: Iterable[Unit] | None = None) -> list[Element]:
    """Return the elements of an attachment for these units, or for all its units, in a fixed order.

    The buckets of shared ports depend on the other members: see sharing.py.
    """
    wanted = [*attachment.address_units, *attachment.host_ports] if units is None else list(units)
    mappings = attachment.host_ports
    elements: list[Element] = []
    for unit in wanted:
        if isinstance(unit, HostPort):
            elements += _plan_host_port(attachment, unit, mappings[unit])
        else:
            elements += _plan_addresses(attachment, unit)
    return elements


def _plan_addresses(attachment: Attachment, unit: Address | Subnet) -> Iterator[Element]:
    if isinstance(unit, Subnet):
        return _plan_network(attachment, unit)
    return _plan_address(attachment, next(e for e in attachment.endpoints if e.address == unit))


def lead_of(unit: Unit) -> Element:
    """Return the element to look up to find the owner of a unit: the owner of this element."""
    if isinstance(unit, HostPort):
        prefix, key = _place(unit)
        return Element(_set_of(f"{prefix}endpoints", key, unit.family), key, (), "")
    name = "networks" if isinstance(unit, Subnet) else "containers"
    return Element(f"{name}{unit.family}", (unit,), (), "")


def range_lead_of(port: HostPort) -> Element:
    """Return the element to look up to find the range of ports that a single port is in."""
    prefix, key = _place(port)
    return Element(f"{ranges_set(f'{prefix}endpoints')}{port.family}", key, (), "")


def holding_of(port: HostPort, lead: Element) -> HostPort | None:
    """Return the port or range that an element of `endpoints` or its companion shows to be taken, if it overlaps with `port`."""
    _, key = _place(port)
    ports = lead.key[-1]
    first, size = (ports.first, ports.last - ports.first + 1) if isinstance(ports, PortRange) else (int(str(ports)), 1)
    held = HostPort(port.family, port.protocol, first, port.address, size)
    return held if key[:-1] == lead.key[:-1] and held.common_with(port) else None


def port_of(element: Element) -> HostPort:
    """Return the host port that an element is for. ::1 has its alias there."""
    fields = list(element.key)
    address = fields.pop(0) if element.set_name.startswith("host_ip_") else None
    assert address is None or isinstance(address, Address)  # noqa: S101 - for the type checker: so it is laid out
    protocol, ports = fields[:2]
    if isinstance(ports, PortRange):
        return HostPort(element.family, str(protocol), ports.first, address, ports.last - ports.first + 1)
    return HostPort(element.family, str(protocol), int(str(ports)), address)


def elements_of_port(port: HostPort) -> list[Element]:
    """Return all elements to look up for a host port, whoever owns it, except buckets and those of filters."""
    prefix, key = _place(port)
    elements = [lead_of(port), Element(_set_of(f"{prefix}policies", key, port.family), key, (), "")]
    if port.family == 6 and (port.address is None or port.address.is_loopback):
        elements.append(Element(_set_of(f"{prefix}localhost", key, 6), key[-2:], (), ""))
    return elements


def buckets_of(port: HostPort) -> list[Element]:
    """Return all buckets of a host port, to look up."""
    prefix, key = _place(port)
    return [Element(f"{prefix}buckets{port.family}", (*key, number), (), "") for number in range(BUCKETS)]


def endpoint_of(attachment: Attachment, port: HostPort, mapping: PortMapping) -> Fields:
    """Return the container address and port that a host port leads to; for a range, without the port."""
    endpoint = attachment.published_endpoint(port.family)
    assert endpoint is not None  # noqa: S101 - for the type checker: that is what published means
    return (endpoint.address, mapping.container_port) if mapping.size == 1 else (endpoint.address,)


def _place(port: HostPort) -> tuple[str, Fields]:
    """Return the prefix of the sets that a host port is looked up in, and its key."""
    if port.address is None:
        return "", (port.protocol, port.ports)
    address = _ALIAS if port.family == 6 and port.address.is_loopback else port.address
    return "host_ip_", (address, port.protocol, port.ports)


def _set_of(name: str, key: Fields, family: int) -> str:
    """Return the name of the set for a key that ends with a port, or with a range of ports."""
    return f"{ranges_set(name) if isinstance(key[-1], PortRange) else name}{family}"


def policy_of(attachment: Attachment, port: HostPort, mapping: PortMapping) -> Policy:
    """Return the policy of a host port of the attachment."""
    kind = _KINDS[mapping.sharing] + (ON_ONE_ADDRESS if port.address is not None else "")
    interfaces, sources = attachment.inbound.filters_of(mapping)
    filters = ((BY_INTERFACE,) if interfaces else ()) + ((BY_SOURCE,) if sources else ())
    return Policy(kind, attachment.inbound.conditions, filters)


def filter_sets_of(port: HostPort) -> list[str]:
    """Return the names of the sets with the elements of a host port's filters."""
    prefix, _ = _place(port)
    return [f"{prefix}{name}{port.family}" for name in ("interfaces", "sources", "restricted")]


def _plan_filters(attachment: Attachment, port: HostPort, mapping: PortMapping, owner: str) -> Iterator[Element]:
    prefix, key = _place(port)
    key = (*key[:-1], PortRange(port.port, port.last))
    interfaces, sources = attachment.inbound.filters_of(mapping)
    for interface in interfaces:
        yield Element(f"{prefix}interfaces{port.family}", (*key, interface), (), owner)
    if not sources:
        return
    # A container reaches itself. That of a shared port may reach another one, and is a client like any.
    own = [] if mapping.sharing else [e.address for e in attachment.endpoints if e.address.family == port.family]
    own = [address for address in own if not any(subnet.contains(address) for subnet in sources)]
    of_family = [subnet for subnet in sources if subnet.family == port.family]
    for subnet in (*of_family, *(Subnet(address, 8 * len(address.packed)) for address in dict.fromkeys(own))):
        yield Element(f"{prefix}sources{port.family}", (*key, subnet), (), owner)
    yield Element(f"{prefix}restricted{port.family}", key, (), owner)


def _plan_host_port(attachment: Attachment, port: HostPort, mapping: PortMapping) -> Iterator[Element]:
    prefix, key = _place(port)
    owner = SHARED if mapping.sharing else attachment.id.owner
    # Connections to a shared port never reach this element: its policy comes first.
    data = (_NOBODY[port.family], 0) if mapping.sharing else endpoint_of(attachment, port, mapping)
    yield Element(_set_of(f"{prefix}endpoints", key, port.family), key, data, owner)
    policy = policy_of(attachment, port, mapping)
    if not policy.is_ordinary:
        yield Element(_set_of(f"{prefix}policies", key, port.family), key, (policy.chain,), owner, policy)
    if policy.filters:
        yield from _plan_filters(attachment, port, mapping, owner)
    if port.family == 6 and attachment.inbound.serves_ipv6_loopback(mapping):
        yield Element(_set_of(f"{prefix}localhost", key, 6), key[-2:], (), owner)


def _plan_address(attachment: Attachment, endpoint: Endpoint) -> Iterator[Element]:
    address, family, owner = endpoint.address, endpoint.address.family, attachment.id.owner
    is_published = family in attachment.published_families and endpoint is attachment.published_endpoint(family)
    yield Element(f"containers{family}", (address,), (), owner)
    if is_published or family in attachment.outbound.masquerade:
        yield Element(subnets_set(family, endpoint.prefix_length), (address, endpoint.network.first), (), owner)
        if attachment.established_timeout_s != DEFAULT_TIMEOUT_S:
            yield Element(timeout_set(family, attachment.established_timeout_s), (address,), (), owner)
        if attachment.udp_timeouts_s is not None:
            yield Element(udp_timeout_set(family, attachment.udp_timeouts_s), (address,), (), owner)
    if family in attachment.outbound.masquerade:
        yield from _plan_outbound(attachment, address)
    home = Element(f"home{family}", (address, endpoint.host_interface), (), owner)
    closed = list(_plan_return_paths(attachment, endpoint)) if is_published else []
    yield from closed
    if attachment.inbound.isolate:
        yield Element(f"isolated{family}", (address,), (), owner)
    is_closed = attachment.inbound.isolate or any(element.set_name.startswith("loopback_only") for element in closed)
    if is_closed and endpoint.host_interface:  # without one, nobody is on the container's own network
        yield home


def _plan_outbound(attachment: Attachment, address: Address) -> Iterator[Element]:
    outbound, family, owner = attachment.outbound, address.family, attachment.id.owner
    fixed = outbound.snat_addresses.get(family)
    interfaces = outbound.external_interfaces.get(family, ())
    name = "masqueraded" if fixed is None else "fixed"
    for interface in interfaces:
        yield Element(f"{name}_via{family}", (address, interface), (), owner)
    if not interfaces:
        yield Element(f"{name}{family}", (address,), (), owner)
    if fixed is not None:
        yield Element(f"snat{family}", (address,), (fixed,), owner)
    for subnet in outbound.no_masquerade:
        if subnet.family == family:
            yield Element(f"no_masquerade{family}", (Subnet(address, 8 * len(address.packed)), subnet), (), owner)


def _plan_return_paths(attachment: Attachment, endpoint: Endpoint) -> Iterator[Element]:
    """Yield the host ports that lead to the container, and those of its ports that only this host may reach."""
    address, family, owner = endpoint.address, endpoint.address.family, attachment.id.owner
    inbound = attachment.inbound
    mappings = [mapping for mapping in attachment.port_mappings if mapping.serves(family)]
    name = "published" if inbound.snat else "unmasqueraded"
    for protocol, ports in _distinct((m.protocol, m.host_port, m.last_host_port) for m in mappings):
        key = (address, protocol, ports)
        yield Element(_set_of(name, key, family), key, (), owner)
        if inbound.snat and inbound.masquerade_all:
            yield Element(_set_of("masquerade_all", key, family), key, (), owner)
    for protocol, ports in _distinct(loopback_only(mappings)):
        key = (address, protocol, ports)
        yield Element(_set_of("loopback_only", key, family), key, (), owner)


def _distinct(ports: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, int | PortRange]]:
    """Yield the ports or ranges of each protocol, each once, and overlapping ranges as one: the kernel refuses those in a set."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for protocol, first, last in dict.fromkeys(ports):
        if first == last:
            yield protocol, first
        else:
            ranges.setdefault(protocol, []).append((first, last))
    for protocol, of_protocol in ranges.items():
        for first, last in united(of_protocol):
            yield protocol, PortRange(first, last)


def _plan_network(attachment: Attachment, network: Subnet) -> Iterator[Element]:
    outbound, family, owner = attachment.outbound, network.family, attachment.id.owner
    yield Element(f"networks{family}", (network,), (), owner)
    yield Element(subnets_set(family, network.prefix_length), (network.first, network.first), (), owner)
    if attachment.established_timeout_s != DEFAULT_TIMEOUT_S:
        yield Element(network_timeout_set(family, attachment.established_timeout_s), (network,), (), owner)
    if attachment.udp_timeouts_s is not None:
        yield Element(network_udp_timeout_set(family, attachment.udp_timeouts_s), (network,), (), owner)
    fixed = outbound.snat_addresses.get(family)
    interfaces = outbound.external_interfaces.get(family, ())
    name = "network_masqueraded" if fixed is None else "network_fixed"
    for interface in interfaces:
        yield Element(f"{name}_via{family}", (interface, network), (), owner)
    if not interfaces:
        yield Element(f"{name}{family}", (network,), (), owner)
    if fixed is not None:
        yield Element(f"network_snat{family}", (network,), (fixed,), owner)
    for subnet in outbound.no_masquerade:
        if subnet.family == family:
            yield Element(f"no_masquerade{family}", (network, subnet), (), owner)
