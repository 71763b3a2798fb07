"""NatConfig: the network configuration, described once for validation, defaults, messages and JSON Schema."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from ..model.attachments import BY_CLIENT, SPREAD
from ..model.errors import InvalidConfiguration
from .conditions import backend_of, check_conditions
from .explain import explain

_LAST_PORT = 65535
# What the other backend has no means for, by attribute.
_ONLY_NFTABLES = {"shared_ports", "conntrack_timeout", "ipv6_localhost"}
_ONLY_IPTABLES = {"external_set_mark_chain"}


def _check_interface(name: str) -> str:
    # Double quotes, backslash and asterisk are possible, and syntax to nft or iptables-restore.
    strange = not name.isprintable() or any(c in '/:"\\*' or c.isspace() for c in name)
    if strange or not 1 <= len(name.encode()) <= 15 or name in (".", ".."):
        raise ValueError(
            f"{name!r} is not the name of an interface (1 to 15 bytes, without '/', ':', '\"', backslash, '*' and white space)"
        )
    return name


def _check_range(text: str) -> str:
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and first.isascii() and last.isascii()):
        raise ValueError(f"{text!r} is not two numbers with a dash between them")
    if not 1 <= int(first) <= int(last) <= _LAST_PORT:
        raise ValueError(f"{text!r} does not run from a port to the same or a higher one, within 1 to {_LAST_PORT}")
    return text


Interface = Annotated[str, AfterValidator(_check_interface)]
Port = Annotated[int, Field(ge=1, le=_LAST_PORT)]
PortRange = Annotated[str, AfterValidator(_check_range)]
Conditions = Annotated[list[str], AfterValidator(check_conditions)]
# An iptables chain: 28 bytes, no leading dash or exclamation mark, nothing that iptables-restore reads as syntax.
Chain = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,27}$")]


class NatConfig(BaseModel):
    """The keys of a network configuration that quantum-nat acts on. Others are ignored, as CNI asks."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, strict=True, extra="ignore")

    backend: Literal["nftables", "iptables"] = Field(
        default="nftables",
        description=(
            "What makes the rules. iptables, through iptables-restore, is for hosts without nf_tables, "
            "and cannot do sharedPorts, conntrackTimeout and ipv6Localhost. A network whose backend "
            "changes is moved on its next ADD or DEL."
        ),
    )
    ip_forwarding: bool = Field(
        default=True,
        description=("Turn forwarding on for the families in use, without losing a router-advertised default route."),
    )
    masquerade: bool | Literal["ipv4", "ipv6"] = Field(
        default=True,
        description=(
            "Give what leaves the container's own subnet the host's address: both families, one, or none. "
            "Never within the subnet, never multicast."
        ),
    )
    external_interface: Interface | list[Interface] | None = Field(
        default=None,
        description=(
            'Masquerade only what leaves by this interface, or these. "default": that of the default '
            "route when the container starts."
        ),
    )
    snat_address: list[Annotated[str, AfterValidator(lambda text: str(_address(text)))]] = Field(
        default_factory=list,
        max_length=2,
        description="Use this fixed source address in place of the outgoing interface's; at most one per family.",
    )
    port_range: PortRange = Field(
        default="32768-60999", description="Where a port is taken from for a mapping without hostPort: first and last."
    )
    host_port_conflict: Literal["refuse", "allow"] = Field(
        default="refuse",
        description=(
            "A port that a process of the host listens on is refused, since the container would get that "
            "process's traffic; allow lets it."
        ),
    )
    shared_ports: list[Port] = Field(
        default_factory=list,
        description=(
            "Host ports that several containers may publish at the same time, also of different networks "
            "that list them: new connections are dealt to them in turn. At most 64 containers a port."
        ),
    )
    shared_affinity: Literal["none", "client"] = Field(
        default="none",
        description=(
            'Deal each new connection to a shared port, or with "client" all connections of a client '
            "address to the same container."
        ),
    )
    conntrack_timeout: Annotated[int, Field(ge=1, le=2147483)] = Field(
        default=3600,
        description=(
            "Seconds for which an established TCP connection that is translated may be idle. Others keep "
            "the kernel's own, five days."
        ),
    )
    ipv6_localhost: bool = Field(
        default=False, description="Let the host reach published ports on [::1] too; hostIP ::1 becomes possible."
    )
    isolate: bool = Field(
        default=False,
        description=(
            "Other networks and hosts reach the container by its host ports alone, not by routing to its address."
        ),
    )
    snat: bool = Field(
        default=True,
        description=(
            "Masquerade neighbours and 127.0.0.1 when they come through a published port, so that replies find back."
        ),
    )
    masq_all: bool = Field(
        default=False,
        description=(
            "Masquerade everybody who comes through a published port. The container no longer sees who it is."
        ),
    )
    mark_masq_bit: Annotated[int, Field(ge=0, le=31)] | None = Field(
        default=None,
        description=(
            "With iptables, masquerade by this bit of the packet mark, as portmap does; without it no "
            "mark is used. nftables needs none."
        ),
    )
    external_set_mark_chain: Chain | None = Field(
        default=None,
        description=(
            "With iptables, send what is to be masqueraded to this chain of another program instead, such "
            "as KUBE-MARK-MASQ."
        ),
    )
    conditions_v4: Conditions = Field(
        default_factory=list,
        description=(
            "What an IPv4 connection to a host port must match as well, in the backend's syntax. Match "
            "expressions only."
        ),
    )
    conditions_v6: Conditions = Field(
        default_factory=list,
        description="The same for IPv6.",
    )
    metrics: bool = Field(default=True, description="Count calls and connections for `quantum-nat metrics`.")
    state_dir: str = Field(
        default="/run/cni/quantum-nat", description="Where the records are kept. All networks of a host share one."
    )
    capabilities: dict[str, bool] = Field(default_factory=dict, description="What the runtime may pass: portMappings.")

    @field_validator("snat_address", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("external_interface")
    @classmethod
    def _check_default(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (not value or "default" in value):
            raise ValueError('name at least one interface; "default" stands alone, not in a list')
        return value

    @model_validator(mode="after")
    def _check_addresses(self) -> NatConfig:
        families = [_address(text).version for text in self.snat_address]
        if len(set(families)) != len(families):
            raise ValueError("snatAddress has more than one address of a family")
        unused = [text for text in self.snat_address if _address(text).version not in self.families]
        if unused:
            raise ValueError(f"snatAddress {unused[0]} is of a family that masquerade leaves out")
        return self

    @model_validator(mode="after")
    def _check_marks(self) -> NatConfig:
        if self.mark_masq_bit is not None and self.external_set_mark_chain is not None:
            raise ValueError("markMasqBit and externalSetMarkChain exclude each other")
        return self

    @model_validator(mode="after")
    def _check_backend(self) -> NatConfig:
        for key, words in (("conditionsV4", self.conditions_v4), ("conditionsV6", self.conditions_v6)):
            if words and backend_of(words) != self.backend:
                raise ValueError(f'{key} is in the syntax of {backend_of(words)}, but backend is "{self.backend}"')
        foreign = _ONLY_NFTABLES if self.backend == "iptables" else _ONLY_IPTABLES
        for name in sorted(foreign & self.model_fields_set):
            if getattr(self, name) not in (None, False, []):
                raise ValueError(f'{to_camel(name)} cannot be had with backend "{self.backend}"')
        return self

    @property
    def families(self) -> list[int]:
        """The address families that are masqueraded."""
        return {True: [4, 6], False: [], "ipv4": [4], "ipv6": [6]}[self.masquerade]


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
    """Validate, and return what the hot path's Settings read; CniError(7) names key and value."""
    try:
        config = validated(configuration)
    except ValidationError as error:
        message = "; ".join(problem.message for problem in explain(error, configuration))
        raise InvalidConfiguration(message) from error
    return normalised(config)


def validated(configuration: dict[str, Any]) -> NatConfig:
    """Read the keys of JSON; the names that Python's side has for them are unknown keys there, and ignored."""
    foreign = NatConfig.model_fields.keys() - set(map(to_camel, NatConfig.model_fields))
    return NatConfig.model_validate({key: value for key, value in configuration.items() if key not in foreign})


def normalised(config: NatConfig) -> dict[str, Any]:
    """Return what the hot path's Settings read."""
    interfaces = config.external_interface or []
    conditions = {"4": config.conditions_v4, "6": config.conditions_v6}
    return {
        "backend": config.backend,
        "ipForwarding": config.ip_forwarding,
        "masquerade": config.families,
        "externalInterface": [interfaces] if isinstance(interfaces, str) else interfaces,
        "snatAddress": config.snat_address,
        "portRange": [int(port) for port in config.port_range.split("-")],
        "refuseConflicts": config.host_port_conflict == "refuse",
        "sharedPorts": config.shared_ports,
        "sharing": {"none": SPREAD, "client": BY_CLIENT}[config.shared_affinity],
        "conntrackTimeout": config.conntrack_timeout,
        "ipv6Localhost": config.ipv6_localhost,
        "isolate": config.isolate,
        "conditions": {family: words for family, words in conditions.items() if words},
        "snat": config.snat,
        "masqAll": config.masq_all,
        "markMasqBit": config.mark_masq_bit,
        "externalSetMarkChain": config.external_set_mark_chain or "",
    }
