"""What a network configuration asks for, as the hot path reads it: validated before, by slowpath/config.py."""

from __future__ import annotations

from .addresses import Address
from .detour import validate_configuration
from .errors import InvalidConfiguration
from .host import default_route_interface
from .model import EXCLUSIVE, NFTABLES, Inbound, Outbound
from .state import DEFAULT_DIRECTORY, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .addresses import Endpoint
    from .model import Attachment

# What differs from call to call is checked by plain code, each time.
_VOLATILE = ("prevResult", "runtimeConfig", "args", "cni.dev/valid-attachments", "cni.dev/attachments")


class Settings:
    """The normalised configuration, see NatConfig for what each means.

    masquerade: address families. external_interfaces: None is any, "default" in it the default route's.
    snat_addresses: by family. port_range: first and last. sharing: what a port in shared_ports is to be, see PortMapping.
    """

    __slots__ = (
        "backend",
        "established_timeout_s",
        "external_interfaces",
        "inbound",
        "ip_forwarding",
        "masquerade",
        "port_range",
        "refuse_conflicts",
        "shared_ports",
        "sharing",
        "snat_addresses",
    )

    def __init__(self, normalised: dict[str, Any]) -> None:
        self.backend: str = normalised["backend"]
        self.ip_forwarding: bool = normalised["ipForwarding"]
        self.masquerade: tuple[int, ...] = tuple(normalised["masquerade"])
        self.external_interfaces: tuple[str, ...] = tuple(normalised["externalInterface"])
        addresses = [Address.parse(text) for text in normalised["snatAddress"]]
        self.snat_addresses = {address.family: address for address in addresses}
        first, last = normalised["portRange"]
        self.port_range: tuple[int, int] = (first, last)
        self.refuse_conflicts: bool = normalised["refuseConflicts"]
        self.shared_ports: list[int] = normalised["sharedPorts"]
        self.sharing: str = normalised["sharing"]
        self.established_timeout_s: int = normalised["conntrackTimeout"]
        self.inbound = Inbound(
            snat=normalised["snat"],
            masquerade_all=normalised["masqAll"],
            ipv6_localhost=normalised["ipv6Localhost"],
            isolate=normalised["isolate"],
            conditions={int(family): tuple(words) for family, words in normalised["conditions"].items()},
            mark_bit=normalised["markMasqBit"],
            set_mark_chain=normalised["externalSetMarkChain"],
        )

    def outbound_for(self, endpoints: list[Endpoint]) -> Outbound:
        """Return how a container with these addresses gets out; CniError(7) when there is no default route to get out by."""
        present = {endpoint.address.family for endpoint in endpoints}
        families = tuple(family for family in self.masquerade if family in present)
        external = {family: _external_interfaces(self.external_interfaces, family) for family in families}
        addresses = {family: address for family, address in self.snat_addresses.items() if family in families}
        return Outbound(families, external, addresses)

    def apply_to(self, attachment: Attachment) -> None:
        """Let an attachment have what its network asks for by now, but for the way out, which ADD found."""
        attachment.backend = self.backend
        attachment.inbound = self.inbound
        attachment.established_timeout_s = self.established_timeout_s
        for mapping in attachment.port_mappings:
            mapping.sharing = self.sharing if mapping.host_port in self.shared_ports else EXCLUSIVE


def _external_interfaces(configured: tuple[str, ...], family: int) -> tuple[str, ...]:
    if configured != ("default",):
        return configured
    interface = default_route_interface(family)
    if not interface:
        raise InvalidConfiguration(
            f'externalInterface is "default", but the host has no IPv{family} default route',
            'Name the interface, or set masquerade to the family that has one ("ipv4" or "ipv6").',
        )
    return (interface,)


def state_of(configuration: dict[str, Any]) -> State:
    """Return the state directory that the configuration names; CniError(7) when it names none that can be."""
    directory = configuration.get("stateDir", DEFAULT_DIRECTORY)
    if (
        not isinstance(directory, str)
        or not directory.startswith("/")
        or not directory.isprintable()
        or ".." in directory
    ):
        raise InvalidConfiguration(
            f"stateDir is {directory!r}, not an absolute path of printable characters without '..'"
        )
    return State(directory.rstrip("/"))


def read_settings(
    configuration: dict[str, Any], state: State, network: str, on_backend_change: Callable[[Settings], None]
) -> Settings:
    """Return the settings: from the cache where this very configuration was validated before.

    `on_backend_change` gets them before they are kept, when the network's backend is another one than before.
    """
    from .. import __version__

    given = {key: value for key, value in configuration.items() if key not in _VOLATILE}
    kept = state.read_configuration(network)
    if kept is not None and kept.get("program") == __version__ and kept.get("given") == given:
        try:
            return Settings(kept["normalised"])
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # it was damaged: made anew
    normalised = validate_configuration(given)
    settings = Settings(normalised)
    if kept is not None and kept["normalised"].get("backend") != settings.backend:
        on_backend_change(settings)
    state.write_configuration(network, {"program": __version__, "given": given, "normalised": normalised})
    return settings


def has_other_backend(configuration: dict[str, Any], state: State, network: str) -> bool:
    """Whether the network has had another backend than the one that is named now."""
    kept = state.read_configuration(network)
    return kept is not None and kept["normalised"].get("backend") != configuration.get("backend", NFTABLES)
