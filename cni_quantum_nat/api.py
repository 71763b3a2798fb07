"""The Python API: for programs that set up container networking themselves.

It uses the same records, lock and NAT Manager as the plugin, so `quantum-nat list` shows what it does, and the plugin repairs
it. It needs CAP_NET_ADMIN in the host's network namespace. Every failure is a CniError.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from .cni.configuration import NatConfig, normalised
from .cni.protocol import is_valid_name
from .cni.settings import outbound_for
from .model import attachments as model
from .model.addresses import Address, Endpoint
from .model.errors import INTERNAL, CniError, HostPortConflict, InvalidConfiguration
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
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    IPNetwork = IPv4Network | IPv6Network

__all__ = [
    "API_NETWORK",
    "CniError",
    "NatConfig",
    "NatManager",
    "NatRule",
    "NatType",
    "Network",
    "PortMapping",
    "Protocol",
]

API_NETWORK = "python-api"  # the network name of the API's records
_NETWORK_CIDR = "network"  # stands for an interface in the record of a network CIDR


@dataclass(frozen=True)
class Network:
    """A container network.

    cidr: its addresses, such as "172.20.0.0/16" or "fd20::/64". gateway: the host's address in it; only checked.
    """

    name: str
    cidr: str
    gateway: str | None = None

    def __post_init__(self) -> None:
        """Check the values; raise CniError(7) if they are not valid."""
        if not is_valid_name(self.name):
            raise InvalidConfiguration(f"network name {self.name!r} must consist of letters, digits, '_', '.' and '-'")
        try:
            network = ip_network(self.cidr)
            outside = self.gateway is not None and ip_address(self.gateway) not in network
        except ValueError as error:
            raise InvalidConfiguration(f"network {self.name}: {error}") from error
        if outside:
            raise InvalidConfiguration(f"network {self.name}: gateway {self.gateway} is not in {self.cidr}")
        if network.prefixlen == 0:
            raise InvalidConfiguration(f"network {self.name}: {self.cidr} contains all addresses")


@dataclass(frozen=True)
class PortMapping:
    """A published port. host_ip None: all addresses of the host in the container's address family."""

    container_id: str
    container_ip: str
    container_port: int
    host_port: int
    protocol: Protocol
    host_ip: str | None = None


