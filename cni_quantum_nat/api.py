"""The Python API: for programs that set up container networking themselves.

It uses the same records, lock and NAT Manager as the plugin, so `quantum-nat list` shows what it does, and the plugin repairs
it. It needs CAP_NET_ADMIN in the host's network namespace. Every failure is a CniError; exceptions.py has its classes.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from hashlib import blake2b
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict, ValidationError, model_validator

from .cni.configuration import NatConfig as Keys
from .cni.configuration import normalised
from .cni.protocol import is_valid_name
from .cni.settings import outbound_for
from .exceptions import (
    CniError,
    InvalidArgument,
    LockTimeout,
    NetworkOverlap,
    NoRoute,
    NotAvailable,
    PortInUse,
    PortRangeFull,
    specific,
)
from .model import attachments as model
from .model.addresses import Address, Endpoint
from .model.errors import HOST_PORT_CONFLICT, INTERNAL, INVALID_CONFIGURATION
from .model.settings import Settings
from .nat.decision import IN_FORCE, UNCERTAIN
from .nat.manager import NatManager as Manager
from .nat.records import Records, here_of, standing
from .nat.rules import ANY_NETWORK, NatRule, NatType, Protocol, rules_of
from .ports.mappings import check_localhost, parse_entry
from .state.counters import CallCounter, CounterFile
from .state.directory import State
from .state.program_lock import ProgramLock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from ipaddress import IPv4Network, IPv6Network

    IPNetwork = IPv4Network | IPv6Network

__all__ = [
    "API_NETWORK",
    "CniError",
    "InvalidArgument",
    "LockTimeout",
    "NatConfig",
    "NatManager",
    "NatRule",
    "NatType",
    "Network",
    "NetworkOverlap",
    "NoRoute",
    "NotAvailable",
    "PortInUse",
    "PortMapping",
    "PortRangeFull",
    "Protocol",
]

API_NETWORK = "python-api"  # the network name of the API's records
_NETWORK_CIDR = "network"  # stands for an interface in the record of a network CIDR


class NatConfig(Keys):
    """The keys of a CNI network configuration, in Python's spelling or in CNI's. Others are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, given: Any) -> Any:
        known = {name for python, field in cls.model_fields.items() for name in (python, field.alias or python)}
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                similar = get_close_matches(str(key), sorted(known), 1)
                raise ValueError(f"unknown key {key!r}" + (f"; did you mean {similar[0]}?" if similar else ""))
        return given


@dataclass(frozen=True)
class Network:
    """A container network.

    id: identifies it in records. name: for people. cidr: its addresses, such as "172.20.0.0/16" or "fd20::/64".
    gateway: the host's address in it; only checked.
    """

    id: str
    name: str
    cidr: str
    gateway: str | None = None

    def __post_init__(self) -> None:
        """Check the values; raise InvalidArgument if they are not valid."""
        if not is_valid_name(self.id):
            raise _invalid(f"network ID {self.id!r} must consist of letters, digits, '_', '.' and '-'")
        try:
            network = ip_network(self.cidr)
            outside = self.gateway is not None and ip_address(self.gateway) not in network
        except ValueError as error:
            raise _invalid(f"network {self.name}: {error}") from error
        if outside:
            raise _invalid(f"network {self.name}: gateway {self.gateway} is not in {self.cidr}")
        if network.prefixlen == 0:
            raise _invalid(f"network {self.name}: {self.cidr} contains all addresses")


@dataclass(frozen=True)
class PortMapping:
    """A published port.

    id: stable for the life of the mapping. container_port, host_port: of a range that a runtime has published, the first; id and
    description have the range. host_ip: None for all addresses of the host in the container's address family.
    container_ip: the address that it leads to; empty if the container has none of its family.
    """

    id: str
    container_id: str
    container_port: int
    host_port: int
    protocol: Protocol
    host_ip: str | None
    description: str
    created_at: datetime
    container_ip: str


