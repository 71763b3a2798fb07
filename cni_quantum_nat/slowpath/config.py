"""NatConfig: the network configuration, described once for validation, defaults, messages and JSON Schema."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from ..hotpath.errors import UNSUPPORTED_FIELD, CniError, InvalidConfiguration

# Of portmap's and our own keys, those that this version does not act on. To ignore them would mislead.
_NOT_YET = (
    "portRange",
    "conntrackTimeout",
    "ipv6Localhost",
    "sharedPorts",
    "sharedAffinity",
    "hostPortConflict",
    "markMasqBit",
    "externalSetMarkChain",
    "conditionsV4",
    "conditionsV6",
)


_BOOLEAN = "true or false"
_ALLOWED = {
    "backend": '"nftables"',
    "ipForwarding": _BOOLEAN,
    "masquerade": 'true, false, "ipv4" or "ipv6"',
    "externalInterface": 'the name of an interface, a list of names, or "default"',
    "snatAddress": "an IP address, or a list of at most one of each family",
    "snat": _BOOLEAN,
    "masqAll": _BOOLEAN,
    "stateDir": "an absolute path",
    "capabilities": "an object of booleans",
}


def _check_interface(name: str) -> str:
    if not 1 <= len(name.encode()) <= 15 or name in (".", "..") or any(c in '/:"*' or c.isspace() for c in name):
        raise ValueError(f"{name!r} is not the name of an interface (1 to 15 bytes, without '/', ':' and white space)")
    return name


Interface = Annotated[str, AfterValidator(_check_interface)]


class NatConfig(BaseModel):
    """The keys of a network configuration that quantum-nat acts on. Others are ignored, as CNI asks."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, strict=True, extra="ignore")

    backend: Literal["nftables"] = Field("nftables", description="What makes the rules.")
    ip_forwarding: bool = Field(True, description="Turn forwarding on for the families in use.")
    masquerade: bool | Literal["ipv4", "ipv6"] = Field(
        True, description="Give what leaves the container's subnet the host's address: both families, one, or none."
    )
    external_interface: Interface | list[Interface] | None = Field(
        None,
        description='Masquerade only what leaves by this interface, or these. "default": that of the default route.',
    )
    snat_address: list[Annotated[str, AfterValidator(lambda text: str(_address(text)))]] = Field(
        default_factory=list,
        max_length=2,
        description="Use this source address in place of the outgoing interface's; at most one per family.",
    )
    snat: bool = Field(
        True, description="Masquerade neighbours and 127.0.0.1 that come through a host port, so that replies return."
    )
    masq_all: bool = Field(False, description="Masquerade everybody who comes through a host port.")
    state_dir: str = Field("/run/cni/quantum-nat", description="Where the records are kept; one for all networks.")
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
    """Validate, and return what the hot path's Settings read; CniError(7) names key and value, CniError(2) a key not supported."""
    for key in _NOT_YET:
        if key in configuration:
            raise CniError(
                UNSUPPORTED_FIELD, f"{key} is not supported by this version of quantum-nat", "Remove the key."
            )
    try:
        config = NatConfig.model_validate(configuration)
    except ValidationError as error:
        raise InvalidConfiguration(_explain(error, configuration)) from error
    interfaces = config.external_interface or []
    return {
        "ipForwarding": config.ip_forwarding,
        "masquerade": config.families,
        "externalInterface": [interfaces] if isinstance(interfaces, str) else interfaces,
        "snatAddress": config.snat_address,
        "snat": config.snat,
        "masqAll": config.masq_all,
    }


def _explain(error: ValidationError, configuration: dict[str, Any]) -> str:
    """Say for each key what it is and what it may be; pydantic says it for each branch of a union."""
    reasons: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        key = str(problem["loc"][0]) if problem["loc"] else ""
        of_key = reasons.setdefault(key, [])
        if problem["type"] == "value_error":  # ours; the others repeat what _ALLOWED says
            of_key.append(problem["msg"].removeprefix("Value error, "))
    return "; ".join(_explain_key(key, why, configuration) for key, why in reasons.items())


def _explain_key(key: str, reasons: list[str], configuration: dict[str, Any]) -> str:
    why = "; ".join(dict.fromkeys(reasons))
    if not key:
        return why
    return f"{key} is {configuration[key]!r}: it must be {_ALLOWED[key]}" + (f" ({why})" if why else "")
