"""The objects of the NAT module: small classes without I/O.

An attachment is one interface of one container on one network, as CNI identifies it. Its record in the
state directory is `Attachment.as_record()`.

A pod's start waits for this module.
"""

from __future__ import annotations

from .addresses import Address, Endpoint, Subnet
from .units import HostPort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

# The identity (device and inode) of something that has none, or that an older version did not record.
NOWHERE = (0, 0)

# Whether a recorded network namespace exists, see kernel.namespaces.
ALIVE = "alive"
GONE = "gone"
CANNOT_TELL = "cannot tell"

NFTABLES = "nftables"
IPTABLES = "iptables"

LOCAL = "lo"  # among interfaces to publish on: clients on this host

EXCLUSIVE = ""
SPREAD = "spread"
BY_CLIENT = "client"

# libnftables refuses a comment of more than 128 bytes: the owner, the realm of a state directory, the final NUL.
OWNER_MAX_BYTES = 120
_DIGEST_BYTES = 8


class PortMapping:
    """A host port that leads to a container port, or a range of host ports that each lead to the same port of the container.

    host_ip: None is any local address of both families.
    host_port: 0 until one is allocated; of a range, the first one, which is the container port too.
    size: the number of host ports.
    allocated: whether the host port was chosen by us.
    sharing: EXCLUSIVE, or how new connections are spread over the containers that publish the port: SPREAD, BY_CLIENT.
    allow_from, publish_on: as in Inbound, in place of these if it names any.
    created_at: seconds since the epoch; 0 if it came with its attachment.
    live: whether an operator published it on the running container, see nat/live.py.
    """

    __slots__ = (
        "allocated",
        "allow_from",
        "container_port",
        "created_at",
        "host_ip",
        "host_port",
        "live",
        "protocol",
        "publish_on",
        "sharing",
        "size",
    )

    def __init__(  # noqa: PLR0913 - a record has as many fields
        self,
        host_ip: Address | None,
        host_port: int,
        protocol: str,
        container_port: int,
        *,
        allocated: bool = False,
        sharing: str = EXCLUSIVE,
        created_at: float = 0,
        size: int = 1,
        live: bool = False,
        allow_from: tuple[Subnet, ...] = (),
        publish_on: tuple[str, ...] = (),
    ) -> None:
        self.host_ip = host_ip
        self.host_port = host_port
        self.protocol = protocol
        self.container_port = container_port
        self.allocated = allocated
        self.sharing = sharing
        self.created_at = created_at
        self.size = size
        self.live = live
        self.allow_from = allow_from
        self.publish_on = publish_on

    def copy(self) -> PortMapping:
        """Return another mapping with the same fields."""
        return _mapping_of_record(_mapping_record(self))

    @property
    def last_host_port(self) -> int:
        """The last host port, which is the only one unless the mapping is a range."""
        return self.host_port + self.size - 1

    @property
    def host_range(self) -> str:
        """The host port, or the range, as people write it: 8080, 20000-47999."""
        return str(self.host_port) if self.size == 1 else f"{self.host_port}-{self.last_host_port}"

    @property
    def container_range(self) -> str:
        """The container port, or the range, as people write it."""
        return str(self.container_port) if self.size == 1 else self.host_range

    def serves(self, family: int) -> bool:
        """Whether the mapping is for traffic of this family."""
        return self.host_ip is None or self.host_ip.family == family

    @property
    def filters(self) -> tuple[tuple[str, ...], tuple[Subnet, ...]]:
        """The interfaces and the sources that it names."""
        return self.publish_on, self.allow_from

    @property
    def asked_for(self) -> tuple[str, int, Address | None]:
        """What is published, and on which address, without the host port."""
        return self.protocol, self.container_port, self.host_ip

    def is_same_port(self, other: PortMapping, families: set[int]) -> bool:
        """Whether both have a port of the host in common, in one of these families."""
        if self.protocol != other.protocol:
            return False
        if self.last_host_port < other.host_port or other.last_host_port < self.host_port:
            return False
        return self.specific_host_ip == other.specific_host_ip and any(
            self.serves(family) and other.serves(family) for family in families
        )

    @property
    def specific_host_ip(self) -> Address | None:
        """The one host address that it is published on, None when it is any."""
        return None if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip

    @property
    def on_loopback_only(self) -> bool:
        """Whether only the host itself may use it."""
        host_ip = self.specific_host_ip
        return host_ip is not None and host_ip.is_loopback

    @property
    def is_reached_from_loopback(self) -> bool:
        """Whether 127.0.0.0/8 is among the addresses that it is published on."""
        host_ip = self.specific_host_ip
        return self.serves(4) and (host_ip is None or host_ip.is_loopback)

    @property
    def is_reached_from_ipv6_loopback(self) -> bool:
        """Whether ::1 is among the addresses that it is published on, where that is asked for."""
        host_ip = self.specific_host_ip
        return self.serves(6) and (host_ip is None or host_ip.is_loopback)

    def __str__(self) -> str:
        published = f"{self.host_range}->{self.container_range}/{self.protocol}"
        if self.host_ip is None:
            return published
        return f"[{self.host_ip}]:{published}" if self.host_ip.family == 6 else f"{self.host_ip}:{published}"