class NatManager:
    """Manages outbound NAT of networks and published ports of containers. It can be reused, from any thread.

    With `with`, it is the manager itself; it keeps nothing open, and what it made stays.
    """

    def __init__(self, config: Keys | Mapping[str, Any] | None = None) -> None:
        """Use a configuration; its keys have the same meaning as in a CNI network configuration.

        Raises:
            InvalidArgument: a mapping has an unknown key or a value that is not valid.
        """
        if config is not None and not isinstance(config, Keys):
            try:
                config = NatConfig.model_validate(dict(config))
            except (TypeError, ValueError) as error:
                raise _invalid(f"config: {_reasons(error)}") from error
        self._config = config or NatConfig()
        self._settings = Settings(normalised(self._config))

    def __enter__(self) -> Self:
        """Return the manager itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Undo nothing."""

    def enable_outbound_connectivity(self, network: Network) -> NatRule:
        """Translate the source of traffic that leaves the network to the outgoing interface's address, or `snat_address`.

        Traffic within the network and multicast are not translated. Enabling a network again changes nothing.

        Raises:
            NetworkOverlap: another network that is enabled has addresses of this one.
        """
        with self._counted("ADD"):
            attachment = self._network_attachment(network)
            with self._locked() as manager:
                _refuse_overlap(network, attachment.id, manager.state)
                manager.add(attachment, self._settings)
        return next(rules_of(attachment))

    def disable_outbound_connectivity(self, network: Network | str) -> None:
        """Undo enable_outbound_connectivity for a network or its ID, if it was called. Open connections stay translated."""
        identity = network if isinstance(network, str) else network.id
        with self._counted("DEL"), self._locked() as manager:
            manager.remove(model.AttachmentId(API_NETWORK, identity, _NETWORK_CIDR))

    def create_port_mapping(  # noqa: PLR0913, PLR0917 - the public signature; most have defaults
        self,
        container_id: str,
        container_ip: str,
        container_port: int,
        host_port: int | None = None,
        protocol: Protocol | str = Protocol.TCP,
        host_ip: str | None = None,
    ) -> PortMapping:
        """Publish a container's port on the host; without host_port, on a free port in the configuration's portRange.

        Creating the same mapping again, with its host_port, returns the first. An address has one owner: the mappings of
        another container_id with the same container_ip are removed.

        Raises:
            InvalidArgument, PortInUse, NoRoute, PortRangeFull: as they say.
        """
        entry: dict[str, object] = {
            "hostIP": host_ip,
            "hostPort": host_port,
            "protocol": protocol,
            "containerPort": container_port,
        }
        with self._counted("ADD"):
            wanted = _mapping(container_ip, entry, self._settings.inbound)
            with self._locked() as manager:
                attachment, made = self._publish(manager, container_id, container_ip, wanted)
        return _published(attachment, made)

    def remove_port_mapping(self, mapping: PortMapping | str) -> None:
        """Remove a port mapping, or that with this ID, if it exists.

        Raises:
            InvalidArgument: it is not of this API: its container's runtime removes it.
        """
        wanted = mapping if isinstance(mapping, str) else mapping.id
        network, container_id, interface = [*wanted.split("/", 3), "", "", ""][:3]
        identity = model.AttachmentId(network, container_id, interface)
        with self._counted("DEL"):
            if network != API_NETWORK or not (is_valid_name(container_id) and interface):
                raise _invalid(
                    f"port mapping {wanted!r} was not made by this API",
                    "Its container's runtime removes it; port_mappings() has the IDs.",
                )
            with self._locked() as manager:
                attachment = manager.state.read(identity)
                if attachment is None:
                    return
                attachment.port_mappings = [m for m in attachment.port_mappings if _id_of(attachment, m) != wanted]
                manager.add(attachment, self._settings)

    def rules(self) -> list[NatRule]:
        """Return all NAT rules, including those of the plugin's attachments, oldest first."""
        return [rule for attachment in self._records() for rule in rules_of(attachment)]

    def port_mappings(self) -> list[PortMapping]:
        """Return all port mappings, including those of the plugin's attachments, oldest first."""
        records = self._records()
        return [_published(attachment, mapping) for attachment in records for mapping in attachment.port_mappings]

    def _locked(self) -> Manager:
        return Manager(State(self._config.state_dir, ProgramLock))

    @contextmanager
    def _counted(self, verb: str) -> Iterator[None]:
        """Count a call as the corresponding CNI verb, and give its error the class of its code."""
        file = CounterFile(State(self._config.state_dir), API_NETWORK)
        counter = CallCounter(file, self._settings.backend, verb, time.monotonic())
        code = INTERNAL
        try:
            yield
            code = 0
        except CniError as error:
            code = error.code
            if (raised := specific(error)) is error:
                raise
            raise raised from error
        finally:
            if self._config.metrics:
                counter.count(code)

    def _publish(
        self, manager: Manager, container_id: str, container_ip: str, wanted: model.PortMapping
    ) -> tuple[model.Attachment, model.PortMapping]:
        endpoint = _endpoint_of(container_ip, manager.state)
        attachment = self._attachment(container_id, _interface_of(container_ip), endpoint)
        record = manager.state.read(attachment.id)
        kept = record.port_mappings if record else []
        same = [other for other in kept if wanted.host_port and wanted.is_same_port(other, {endpoint.address.family})]
        if same and same[0].asked_for != wanted.asked_for:
            raise PortInUse(
                HOST_PORT_CONFLICT,
                f"host port {wanted.host_port}/{wanted.protocol} is already published by {attachment.id}, as {same[0]}",
                "Remove that mapping first, or choose another host port.",
            )
        if wanted.host_port:
            _refuse_siblings_port(wanted, attachment, manager.state)
        wanted.created_at = attachment.created_at
        attachment.port_mappings = kept if same else [*kept, wanted]
        if record is not None:
            attachment.created_at = record.created_at
        self._settings.apply_to(attachment)
        manager.add(attachment, self._settings)
        return attachment, same[0] if same else wanted

    def _network_attachment(self, network: Network) -> model.Attachment:
        endpoint = Endpoint.parse(network.cidr)
        attachment = self._attachment(network.id, _NETWORK_CIDR, endpoint, is_network=True)
        attachment.outbound = outbound_for(
            self._settings, [endpoint], follows_default_route=self._settings.follows_default_route
        )
        if not attachment.needs_rules:
            raise _invalid(f"network {network.name} is IPv{endpoint.address.family}, which is not masqueraded")
        return attachment

    def _records(self) -> list[model.Attachment]:
        state = State(self._config.state_dir)
        records = Records(state, here_of(state))
        if records.damaged:
            raise specific(records.damaged[0])
        return records.attachments

    def _attachment(
        self, container_id: str, interface: str, endpoint: Endpoint, *, is_network: bool = False
    ) -> model.Attachment:
        if not is_valid_name(container_id):
            raise _invalid(f"container ID {container_id!r} must consist of letters, digits, '_', '.' and '-'")
        return model.Attachment(
            model.AttachmentId(API_NETWORK, container_id, interface),
            backend=self._settings.backend,
            netns="",
            netns_identity=(0, 0),
            endpoints=[endpoint],
            port_mappings=[],
            outbound=model.Outbound(),
            inbound=self._settings.inbound,
            established_timeout_s=self._settings.established_timeout_s,
            udp_timeouts_s=self._settings.udp_timeouts_s,
            created_at=time.time(),
            is_network=is_network,
        )


