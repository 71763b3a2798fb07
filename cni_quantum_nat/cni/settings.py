"""Read the settings of a network: from the cache, or from a new configuration, checked by ordinary.py or configuration.py.

A pod's start waits for this module.
"""

from __future__ import annotations

from ..kernel.routes import default_route_interfaces
from ..model.attachments import NFTABLES, Outbound
from ..model.errors import InvalidConfiguration
from ..model.settings import Settings
from ..state.directory import DEFAULT_DIRECTORY, State
from ..version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..model.addresses import Endpoint

# Keys that differ from call to call; they are checked each time.
_VOLATILE = ("prevResult", "runtimeConfig", "args", "cni.dev/valid-attachments", "cni.dev/attachments")


def outbound_for(settings: Settings, endpoints: list[Endpoint], *, follows_default_route: bool) -> Outbound:
    """Return the outbound NAT for these addresses.

    follows_default_route: look up the interfaces of the default route; raise CniError(7) if the host has none.
    """
    present = {endpoint.address.family for endpoint in endpoints}
    families = tuple(family for family in settings.masquerade if family in present)
    external = {
        family: _default_interfaces(family) if follows_default_route else settings.external_interfaces
        for family in families
    }
    addresses = {family: address for family, address in settings.snat_addresses.items() if family in families}
    return Outbound(families, external, addresses, settings.no_masquerade)


def _default_interfaces(family: int) -> tuple[str, ...]:
    interfaces = default_route_interfaces(family)
    if not interfaces:
        raise InvalidConfiguration(
            f'externalInterface is "default", but the host has no IPv{family} default route',
            'Name the interface, or set masquerade to "ipv4" or "ipv6", whichever has a default route.',
        )
    return interfaces


def state_of(configuration: dict[str, Any]) -> State:
    """Return the state directory in the configuration; raise CniError(7) if its path is invalid."""
    directory = configuration.get("stateDir")
    if directory is None:
        directory = DEFAULT_DIRECTORY
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
    """Return the settings, from the cache if this exact configuration was validated before.

    `on_backend_change` is called with new settings, before they are cached, if the network's backend has changed.
    """
    # null is as absent: programs in Go write it for what is not set.
    given = {key: value for key, value in configuration.items() if key not in _VOLATILE and value is not None}
    kept = state.read_configuration(network)
    if kept is not None and kept.get("program") == __version__ and kept.get("given") == given:
        try:
            return Settings(kept["normalised"])
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # the cache is damaged: validate again
    from .ordinary import normalised as normalised_if_ordinary  # only for a new configuration

    normalised = normalised_if_ordinary(given)
    if normalised is None:
        from .configuration import normalise  # rare: pydantic

        normalised = normalise(given)
    settings = Settings(normalised)
    if kept is not None and kept["normalised"].get("backend") != settings.backend:
        on_backend_change(settings)
    state.write_configuration(network, {"program": __version__, "given": given, "normalised": normalised})
    return settings


def has_other_backend(configuration: dict[str, Any], state: State, network: str) -> bool:
    """Return whether the configuration names another backend than the network has used so far."""
    kept = state.read_configuration(network)
    return kept is not None and kept["normalised"].get("backend") != (configuration.get("backend") or NFTABLES)