class AttachmentId:
    """The identity of an attachment in CNI. `owner` is its name in the comments of the kernel's elements."""

    __slots__ = ("container_id", "interface", "network")

    def __init__(self, network: str, container_id: str, interface: str) -> None:
        self.network = network
        self.container_id = container_id
        self.interface = interface

    @property
    def owner(self) -> str:
        """NETWORK/CONTAINER/INTERFACE, abbreviated with a digest if a comment would be too long."""
        owner = f"{self.network}/{self.container_id}/{self.interface}".replace('"', "%22")
        encoded = owner.encode()
        if len(encoded) <= OWNER_MAX_BYTES:
            return owner
        from _blake2 import blake2b  # only for names that no known runtime makes

        digest = blake2b(encoded, digest_size=_DIGEST_BYTES).hexdigest()
        kept = encoded[: OWNER_MAX_BYTES - 2 * _DIGEST_BYTES - 1].decode(errors="ignore")
        return f"{kept}~{digest}"

    @classmethod
    def of_owner(cls, owner: str) -> AttachmentId | None:
        """Return the attachment that rules name like this; None for an abbreviated name, or if it is not an attachment."""
        network, _, rest = owner.partition("/")
        container_id, _, interface = rest.partition("/")
        return cls(network, container_id, interface) if interface and "~" not in owner and ":" not in owner else None

    def is_sibling_of(self, other: AttachmentId) -> bool:
        """Whether it is another attachment of the same container."""
        return self.container_id == other.container_id and self != other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttachmentId) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    @property
    def _fields(self) -> tuple[str, str, str]:
        return self.network, self.container_id, self.interface

    def __str__(self) -> str:
        return f"container {self.container_id} ({self.interface} on network {self.network})"


class Outbound:
    """Outbound NAT.

    masquerade: the families (4, 6) that get another source address outside: the outgoing interface's, or a fixed one.
    external_interfaces: by family, the interfaces that this holds for; an empty tuple is any.
    snat_addresses: by family, the fixed source address.
    no_masquerade: destinations that are never masqueraded.
    """

    __slots__ = ("external_interfaces", "masquerade", "no_masquerade", "snat_addresses")

    def __init__(
        self,
        masquerade: tuple[int, ...] = (),
        external_interfaces: dict[int, tuple[str, ...]] | None = None,
        snat_addresses: dict[int, Address] | None = None,
        no_masquerade: tuple[Subnet, ...] = (),
    ) -> None:
        self.masquerade = masquerade
        self.no_masquerade = no_masquerade
        self.external_interfaces = external_interfaces or {}
        self.snat_addresses = snat_addresses or {}


