"""NatConfig: the model of the network configuration, for validation, defaults, messages and JSON Schema."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from ..model.conditions import backend_of, check_conditions
from ..model.errors import InvalidConfiguration
from ..model.filters import parse_interfaces, parse_sources
from ..model.settings import Settings
from .explain import explain
from .ordinary import (
    FAMILIES,
    KERNELS_UDP_STREAM_TIMEOUT_S,
    KERNELS_UDP_TIMEOUT_S,
    LAST_MARK_BIT,
    LAST_PORT,
    LAST_TIMEOUT_S,
    SHARING,
    udp_timeouts,
)

if TYPE_CHECKING:
    from ..state.directory import State

# Attributes that the other backend does not support.
_ONLY_NFTABLES = {
    "allow_from",
    "publish_on",
    "shared_ports",
    "conntrack_timeout",
    "udp_timeout",
    "udp_stream_timeout",
    "ipv6_localhost",
}
_ONLY_IPTABLES = {"external_set_mark_chain"}


def _check_interface(name: str) -> str:
    parse_interfaces([name])
    return name


def _check_source(text: str) -> str:
    parse_sources([text])
    return text


def _check_range(text: str) -> str:
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and first.isascii() and last.isascii()):
        raise ValueError(f"{text!r} is not two numbers with a dash between them, for example 32768-60999")
    if not 1 <= int(first) <= int(last) <= LAST_PORT:
        raise ValueError(f"{text!r} is not an ascending range of ports from 1 to {LAST_PORT}")
    return text


def _check_network(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network CIDR: {error}") from error
    if network.prefixlen == 0:
        raise ValueError(f'{text} is every address: say "masquerade": false instead')
    return str(network)


Interface = Annotated[str, AfterValidator(_check_interface)]
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
PortRange = Annotated[str, AfterValidator(_check_range)]
Conditions = Annotated[list[str], AfterValidator(check_conditions)]
# The name of an iptables chain: up to 28 bytes, without a leading '-' or '!', or anything that iptables-restore reads as syntax.
Chain = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,27}$")]


class NatConfig(BaseModel):
    """The keys of a network configuration that quantum-nat uses. Others are ignored, as CNI requires."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, strict=True, extra="ignore")

    backend: Literal["nftables", "iptables"] = Field(
        default="nftables",
        description=(
            "The backend for the rules. iptables (through iptables-restore) is for hosts without nf_tables; "
            "it does not support sharedPorts, ipv6Localhost, allowFrom, publishOn and the time-outs. If you change the backend, "
            "the network moves to it with its next ADD or DEL."
        ),
    )
    ip_forwarding: bool = Field(
        default=True,
        description=("Enable IP forwarding for the families in use, and keep router-advertised default routes."),
    )
    masquerade: bool | Literal["ipv4", "ipv6"] = Field(
        default=True,
        description=(
            "Masquerade traffic that leaves the container's subnet: for both families, one, or none. Traffic "
            "within the subnet and multicast are never masqueraded."
        ),
    )
    no_masquerade_to: list[Annotated[str, AfterValidator(_check_network)]] = Field(
        default_factory=list,
        description="Destinations, as CIDRs, that always see the container's own address: pod networks of other nodes, for example.",
    )
    external_interface: Interface | list[Interface] | None = Field(
        default=None,
        description=(
            'Masquerade only traffic that leaves through these interfaces. "default" is the interface of the '
            "default route at the time the container starts."
        ),
    )
    snat_address: list[Annotated[str, AfterValidator(lambda text: str(_address(text)))]] = Field(
        default_factory=list,
        max_length=2,
        description="Use this fixed source address instead of the outgoing interface's; at most one per family.",
    )
    port_range: PortRange = Field(
        default="32768-60999", description="The range of host ports for mappings without hostPort: first and last port."
    )
    host_port_conflict: Literal["refuse", "allow"] = Field(
        default="refuse",
        description=(
            "Whether to refuse a host port that a process on the host listens on. With allow, the container "
            "gets that process's traffic."
        ),
    )
    shared_ports: list[Port] = Field(
        default_factory=list,
        description=(
            "Host ports that several containers may publish at the same time, on any network that lists them. "
            "New connections are distributed among them in turn. At most 64 containers per port."
        ),
    )
    shared_affinity: Literal["none", "client"] = Field(
        default="none",
        description=(
            'How a shared port distributes connections: each one separately, or with "client" all connections '
            "from a client address to the same container."
        ),
    )
    conntrack_timeout: Annotated[int, Field(ge=1, le=LAST_TIMEOUT_S)] = Field(
        default=3600,
        description=(
            "Idle time-out of established TCP connections that are translated, in seconds. Other connections "
            "keep the kernel's default, five days."
        ),
    )
    udp_timeout: Annotated[int, Field(ge=1, le=LAST_TIMEOUT_S)] | None = Field(
        default=None,
        description=(
            "Idle time-out of translated UDP connections that have no reply yet, or began less than two seconds ago, in "
            f"seconds. Other connections keep the kernel's. {KERNELS_UDP_TIMEOUT_S} if only udpStreamTimeout is set."
        ),
    )
    udp_stream_timeout: Annotated[int, Field(ge=1, le=LAST_TIMEOUT_S)] | None = Field(
        default=None,
        description=(
            "The same for translated UDP connections with replies that last longer: QUIC, VPNs, games. "
            f"{KERNELS_UDP_STREAM_TIMEOUT_S} if only udpTimeout is set."
        ),
    )
    ipv6_localhost: bool = Field(
        default=False, description="Make published ports reachable from the host on [::1] too, and allow hostIP ::1."
    )
    isolate: bool = Field(
        default=False,
        description=(
            "Let other networks and hosts reach the container only through its host ports, not by routing to its address."
        ),
    )
    snat: bool = Field(
        default=True,
        description=(
            "Masquerade connections to a published port from containers on the same network and from 127.0.0.1, so that "
            "replies return the same way."
        ),
    )
    masq_all: bool = Field(
        default=False,
        description=("Masquerade all connections to published ports. The container no longer sees client addresses."),
    )
    mark_masq_bit: Annotated[int, Field(ge=0, le=LAST_MARK_BIT)] | None = Field(
        default=None,
        description=(
            "With iptables, select packets to masquerade with this bit of the packet mark, as portmap does; "
            "by default no mark is used. Ignored with nftables."
        ),
    )
    external_set_mark_chain: Chain | None = Field(
        default=None,
        description=(
            "With iptables, send packets to masquerade to this chain of another program instead, such as "
            "KUBE-MARK-MASQ."
        ),
    )
    allow_from: Annotated[list[Annotated[str, AfterValidator(_check_source)]], Field(min_length=1)] | None = Field(
        default=None,
        description=(
            "The clients that may reach published ports, as CIDRs or addresses; packets of others are dropped and counted. "
            "The host itself may always, and so may a container through its own port. A mapping's own allowFrom replaces it."
        ),
    )
    publish_on: Annotated[list[Interface], Field(min_length=1)] | None = Field(
        default=None,
        description=(
            'Publish ports only for packets that come in by these interfaces, whatever their addresses; "lo" stands for '
            "clients on this host. A mapping's own publishOn replaces it."
        ),
    )
    conditions_v4: Conditions = Field(
        default_factory=list,
        description=(
            "Further conditions for IPv4 connections to host ports, in the backend's syntax. Match expressions only."
        ),
    )
    conditions_v6: Conditions = Field(
        default_factory=list,
        description="The same for IPv6.",
    )
    metrics: bool = Field(default=True, description="Count calls and connections for `quantum-nat metrics`.")
    state_dir: str = Field(
        default="/run/cni/quantum-nat", description="The directory of the records. All networks on a host share one."
    )
    capabilities: dict[str, bool] = Field(
        default_factory=dict, description="What the runtime may pass in: portMappings."
    )

    @field_validator("snat_address", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("external_interface")
    @classmethod
    def _check_default(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (not value or "default" in value):
            raise ValueError('name at least one interface; "default" cannot be in a list')
        return value

    @model_validator(mode="after")
    def _check_addresses(self) -> NatConfig:
        families = [_address(text).version for text in self.snat_address]
        if len(set(families)) != len(families):
            raise ValueError("snatAddress has two addresses of the same family")
        unused = [text for text in self.snat_address if _address(text).version not in self.families]
        if unused:
            raise ValueError(f"snatAddress {unused[0]} is of a family that is not masqueraded")
        return self

    @model_validator(mode="after")
    def _check_marks(self) -> NatConfig:
        if self.mark_masq_bit is not None and self.external_set_mark_chain is not None:
            raise ValueError("markMasqBit and externalSetMarkChain cannot be combined")
        return self

    @model_validator(mode="after")
    def _check_backend(self) -> NatConfig:
        for key, words in (("conditionsV4", self.conditions_v4), ("conditionsV6", self.conditions_v6)):
            if words and backend_of(words) != self.backend:
                raise ValueError(f'{key} is in {backend_of(words)} syntax, but backend is "{self.backend}"')
        interfaces = self.external_interface or []
        wild = [name for name in ([interfaces] if isinstance(interfaces, str) else interfaces) if name.endswith("+")]
        if self.backend == "iptables" and wild:
            raise ValueError(f"externalInterface {wild[0]!r} is a pattern to iptables, for all names that begin so")
        foreign = _ONLY_NFTABLES if self.backend == "iptables" else _ONLY_IPTABLES
        for name in sorted(foreign & self.model_fields_set):
            if getattr(self, name) not in (None, False, []):
                raise ValueError(f'{to_camel(name)} is not supported by backend "{self.backend}"')
        return self

    @property
    def families(self) -> list[int]:
        """The address families that are masqueraded."""
        return FAMILIES[self.masquerade]


def settings_on_record(state: State, network: str) -> Settings:
    """Return the settings of a network by the configuration that its last new call had; CniError(7) if that is lost."""
    kept = state.read_configuration(network)
    if kept is None or not isinstance(kept.get("given"), dict):
        raise InvalidConfiguration(
            f"the configuration of network {network} is not on record",
            "The next ADD, CHECK or GC of the network records it: start any container on it.",
        )
    return Settings(normalise(kept["given"]))


def _address(text: str) -> IPv4Address | IPv6Address:
    for kind in (IPv4Address, IPv6Address):
        try:
            address = kind(text)
        except ValueError:
            continue
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise ValueError(f"{text} cannot be a source address")
        return address
    raise ValueError(f"{text!r} is not an IP address")


def normalise(configuration: dict[str, Any]) -> dict[str, Any]:
    """Validate, and return the form that Settings reads; raise CniError(7), which names keys and values."""
    try:
        config = validated(configuration)
    except ValidationError as error:
        message = "; ".join(problem.message for problem in explain(error, configuration))
        raise InvalidConfiguration(message) from error
    return normalised(config)


def validated(configuration: dict[str, Any]) -> NatConfig:
    """Return the model of a configuration in JSON, in which null is the same as absent.

    Python's names of the keys are unknown keys there, and ignored, as CNI requires.

    Raises:
        ValidationError: (pydantic's) a value is not valid.
        CniError: (7) a key is in another case.
    """
    known = {to_camel(name): name for name in NatConfig.model_fields}
    spelling = {key.lower(): key for key in known}
    for key in configuration:
        if key not in known and key.lower() in spelling:
            raise InvalidConfiguration(
                f"unknown key {key!r}",
                f"Write it as {spelling[key.lower()]!r}: other plugins ignore the case of keys, and this one does not.",
            )
    return NatConfig.model_validate(
        {key: value for key, value in configuration.items() if key in known and value is not None}
    )


def normalised(config: NatConfig) -> dict[str, Any]:
    """Return the form that Settings reads."""
    interfaces = config.external_interface or []
    conditions = {"4": config.conditions_v4, "6": config.conditions_v6}
    return {
        "backend": config.backend,
        "ipForwarding": config.ip_forwarding,
        "masquerade": config.families,
        "noMasqueradeTo": config.no_masquerade_to,
        "externalInterface": [interfaces] if isinstance(interfaces, str) else interfaces,
        "snatAddress": config.snat_address,
        "portRange": [int(port) for port in config.port_range.split("-")],
        "refuseConflicts": config.host_port_conflict == "refuse",
        "sharedPorts": config.shared_ports,
        "sharing": SHARING[config.shared_affinity],
        "conntrackTimeout": config.conntrack_timeout,
        "udpTimeouts": udp_timeouts(config.udp_timeout, config.udp_stream_timeout),
        "ipv6Localhost": config.ipv6_localhost,
        "isolate": config.isolate,
        "allowFrom": [str(subnet) for subnet in parse_sources(config.allow_from or ())],
        "publishOn": list(parse_interfaces(config.publish_on or ())),
        "conditions": {family: words for family, words in conditions.items() if words},
        "snat": config.snat,
        "masqAll": config.masq_all,
        "markMasqBit": config.mark_masq_bit,
        "externalSetMarkChain": config.external_set_mark_chain or "",
    }