def _interface_of(container_ip: str) -> str:
    """Return what stands for the container's interface in its records; no CNI interface has such a name."""
    if ":" not in container_ip:
        return container_ip
    return f"ip6-{blake2b(ip_address(container_ip).packed, digest_size=5).hexdigest()}"


def _endpoint_of(container_ip: str, state: State) -> Endpoint:
    """Return the container's address with the prefix length of the enabled network that contains it."""
    try:
        address = ip_address(container_ip)
    except ValueError as error:
        raise _invalid(f"container_ip: {error}") from error
    networks = [network for _, network in _enabled_networks(state) if address in network]
    length = networks[0].prefixlen if networks else address.max_prefixlen
    return Endpoint.parse(f"{address}/{length}")


def _enabled_networks(state: State) -> Iterator[tuple[model.AttachmentId, IPNetwork]]:
    for attachment in state.attachments([]):
        if attachment.is_network:
            for endpoint in attachment.endpoints:
                yield attachment.id, ip_network(str(endpoint.network))


def _refuse_overlap(network: Network, own: model.AttachmentId, state: State) -> None:
    for identity, other in _enabled_networks(state):
        if identity != own and other.overlaps(ip_network(network.cidr)):
            raise NetworkOverlap(
                HOST_PORT_CONFLICT,
                f"network {network.id} ({network.cidr}) overlaps network {identity.container_id} ({other})",
                "Disable the other network first, or enable only the larger of the two.",
            )