class Inbound:
    """How published ports are reached.

    snat: whether 127.0.0.1 and containers on the same network are masqueraded, so that replies return.
    masquerade_all: whether every client is.
    ipv6_localhost: whether ports are also published on ::1.
    isolate: whether other networks reach the container only through published ports.
    conditions: by family, what a connection must match as well: words in the backend's own syntax.
    allow_from: the clients that may reach published ports, as networks that do not overlap; empty for all.
    publish_on: the interfaces by which connections come in, LOCAL for those of this host; empty for all.
    mark_bit: with iptables, the bit of the packet mark that says "to be masqueraded"; None uses no mark.
    set_mark_chain: with iptables, another program's chain that marks what it masquerades; empty is none.
    """

    __slots__ = (
        "allow_from",
        "conditions",
        "ipv6_localhost",
        "isolate",
        "mark_bit",
        "masquerade_all",
        "publish_on",
        "set_mark_chain",
        "snat",
    )

    def __init__(  # noqa: PLR0913 - a record has as many fields
        self,
        *,
        snat: bool = True,
        masquerade_all: bool = False,
        ipv6_localhost: bool = False,
        isolate: bool = False,
        conditions: dict[int, tuple[str, ...]] | None = None,
        allow_from: tuple[Subnet, ...] = (),
        publish_on: tuple[str, ...] = (),
        mark_bit: int | None = None,
        set_mark_chain: str = "",
    ) -> None:
        self.snat = snat
        self.masquerade_all = masquerade_all
        self.ipv6_localhost = ipv6_localhost
        self.isolate = isolate
        self.conditions = conditions or {}
        self.allow_from = allow_from
        self.publish_on = publish_on
        self.mark_bit = mark_bit
        self.set_mark_chain = set_mark_chain

    def filters_of(self, mapping: PortMapping) -> tuple[tuple[str, ...], tuple[Subnet, ...]]:
        """Return the interfaces and the sources that reach a mapping: its own, or else those of its network; empty for all."""
        return mapping.publish_on or self.publish_on, mapping.allow_from or self.allow_from

    def serves_ipv6_loopback(self, mapping: PortMapping) -> bool:
        """Whether a mapping is published on ::1."""
        interfaces, _ = self.filters_of(mapping)
        return self.ipv6_localhost and mapping.is_reached_from_ipv6_loopback and (not interfaces or LOCAL in interfaces)


