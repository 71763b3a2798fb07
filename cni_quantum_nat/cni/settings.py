"""What a network configuration asks for, as the hot path reads it: validated before, by slowpath/config.py."""

from __future__ import annotations

from ..kernel.routes import default_route_interface
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

# What differs from call to call is checked by plain code, each time.
_VOLATILE = ("prevResult", "runtimeConfig", "args", "cni.dev/valid-attachments", "cni.dev/attachments")


def outbound_for(settings: Settings, endpoints: list[Endpoint]) -> Outbound:
    """Return how a container with these addresses gets out; CniError(7) when there is no default route to get out by."""
    present = {endpoint.address.family for endpoint in endpoints}
    families = tuple(family for family in settings.masquerade if family in present)
    external = {family: _external_interfaces(settings.external_interfaces, family) for family in families}
    addresses = {family: address for family, address in settings.snat_addresses.items() if family in families}
    return Outbound(families, external, addresses)


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
    given = {key: value for key, value in configuration.items() if key not in _VOLATILE}
    kept = state.read_configuration(network)
    if kept is not None and kept.get("program") == __version__ and kept.get("given") == given:
        try:
            return Settings(kept["normalised"])
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # it was damaged: made anew
    from .configuration import normalise  # pydantic, for a configuration that was not seen before

    normalised = normalise(given)
    settings = Settings(normalised)
    if kept is not None and kept["normalised"].get("backend") != settings.backend:
        on_backend_change(settings)
    state.write_configuration(network, {"program": __version__, "given": given, "normalised": normalised})
    return settings


def has_other_backend(configuration: dict[str, Any], state: State, network: str) -> bool:
    """Whether the network has had another backend than the one that is named now."""
    kept = state.read_configuration(network)
    return kept is not None and kept["normalised"].get("backend") != configuration.get("backend", NFTABLES)