class NatManager:
    """Manages outbound NAT of networks and published ports of containers. It can be reused, from any thread."""

    def __init__(self, config: NatConfig | None = None) -> None:
        """Use a configuration; its keys have the same meaning as in a CNI network configuration."""
        self._config = config or NatConfig()
        self._settings = Settings(normalised(self._config))

    def enable_outbound_connectivity(self, network: Network) -> NatRule:
        """Translate the source of traffic that leaves the network to the outgoing interface's address, or `snat_address`.

        Traffic within the network and multicast are not translated. Enabling a network again changes nothing.

        Raises:
            CniError: (100) the network overlaps another one that is enabled.
        """
        with self._counted("ADD"):
            attachment = self._network_attachment(network)
            with self._locked() as manager:
                _refuse_overlap(network, attachment.id, manager.state)
                manager.add(attachment, self._settings)
        return next(rules_of(attachment))

    def disable_outbound_connectivity(self, network: Network) -> None:
        """Undo enable_outbound_connectivity, if it was called. Established connections stay translated."""
        with self._counted("DEL"), self._locked() as manager:
            manager.remove(model.AttachmentId(API_NETWORK, network.name, _NETWORK_CIDR))

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

        An address has one owner: the mappings of another container_id with the same container_ip are removed.

        Raises:
            CniError: (7) an argument is not valid; (100) the host port is in use; (105) the host has no route to the
                container; (107) no port is free.
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
                attachment = self._publish(manager, container_id, container_ip, wanted)
        return _published(attachment, wanted)

    def remove_port_mapping(self, mapping: PortMapping) -> None:
        """Remove a port mapping, if it exists."""
        identity = model.AttachmentId(API_NETWORK, mapping.container_id, _interface_of(mapping.container_ip))
        with self._counted("DEL"), self._locked() as manager:
            attachment = manager.state.read(identity)
            if attachment is None:
                return
            attachment.port_mappings = [m for m in attachment.port_mappings if _published(attachment, m) != mapping]
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
        """Count a call as the corresponding CNI verb."""
        file = CounterFile(State(self._config.state_dir), API_NETWORK)
        counter = CallCounter(file, self._settings.backend, verb, time.monotonic())
        code = INTERNAL
        try:
            yield
            code = 0
        except CniError as error:
            code = error.code
            raise
        finally:
            if self._config.metrics:
                counter.count(code)

    def _publish(
        self, manager: Manager, container_id: str, container_ip: str, wanted: model.PortMapping
    ) -> model.Attachment:
        endpoint = _endpoint_of(container_ip, manager.state)
        attachment = self._attachment(container_id, _interface_of(container_ip), endpoint)
        record = manager.state.read(attachment.id)
        kept = record.port_mappings if record else []
        if wanted.host_port and any(wanted.is_same_port(other, {endpoint.address.family}) for other in kept):
            raise HostPortConflict(f"{wanted} is already published by {attachment.id}")
        if wanted.host_port:
            _refuse_siblings_port(wanted, attachment, manager.state)
        attachment.port_mappings = [*kept, wanted]
        self._settings.apply_to(attachment)
        manager.add(attachment, self._settings)
        return attachment

    def _network_attachment(self, network: Network) -> model.Attachment:
        endpoint = Endpoint.parse(network.cidr)
        attachment = self._attachment(network.name, _NETWORK_CIDR, endpoint, is_network=True)
        attachment.outbound = outbound_for(
            self._settings, [endpoint], follows_default_route=self._settings.follows_default_route
        )
        if not attachment.needs_rules:
            raise InvalidConfiguration(
                f"network {network.name} is IPv{endpoint.address.family}, which is not masqueraded"
            )
        return attachment

    def _records(self) -> list[model.Attachment]:
        state = State(self._config.state_dir)
        records = Records(state, here_of(state))
        if records.damaged:
            raise records.damaged[0]
        return records.attachments

    def _attachment(
        self, container_id: str, interface: str, endpoint: Endpoint, *, is_network: bool = False
    ) -> model.Attachment:
        if not is_valid_name(container_id):
            raise InvalidConfiguration(
                f"container ID {container_id!r} must consist of letters, digits, '_', '.' and '-'"
            )
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
        raise InvalidConfiguration(f"container_ip: {error}") from error
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
            raise HostPortConflict(
                f"network {network.name} ({network.cidr}) overlaps network {identity.container_id} ({other})",
                "Disable the other network first, or enable only the larger of the two.",
            )


def _refuse_siblings_port(wanted: model.PortMapping, attachment: model.Attachment, state: State) -> None:
    """Refuse a port that leads to another address of the container: it would go on leading there."""
    here = here_of(state)
    for sibling in state.siblings(attachment.id):
        if standing(sibling, here) in (IN_FORCE, UNCERTAIN) and any(
            wanted.is_same_port(other, {attachment.endpoints[0].address.family}) for other in sibling.port_mappings
        ):
            raise HostPortConflict(
                f"{wanted} is already published by {sibling.id}, on another address of the container"
            )


def _mapping(container_ip: str, entry: dict[str, object], inbound: model.Inbound) -> model.PortMapping:
    """Parse an entry as in CNI's portMappings; the mapping is only for the container's address family."""
    mapping = parse_entry("port mapping", {key: value for key, value in entry.items() if value is not None})
    family = 6 if ":" in container_ip else 4
    if mapping.host_ip is None:
        mapping.host_ip = Address.parse(ANY_NETWORK[family].partition("/")[0])
    if mapping.host_ip.family != family:
        raise InvalidConfiguration(
            f"hostIP {mapping.host_ip} and container address {container_ip} are of different address families"
        )
    if not inbound.ipv6_localhost:
        check_localhost([mapping])
    return mapping


def _published(attachment: model.Attachment, mapping: model.PortMapping) -> PortMapping:
    families = [family for family in sorted(attachment.published_families) if mapping.serves(family)]
    endpoint = attachment.published_endpoint(families[0]) if families else attachment.endpoints[0]
    return PortMapping(
        attachment.id.container_id,
        str(endpoint.address) if endpoint else "",
        mapping.container_port,
        mapping.host_port,
        Protocol(mapping.protocol),
        str(mapping.specific_host_ip) if mapping.specific_host_ip else None,
    )