def _refuse_siblings_port(wanted: model.PortMapping, attachment: model.Attachment, state: State) -> None:
    """Refuse a port that leads to another address of the container: it would go on leading there."""
    here = here_of(state)
    for sibling in state.siblings(attachment.id):
        if standing(sibling, here) in (IN_FORCE, UNCERTAIN) and any(
            wanted.is_same_port(other, {attachment.endpoints[0].address.family}) for other in sibling.port_mappings
        ):
            raise PortInUse(
                HOST_PORT_CONFLICT,
                f"host port {wanted.host_port}/{wanted.protocol} is already published by {sibling.id}, on another address of "
                "the container",
                "Remove that mapping first, or choose another host port.",
            )


def _mapping(container_ip: str, entry: dict[str, object], inbound: model.Inbound) -> model.PortMapping:
    """Parse an entry as in CNI's portMappings; the mapping is only for the container's address family."""
    mapping = parse_entry("port mapping", {key: value for key, value in entry.items() if value is not None})
    family = 6 if ":" in container_ip else 4
    if mapping.host_ip is None:
        mapping.host_ip = Address.parse(ANY_NETWORK[family].partition("/")[0])
    if mapping.host_ip.family != family:
        raise _invalid(
            f"hostIP {mapping.host_ip} and container address {container_ip} are of different address families"
        )
    if not inbound.ipv6_localhost:
        check_localhost([mapping])
    return mapping


def _published(attachment: model.Attachment, mapping: model.PortMapping) -> PortMapping:
    families = [family for family in sorted(attachment.published_families) if mapping.serves(family)]
    endpoint = attachment.published_endpoint(families[0]) if families else attachment.endpoints[0]
    return PortMapping(
        id=_id_of(attachment, mapping),
        container_id=attachment.id.container_id,
        container_port=mapping.container_port,
        host_port=mapping.host_port,
        protocol=Protocol(mapping.protocol),
        host_ip=str(mapping.specific_host_ip) if mapping.specific_host_ip else None,
        description=f"port {mapping.container_range}/{mapping.protocol} of {attachment.id}",
        created_at=datetime.fromtimestamp(mapping.created_at or attachment.created_at, UTC),
        container_ip=str(endpoint.address) if endpoint else "",
    )


def _id_of(attachment: model.Attachment, mapping: model.PortMapping) -> str:
    identity = attachment.id
    return f"{identity.network}/{identity.container_id}/{identity.interface}/{mapping}"


def _invalid(message: str, details: str = "") -> InvalidArgument:
    return InvalidArgument(INVALID_CONFIGURATION, message, details)


def _reasons(error: TypeError | ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    found = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors(include_url=False)]
    return "; ".join(f"{where}: {why}" if where else why for where, why in found).replace("Value error, ", "")
