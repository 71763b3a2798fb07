"""Rule Manager: what an attachment needs, as elements of the table's sets and maps. No I/O."""

from __future__ import annotations

from .model import Address, Attachment, Endpoint, PortMapping
from .table import SETS, prefix_chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Field = Address | str | int
    Fields = tuple[Field, ...]

NETWORK_MAPS = ("networks4", "networks6")
HOST_PORT_MAPS = ("host_ports4", "host_ports6", "host_ip_ports4", "host_ip_ports6")


class Element:
    """An element of the set `set_name`: `key` and `data` have the fields of its layout, `owner` is its comment.

    flows: how many the kernel has counted: its rules see the first packet of each.
    """

    __slots__ = ("data", "flows", "key", "owner", "set_name")

    def __init__(self, set_name: str, key: Fields, data: Fields, owner: str) -> None:
        self.set_name = set_name
        self.key = key
        self.data = data
        self.owner = owner
        self.flows = 0

    @property
    def identity(self) -> tuple[str, Fields]:
        """What there can be only one of in the kernel."""
        return self.set_name, self.key

    @property
    def is_host_port(self) -> bool:
        """Whether it claims a host port, which two attachments may want; everything else follows an address."""
        return self.set_name in HOST_PORT_MAPS

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
        """The container's address, where this is the element that says whose it is."""
        return self.key[0] if self.set_name in NETWORK_MAPS and isinstance(self.key[0], Address) else None

    def __str__(self) -> str:
        data = f" : {_joined(self.data)}" if self.data else ""
        return f"{self.set_name} {{ {_joined(self.key)}{data} }}"


def _joined(fields: Fields) -> str:
    return " . ".join(str(field) for field in fields)


def plan_rules(attachment: Attachment) -> list[Element]:
    """Return the elements that give an attachment its way out and its way in, in a fixed order."""
    owner = attachment.id.owner
    placed = [
        *_plan_outbound(attachment),
        *_plan_inbound(attachment),
    ]
    elements = {(name, key): Element(name, key, data, owner) for name, key, data in placed}
    return list(elements.values())


def _plan_outbound(attachment: Attachment) -> Iterator[tuple[str, Fields, Fields]]:
    outbound = attachment.outbound
    for endpoint in attachment.endpoints:
        address, family = endpoint.address, endpoint.address.family
        if family not in outbound.masquerade:
            continue
        yield from _plan_own_subnet(endpoint)
        fixed = outbound.snat_addresses.get(family)
        kind, data = ("masquerade", ()) if fixed is None else ("snat", (fixed,))
        interfaces = outbound.external_interfaces.get(family, ())
        for interface in interfaces:
            yield f"{kind}_via{family}", (address, interface), data
        if not interfaces:
            yield f"{kind}{family}", (address,), data


def _plan_own_subnet(endpoint: Endpoint) -> Iterator[tuple[str, Fields, Fields]]:
    address, family = endpoint.address, endpoint.address.family
    yield f"networks{family}", (address,), (prefix_chain(family, endpoint.prefix_length),)
    yield f"subnets{family}", (address, Address(family, endpoint.network)), ()


def _plan_inbound(attachment: Attachment) -> Iterator[tuple[str, Fields, Fields]]:
    for family in (4, 6):
        endpoint = attachment.published_endpoint(family)
        mappings = [mapping for mapping in attachment.port_mappings if mapping.serves(family)]
        if endpoint is None or not mappings:
            continue
        yield from _plan_own_subnet(endpoint)
        for mapping in mappings:
            yield _plan_host_port(mapping, endpoint)
            yield from _plan_return_path(attachment, mapping, endpoint)
        yield from _plan_loopback_only(mappings, endpoint)


def claims_of(mapping: PortMapping, families: set[int]) -> list[Element]:
    """Return the elements that claim the host port, to be looked for: they lead nowhere."""
    host_ip = mapping.specific_host_ip
    kind = "host_ports" if host_ip is None else "host_ip_ports"
    key: Fields = (
        (mapping.protocol, mapping.host_port) if host_ip is None else (host_ip, mapping.protocol, mapping.host_port)
    )
    return [Element(f"{kind}{family}", key, (), "") for family in sorted(families) if mapping.serves(family)]


def _plan_host_port(mapping: PortMapping, endpoint: Endpoint) -> tuple[str, Fields, Fields]:
    family = endpoint.address.family
    data = (endpoint.address, mapping.container_port)
    host_ip = mapping.specific_host_ip
    if host_ip is None:
        return f"host_ports{family}", (mapping.protocol, mapping.host_port), data
    return f"host_ip_ports{family}", (host_ip, mapping.protocol, mapping.host_port), data


def _plan_return_path(
    attachment: Attachment, mapping: PortMapping, endpoint: Endpoint
) -> Iterator[tuple[str, Fields, Fields]]:
    if attachment.inbound.snat:
        kind = "masquerade_all" if attachment.inbound.masquerade_all else "published"
        yield f"{kind}{endpoint.address.family}", (endpoint.address, mapping.protocol, mapping.host_port), ()


def _plan_loopback_only(mappings: list[PortMapping], endpoint: Endpoint) -> Iterator[tuple[str, Fields, Fields]]:
    address, family = endpoint.address, endpoint.address.family
    open_ports = {(m.protocol, m.container_port) for m in mappings if not m.on_loopback_only}
    closed = {(m.protocol, m.container_port): m for m in mappings if m.on_loopback_only}
    for protocol, port in closed:
        if (protocol, port) not in open_ports:
            yield f"loopback_only{family}", (address, protocol, port), ()
            yield f"home{family}", (address, endpoint.host_interface), ()


def plan_together(attachments: Iterable[Attachment]) -> list[Element]:
    """Return the elements of all attachments, at most one for a key, as the kernel would hold them.

    An address belongs to whoever was given it last. A host port stays with the container that holds it when
    that container wants it on another network too, and else goes to the newer attachment, which could only
    be added because the older one's network namespace was gone.
    """
    placed: dict[tuple[str, Fields], tuple[Element, str]] = {}
    for attachment in sorted(attachments, key=_age):
        container = attachment.id.container_id
        for element in plan_rules(attachment):
            held = placed.get(element.identity)
            if held is None or not element.is_host_port or held[1] != container:
                placed[element.identity] = (element, container)
    return [element for element, _ in placed.values()]


def _age(attachment: Attachment) -> float:
    return attachment.created_at
