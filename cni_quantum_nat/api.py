"""The Python API: what CNI calls do for attachments, for programs that make their networks themselves.

It works on the same records, under the same lock, through the same NAT Manager as the plugin, so `quantum-nat list` and
the plugin's healing know of it. It needs CAP_NET_ADMIN in the host's network namespace. Every failure is a CniError.
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
from .nat.manager import NatManager as Manager
from .nat.rules import ANY_NETWORK, NatRule, NatType, Protocol, rules_of
from .ports.mappings import check_localhost, parse_entry
from .state.counters import CallCounter, CounterFile
from .state.directory import State

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

# What records of ours are told from those of CNI networks by.
API_NETWORK = "python-api"
_WHOLE_NETWORK = "network"


@dataclass(frozen=True)
class Network:
    """A network of containers, as its maker knows it.

    cidr: its addresses, "172.20.0.0/16" or "fd20::/64". gateway: the host's address in it, for the record.
    """

    name: str
    cidr: str
    gateway: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no network; CniError(7)."""
        if not is_valid_name(self.name):
            raise InvalidConfiguration(f"network name {self.name!r} is not letters, digits, '_', '.' and '-'")
        try:
            network = ip_network(self.cidr)
            outside = self.gateway is not None and ip_address(self.gateway) not in network
        except ValueError as error:
            raise InvalidConfiguration(f"network {self.name}: {error}") from error
        if outside:
            raise InvalidConfiguration(f"network {self.name}: gateway {self.gateway} is not in {self.cidr}")
        if network.prefixlen == 0:
            raise InvalidConfiguration(f"network {self.name}: {self.cidr} is everything there is")


@dataclass(frozen=True)
class PortMapping:
    """A host port that leads to a container. host_ip None: every address of the host, of the container's family."""

    container_id: str
    container_ip: str
    container_port: int
    host_port: int
    protocol: Protocol
    host_ip: str | None = None


class NatManager:
    """Gives networks their way out and containers their way in. One may be used again and again, by any thread."""

    def __init__(self, config: NatConfig | None = None) -> None:
        """Use a configuration, whose keys mean what they mean in a CNI network configuration."""
        self._config = config or NatConfig()
        self._settings = Settings(normalised(self._config))

    def enable_outbound_connectivity(self, network: Network) -> NatRule:
        """Translate the source of whatever leaves the network: to the outgoing interface's address, or `snat_address`.

        Traffic within the network, and multicast, is left alone. Again for the same network, it changes nothing.

        Raises: CniError, with code 100 where the network overlaps another one that was enabled.
        """
        with self._counted("ADD"):
            attachment = self._whole_network(network)
            with self._locked() as manager:
                _refuse_overlap(network, attachment.id, manager.state)
                manager.add(attachment, self._settings)
        return next(rules_of(attachment))

    def disable_outbound_connectivity(self, network: Network) -> None:
        """Undo it; nothing happens where there is nothing to undo. Connections that are translated go on."""
        with self._counted("DEL"), self._locked() as manager:
            manager.remove(model.AttachmentId(API_NETWORK, network.name, _WHOLE_NETWORK))

    def create_port_mapping(  # noqa: PLR0913, PLR0917 - the names say what is what, and most have defaults
        self,
        container_id: str,
        container_ip: str,
        container_port: int,
        host_port: int | None = None,
        protocol: Protocol | str = Protocol.TCP,
        host_ip: str | None = None,
    ) -> PortMapping:
        """Publish a container's port on the host; without host_port, on a free one of the configuration's portRange.

        Raises: CniError: 7 for what cannot be, 100 where the host port is held, 105 where the host has no route to the
        container, 107 where no port is free.
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
        """Undo it; nothing happens where there is nothing to undo."""
        identity = model.AttachmentId(API_NETWORK, mapping.container_id, _interface_of(mapping.container_ip))
        with self._counted("DEL"), self._locked() as manager:
            attachment = manager.state.read(identity)
            if attachment is None:
                return
            attachment.port_mappings = [m for m in attachment.port_mappings if _published(attachment, m) != mapping]
            manager.add(attachment, self._settings)

    def rules(self) -> list[NatRule]:
        """Return everything that is translated, the plugin's attachments included, oldest first."""
        return [rule for attachment in self._records() for rule in rules_of(attachment)]

    def port_mappings(self) -> list[PortMapping]:
        """Return all port mappings, the plugin's attachments included, oldest first."""
        records = self._records()
        return [_published(attachment, mapping) for attachment in records for mapping in attachment.port_mappings]

    def _locked(self) -> Manager:
        return Manager(State(self._config.state_dir))

    @contextmanager
    def _counted(self, verb: str) -> Iterator[None]:
        """Count a call as the CNI verb that does the same."""
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
            raise HostPortConflict(f"{wanted} is published by {attachment.id} already")
        attachment.port_mappings = [*kept, wanted]
        self._settings.apply_to(attachment)
        manager.add(attachment, self._settings)
        return attachment

    def _whole_network(self, network: Network) -> model.Attachment:
        endpoint = Endpoint.parse(network.cidr)
        attachment = self._attachment(network.name, _WHOLE_NETWORK, endpoint, is_network=True)
        attachment.outbound = outbound_for(self._settings, [endpoint])
        if not attachment.needs_rules:
            raise InvalidConfiguration(
                f"network {network.name} is IPv{endpoint.address.family}, which masquerade leaves out"
            )
        return attachment

    def _records(self) -> list[model.Attachment]:
        damaged: list[CniError] = []
        records = sorted(State(self._config.state_dir).attachments(damaged), key=lambda a: a.created_at)
        if damaged:
            raise damaged[0]
        return records

    def _attachment(
        self, container_id: str, interface: str, endpoint: Endpoint, *, is_network: bool = False
    ) -> model.Attachment:
        if not is_valid_name(container_id):
            raise InvalidConfiguration(f"container ID {container_id!r} is not letters, digits, '_', '.' and '-'")
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
    """Name what stands for the container's interface in its records: no CNI interface is called so."""
    if ":" not in container_ip:
        return container_ip
    return f"ip6-{blake2b(ip_address(container_ip).packed, digest_size=5).hexdigest()}"


def _endpoint_of(container_ip: str, state: State) -> Endpoint:
    """Return the container's address, with the prefix length of the enabled network that it is in."""
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
                "Disable that one first, or enable only the wider of the two.",
            )


def _mapping(container_ip: str, entry: dict[str, object], inbound: model.Inbound) -> model.PortMapping:
    """Read what is asked for, as an entry of CNI's portMappings; a mapping is for the container's family alone."""
    mapping = parse_entry("port mapping", {key: value for key, value in entry.items() if value is not None})
    family = 6 if ":" in container_ip else 4
    if mapping.host_ip is None:
        mapping.host_ip = Address.parse(ANY_NETWORK[family].partition("/")[0])
    if mapping.host_ip.family != family:
        raise InvalidConfiguration(
            f"hostIP {mapping.host_ip} and container address {container_ip} are not of one family"
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
