"""Rule Manager: what an attachment needs, as elements of the table's sets and maps. No I/O."""

from __future__ import annotations

from ...model.addresses import Address, Endpoint
from ...model.attachments import BY_CLIENT, EXCLUSIVE, SPREAD, Attachment, PortMapping
from .layout import (
    FIXED_SOURCE,
    FIXED_SOURCE_OF_NETWORK,
    FIXED_SOURCE_VIA,
    IPV6_LOCALHOST_ALIAS,
    MASQUERADED,
    ON_ONE_ADDRESS,
    ORDINARY_LENGTHS,
    PUBLISH,
    SETS,
    SHARED,
    SPREAD_BY_CLIENT,
    SPREAD_EVENLY,
    Policy,
    prefix_chain,
    subnets_set,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.addresses import Subnet

    Field = Address | Subnet | str | int
    Fields = tuple[Field, ...]

_OF_ADDRESSES = ("subnets", "masqueraded", "outbound")  # how the sets begin whose key begins with a container's address
_HOST_PORT_NAMES = (
    "host_ports",
    "host_ip_ports",
    "port_policies",
    "host_ip_port_policies",
    "endpoints",
    "host_ip_endpoints",
)
_HOST_PORT_SETS = tuple(f"{name}{f}" for name in _HOST_PORT_NAMES for f in (4, 6))
_KINDS = {EXCLUSIVE: PUBLISH, SPREAD: SPREAD_EVENLY, BY_CLIENT: SPREAD_BY_CLIENT}
_ALIAS = Address.parse(IPV6_LOCALHOST_ALIAS)


class Element:
    """An element of the set `set_name`: `key` and `data` have the fields of its layout, `owner` is its comment.

    policy: where it leads to a chain, what that is.
    flows: how many the kernel has counted: its rules see the first packet of each.
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
    def identity(self) -> tuple[str, Fields]:
        """What there can be only one of in the kernel."""
        return self.set_name, self.key

    @property
    def is_host_port(self) -> bool:
        """Whether it claims a host port, which two attachments may want; everything else follows an address."""
        return self.set_name in _HOST_PORT_SETS

    def is_same(self, other: Element) -> bool:
        """Whether both are the same to a packet, and whose they are."""
        return (self.identity, self.data, self.owner) == (other.identity, other.data, other.owner)

    @property
    def family(self) -> int:
        """4 or 6, which ends the name of its set."""
        return int(self.set_name[-1])

    @property
    def is_counted(self) -> bool:
        """Whether the kernel counts its flows."""
        return SETS[self.set_name].counter

    @property
    def address(self) -> Address | None:
        """The container's address, where this is one of the elements that say whose it is."""
        first = self.key[0]
        return first if self.set_name.startswith(_OF_ADDRESSES) and isinstance(first, Address) else None

    def __str__(self) -> str:
        data = f" : {_joined(self.data)}" if self.data else ""
        return f"{self.set_name} {{ {_joined(self.key)}{data} }}"


def _joined(fields: Fields) -> str:
    return " . ".join(str(field) for field in fields)


class Share:
    """A container's part in a shared port: any of the elements of `set_name` that begin with `key` may lead to it."""

    __slots__ = ("data", "key", "owner", "set_name")

    def __init__(self, set_name: str, key: Fields, data: Fields, owner: str) -> None:
        self.set_name = set_name
        self.key = key
        self.data = data
        self.owner = owner

    def __str__(self) -> str:
        return f"{self.set_name} {{ {_joined(self.key)} . * }}"

    @property
    def identity(self) -> tuple[str, Fields]:
        """The port that is shared."""
        return self.set_name, self.key

    @property
    def claim(self) -> tuple[str, Fields]:
        """The identity of the element that says so."""
        return self.set_name.replace(
            "slots", "ports" if self.set_name.startswith("host_ip") else "host_ports"
        ), self.key

    def elements_of_the_port(self) -> list[Element]:
        """Return the elements that all who share the port have together, to be looked for: they lead nowhere."""
        claim, key = self.claim
        policies = self.set_name.replace("slots", "port_policies")
        elements = [Element(claim, key, (), SHARED), Element(policies, key, (), SHARED)]
        if self.set_name.endswith("6"):
            elements.append(Element("localhost6", key[-2:], (), SHARED))
        return elements

    def slot(self, number: int) -> Element:
        """Return the element that deals this slot to the container."""
        return self.slot_for(number, self.owner, self.data)

    def slot_for(self, number: int, owner: str, data: Fields) -> Element:
        """Return the element that deals this slot to another of those who share the port."""
        return Element(self.set_name, (*self.key, number), data, owner)


def plan_rules(attachment: Attachment) -> list[Element]:
    """Return the elements that give an attachment its way out and its way in, in a fixed order.

    Those of a shared port's slots depend on who else shares it, see shares.py.
    """
    if attachment.is_network:
        return list(_plan_whole_network(attachment))
    planned = [*_plan_outbound(attachment), *_plan_inbound(attachment), *_plan_isolation(attachment)]
    return list({element.identity: element for element in planned}.values())


def plan_shares(attachment: Attachment) -> list[Share]:
    """Return the attachment's parts in shared ports."""
    shares = []
    for family in (4, 6):
        endpoint = attachment.published_endpoint(family)
        for mapping in attachment.port_mappings:
            if endpoint is not None and mapping.sharing and mapping.serves(family):
                prefix, key = _host_port(mapping)
                data = (endpoint.address, mapping.container_port)
                shares.append(Share(f"{prefix}slots{family}", key, data, attachment.id.owner))
    return shares


def _plan_outbound(attachment: Attachment) -> Iterator[Element]:
    outbound, owner = attachment.outbound, attachment.id.owner
    for endpoint in attachment.endpoints:
        address, family = endpoint.address, endpoint.address.family
        if family not in outbound.masquerade:
            continue
        yield from _plan_own_subnet(endpoint, owner)
        fixed = outbound.snat_addresses.get(family)
        interfaces = outbound.external_interfaces.get(family, ())
        keys: list[tuple[str, Fields]] = [("_via", (address, name)) for name in interfaces]
        for suffix, key in keys or [("", (address,))]:
            kind = MASQUERADED if fixed is None else FIXED_SOURCE_VIA if suffix else FIXED_SOURCE
            policy = Policy(kind, attachment.established_timeout_s)
            if policy.chain == MASQUERADED:
                yield Element(f"masqueraded{suffix}{family}", key, (), owner)
            else:
                yield Element(f"outbound{suffix}{family}", key, (policy.chain,), owner, policy)
            if fixed is not None:
                yield Element(f"snat{suffix}{family}", key, (fixed,), owner)


def _plan_whole_network(attachment: Attachment) -> Iterator[Element]:
    outbound, owner = attachment.outbound, attachment.id.owner
    for endpoint in attachment.endpoints:
        network, family = endpoint.network, endpoint.address.family
        if family not in outbound.masquerade:
            continue
        yield Element(f"cidr_networks{family}", (network,), (prefix_chain(family, network.prefix_length),), owner)
        yield Element(f"subnets{family}", (network.first, network.first), (), owner)
        interfaces = outbound.external_interfaces.get(family, ())
        conditions: dict[int, tuple[str, ...]] = {}
        if interfaces:
            conditions[family] = ("oifname", "{", ", ".join(f'"{name}"' for name in interfaces), "}")
        fixed = outbound.snat_addresses.get(family)
        kind = MASQUERADED if fixed is None else FIXED_SOURCE_OF_NETWORK
        policy = Policy(kind, attachment.established_timeout_s, conditions)
        yield Element(f"cidr_outbound{family}", (network,), (policy.chain,), owner, policy)
        if fixed is not None:
            yield Element(f"cidr_snat{family}", (network,), (fixed,), owner)


def _plan_own_subnet(endpoint: Endpoint, owner: str) -> Iterator[Element]:
    address, family = endpoint.address, endpoint.address.family
    length = endpoint.prefix_length
    if length not in ORDINARY_LENGTHS[family]:
        yield Element(f"networks{family}", (address,), (prefix_chain(family, length),), owner)
    yield Element(subnets_set(family, length), (address, endpoint.network.first), (), owner)


def _plan_inbound(attachment: Attachment) -> Iterator[Element]:
    owner = attachment.id.owner
    for family in sorted(attachment.published_families):
        endpoint = attachment.published_endpoint(family)
        assert endpoint is not None  # noqa: S101 - for the type checker: that is what published means
        yield from _plan_own_subnet(endpoint, owner)
        mappings = [mapping for mapping in attachment.port_mappings if mapping.serves(family)]
        for mapping in mappings:
            yield from _plan_host_port(attachment, mapping, endpoint)
            yield from _plan_return_path(attachment, mapping, endpoint)
        yield from _plan_loopback_only(mappings, endpoint, owner)


def _host_port(mapping: PortMapping) -> tuple[str, Fields]:
    """Return how the sets' names begin that a host port is looked up in, and its key."""
    host_ip = mapping.specific_host_ip
    if host_ip is None:
        return "", (mapping.protocol, mapping.host_port)
    if host_ip.family == 6 and host_ip.is_loopback:
        host_ip = _ALIAS
    return "host_ip_", (host_ip, mapping.protocol, mapping.host_port)


def _ports(prefix: str) -> str:
    """Name the set of the host ports that are held."""
    return "host_ip_ports" if prefix else "host_ports"


def claims_of(mapping: PortMapping, families: set[int]) -> list[Element]:
    """Return the elements that claim the host port, to be looked for: they lead nowhere."""
    prefix, key = _host_port(mapping)
    name = _ports(prefix)
    return [Element(f"{name}{family}", key, (), "") for family in sorted(families) if mapping.serves(family)]


def _plan_host_port(attachment: Attachment, mapping: PortMapping, endpoint: Endpoint) -> Iterator[Element]:
    family, owner = endpoint.address.family, attachment.id.owner
    prefix, key = _host_port(mapping)
    kind = _KINDS[mapping.sharing] + (ON_ONE_ADDRESS if prefix else "")
    policy = Policy(kind, attachment.established_timeout_s, attachment.inbound.conditions)
    holder = SHARED if mapping.sharing else owner
    yield Element(f"{_ports(prefix)}{family}", key, (), holder)
    if policy.chain not in (PUBLISH, PUBLISH + ON_ONE_ADDRESS):
        yield Element(f"{prefix}port_policies{family}", key, (policy.chain,), holder, policy)
    if not mapping.sharing:
        yield Element(f"{prefix}endpoints{family}", key, (endpoint.address, mapping.container_port), owner)
    if attachment.inbound.ipv6_localhost and family == 6 and mapping.is_reached_from_ipv6_loopback:
        yield Element("localhost6", key[-2:], (), holder)


def _plan_return_path(attachment: Attachment, mapping: PortMapping, endpoint: Endpoint) -> Iterator[Element]:
    if attachment.inbound.snat:
        kind = "masquerade_all" if attachment.inbound.masquerade_all else "published"
        key = (endpoint.address, mapping.protocol, mapping.host_port)
        yield Element(f"{kind}{endpoint.address.family}", key, (), attachment.id.owner)


def _plan_loopback_only(mappings: list[PortMapping], endpoint: Endpoint, owner: str) -> Iterator[Element]:
    address, family = endpoint.address, endpoint.address.family
    open_ports = {(m.protocol, m.container_port) for m in mappings if not m.on_loopback_only}
    closed = {(m.protocol, m.container_port): m for m in mappings if m.on_loopback_only}
    for protocol, port in closed:
        if (protocol, port) not in open_ports:
            yield Element(f"loopback_only{family}", (address, protocol, port), (), owner)
            yield _home(endpoint, owner)


def _plan_isolation(attachment: Attachment) -> Iterator[Element]:
    owner = attachment.id.owner
    for endpoint in attachment.endpoints if attachment.inbound.isolate else ():
        yield Element(f"isolated{endpoint.address.family}", (endpoint.address,), (), owner)
        yield _home(endpoint, owner)


def _home(endpoint: Endpoint, owner: str) -> Element:
    """Return the element that says by which interface the container's neighbours come."""
    return Element(f"home{endpoint.address.family}", (endpoint.address, endpoint.host_interface), (), owner)