class Attachment:
    """Everything that determines the rules of an attachment.

    backend: the name of the Backend Provider that makes them.
    netns: the path of the container's network namespace; empty for an attachment of the Python API.
    netns_identity: its device and inode at ADD; a path may come to name another one.
    netns_directory: device and inode of the directory that the path is in, see kernel.namespaces.
    host_netns: device and inode of the network namespace that the rules are in.
    boot_id: the boot of the kernel that they were made in, empty where that was not recorded.
    established_timeout_s: how long an established TCP flow that the rules translate may be idle.
    udp_timeouts_s: the same for UDP: without a reply or in its first two seconds, and later; None for the kernel's own.
    created_at: seconds since the epoch, for people. sequence: orders the records of a state directory.
    is_network: whether it stands for all addresses of its endpoints' networks; CNI knows no such thing.
    had_earlier: whether it has replaced earlier rules of its own, whose flows the counters do not know.
    waits_for: the host ports, as `HostPort.name`, that a sibling had when the attachment was last added. It gets them when that one gives
    them up.
    replaces: what it was before, for as long as the kernel may have rules of that; the latest first.
    withdrawn: mappings that an operator took back from the running container, see nat/live.py. The runtime still asks for them.
    """

    __slots__ = (
        "backend",
        "boot_id",
        "created_at",
        "endpoints",
        "established_timeout_s",
        "had_earlier",
        "host_netns",
        "id",
        "inbound",
        "is_network",
        "netns",
        "netns_directory",
        "netns_identity",
        "outbound",
        "port_mappings",
        "replaces",
        "sequence",
        "udp_timeouts_s",
        "waits_for",
        "withdrawn",
    )

    def __init__(  # noqa: PLR0913 - a record has as many fields
        self,
        attachment_id: AttachmentId,
        *,
        backend: str,
        netns: str,
        netns_identity: tuple[int, int],
        endpoints: list[Endpoint],
        port_mappings: list[PortMapping],
        outbound: Outbound,
        inbound: Inbound,
        established_timeout_s: int,
        udp_timeouts_s: tuple[int, int] | None = None,
        created_at: float,
        is_network: bool = False,
        netns_directory: tuple[int, int] = NOWHERE,
        host_netns: tuple[int, int] = NOWHERE,
        sequence: int = 0,
        had_earlier: bool = False,
        waits_for: tuple[str, ...] = (),
    ) -> None:
        self.id = attachment_id
        self.is_network = is_network
        self.backend = backend
        self.netns = netns
        self.netns_identity = netns_identity
        self.netns_directory = netns_directory
        self.host_netns = host_netns
        self.boot_id = ""
        self.endpoints = endpoints
        self.port_mappings = port_mappings
        self.outbound = outbound
        self.inbound = inbound
        self.established_timeout_s = established_timeout_s
        self.udp_timeouts_s = udp_timeouts_s
        self.created_at = created_at
        self.sequence = sequence
        self.had_earlier = had_earlier
        self.waits_for = waits_for
        self.replaces: list[Attachment] = []
        self.withdrawn: list[PortMapping] = []

    @property
    def generations(self) -> list[Attachment]:
        """The attachment itself, and its earlier generations."""
        return [self, *self.replaces]

    def published_endpoint(self, family: int) -> Endpoint | None:
        """Return the container's address that host ports of this family lead to: its first one."""
        for endpoint in self.endpoints:
            if endpoint.address.family == family:
                return endpoint
        return None

    @property
    def published_families(self) -> set[int]:
        """The families in which host ports lead to the container."""
        return {f for f in (4, 6) if self.published_endpoint(f) and any(m.serves(f) for m in self.port_mappings)}

    @property
    def host_ports(self) -> dict[HostPort, PortMapping]:
        """The host ports that lead to the container, a family at a time."""
        ports = {}
        for family in sorted(self.published_families):
            for mapping in self.port_mappings:
                if mapping.serves(family):
                    port = HostPort(family, mapping.protocol, mapping.host_port, mapping.specific_host_ip, mapping.size)
                    ports[port] = mapping
        return ports

    @property
    def address_units(self) -> list[Address | Subnet]:
        """The addresses that its rules are about; for a network, its CIDRs."""
        if self.is_network:
            return [e.network for e in self.endpoints if e.address.family in self.outbound.masquerade]
        published = {endpoint for f in self.published_families if (endpoint := self.published_endpoint(f))}
        return [
            endpoint.address
            for endpoint in self.endpoints
            if self.inbound.isolate or endpoint in published or endpoint.address.family in self.outbound.masquerade
        ]

    @property
    def families(self) -> set[int]:
        """The families that it has rules in."""
        isolated = {endpoint.address.family for endpoint in self.endpoints} if self.inbound.isolate else ()
        return {*self.outbound.masquerade, *self.published_families, *isolated}

    @property
    def needs_rules(self) -> bool:
        """Whether there is anything to install."""
        return bool(self.families)

    @property
    def has_live_changes(self) -> bool:
        """Whether an operator published or withdrew ports while the container ran."""
        return bool(self.withdrawn) or any(mapping.live for mapping in self.port_mappings)

    @property
    def wishes(self) -> dict[str, Any]:
        """Everything that determines its rules, for comparison. A port that was taken back and published again is not where it was."""
        wishes = {key: value for key, value in self.as_record().items() if key not in _CIRCUMSTANCES}
        wishes["portMappings"].sort(key=_place)
        return wishes

    def as_record(self) -> dict[str, Any]:
        """Return the content of its record in the state directory."""
        return {
            "network": self.id.network,
            "containerId": self.id.container_id,
            "interface": self.id.interface,
            "backend": self.backend,
            "netns": self.netns,
            "netnsIdentity": list(self.netns_identity),
            "netnsDirectory": list(self.netns_directory),
            "hostNetns": list(self.host_netns),
            "createdAt": self.created_at,
            "sequence": self.sequence,
            "hadEarlier": self.had_earlier,
            "waitsFor": list(self.waits_for),
            "endpoints": [{"address": str(e), "hostInterface": e.host_interface} for e in self.endpoints],
            "portMappings": [_mapping_record(mapping) for mapping in self.port_mappings],
            "outbound": _outbound_record(self.outbound),
            "inbound": _inbound_record(self.inbound),
            "establishedTimeoutS": self.established_timeout_s,
            "isNetwork": self.is_network,
            **({"withdrawn": [_mapping_record(mapping) for mapping in self.withdrawn]} if self.withdrawn else {}),
            **({"udpTimeoutsS": list(self.udp_timeouts_s)} if self.udp_timeouts_s else {}),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Attachment:
        """Read a record. KeyError, TypeError or ValueError if it is damaged."""
        attachment = cls(
            AttachmentId(record["network"], record["containerId"], record["interface"]),
            backend=record["backend"],
            netns=record["netns"],
            netns_identity=_pair_of_record(record["netnsIdentity"]),
            netns_directory=_pair_of_record(record["netnsDirectory"]),
            host_netns=_pair_of_record(record["hostNetns"]),
            endpoints=[Endpoint.parse(e["address"]) for e in record["endpoints"]],
            port_mappings=[_mapping_of_record(mapping) for mapping in record["portMappings"]],
            outbound=_outbound_of_record(record["outbound"]),
            inbound=_inbound_of_record(record["inbound"]),
            established_timeout_s=record["establishedTimeoutS"],
            udp_timeouts_s=_pair_of_record(record["udpTimeoutsS"]) if "udpTimeoutsS" in record else None,
            created_at=record["createdAt"],
            sequence=record["sequence"],
            had_earlier=record["hadEarlier"],
            waits_for=tuple(record["waitsFor"]),
            is_network=record["isNetwork"],
        )
        for endpoint, written in zip(attachment.endpoints, record["endpoints"]):
            endpoint.host_interface = written["hostInterface"]
        if "withdrawn" in record:
            attachment.withdrawn = [_mapping_of_record(mapping) for mapping in record["withdrawn"]]
        return attachment


# Fields that do not determine rules.
_CIRCUMSTANCES = (
    "netns",
    "netnsIdentity",
    "netnsDirectory",
    "hostNetns",
    "createdAt",
    "sequence",
    "hadEarlier",
    "waitsFor",
    "withdrawn",
)


def _place(mapping: dict[str, Any]) -> tuple[str, int, str, int]:
    return mapping["protocol"], mapping["hostPort"], mapping["hostIP"], mapping["containerPort"]


def _pair_of_record(pair: list[int]) -> tuple[int, int]:
    first, second = pair
    return first, second


def _outbound_record(outbound: Outbound) -> dict[str, Any]:
    return {
        "masquerade": list(outbound.masquerade),
        "externalInterfaces": {str(f): list(names) for f, names in outbound.external_interfaces.items()},
        "snatAddresses": {str(f): str(address) for f, address in outbound.snat_addresses.items()},
        "noMasquerade": [str(subnet) for subnet in outbound.no_masquerade],
    }


def _outbound_of_record(record: dict[str, Any]) -> Outbound:
    return Outbound(
        tuple(record["masquerade"]),
        {int(f): tuple(names) for f, names in record["externalInterfaces"].items()},
        {int(f): Address.parse(text) for f, text in record["snatAddresses"].items()},
        tuple(map(Subnet.parse, record["noMasquerade"])),
    )


def _inbound_record(inbound: Inbound) -> dict[str, Any]:
    return {
        "snat": inbound.snat,
        "masqueradeAll": inbound.masquerade_all,
        "ipv6Localhost": inbound.ipv6_localhost,
        "isolate": inbound.isolate,
        "conditions": {str(f): list(words) for f, words in inbound.conditions.items()},
        **_filters_record(inbound.allow_from, inbound.publish_on),
        "markBit": inbound.mark_bit,
        "setMarkChain": inbound.set_mark_chain,
    }


def _inbound_of_record(record: dict[str, Any]) -> Inbound:
    return Inbound(
        snat=record["snat"],
        masquerade_all=record["masqueradeAll"],
        ipv6_localhost=record["ipv6Localhost"],
        isolate=record["isolate"],
        conditions={int(f): tuple(words) for f, words in record["conditions"].items()},
        allow_from=tuple(map(Subnet.parse, record.get("allowFrom", ()))),
        publish_on=tuple(record.get("publishOn", ())),
        mark_bit=record["markBit"],
        set_mark_chain=record["setMarkChain"],
    )


def _filters_record(allow_from: tuple[Subnet, ...], publish_on: tuple[str, ...]) -> dict[str, Any]:
    record: dict[str, Any] = {"allowFrom": [str(subnet) for subnet in allow_from]} if allow_from else {}
    return {**record, "publishOn": list(publish_on)} if publish_on else record


def _mapping_record(mapping: PortMapping) -> dict[str, Any]:
    record: dict[str, Any] = {
        "hostIP": "" if mapping.host_ip is None else str(mapping.host_ip),
        "hostPort": mapping.host_port,
        "protocol": mapping.protocol,
        "containerPort": mapping.container_port,
        "allocated": mapping.allocated,
        "sharing": mapping.sharing,
        **({"range": mapping.host_range} if mapping.size > 1 else {}),
        **({"live": True} if mapping.live else {}),
        **_filters_record(mapping.allow_from, mapping.publish_on),
    }
    if mapping.created_at:
        record["createdAt"] = mapping.created_at
    return record


def _mapping_of_record(record: dict[str, Any]) -> PortMapping:
    last = int(record["range"].removeprefix(f"{record['hostPort']}-")) if "range" in record else record["hostPort"]
    return PortMapping(
        Address.parse(record["hostIP"]) if record["hostIP"] else None,
        record["hostPort"],
        record["protocol"],
        record["containerPort"],
        allocated=record["allocated"],
        sharing=record["sharing"],
        created_at=record.get("createdAt", 0),
        size=last - record["hostPort"] + 1,
        live=record.get("live", False),
        allow_from=tuple(map(Subnet.parse, record.get("allowFrom", ()))),
        publish_on=tuple(record.get("publishOn", ())),
    )
