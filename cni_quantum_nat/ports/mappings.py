"""Port mappings as the runtime asks for them, entry by entry. No I/O."""

from __future__ import annotations

from ..model.addresses import Address
from ..model.attachments import PROTOCOLS, PortMapping
from ..model.errors import HostPortConflict, InvalidConfiguration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LAST_PORT = 65535


def parse_port_mappings(configuration: dict[str, Any], *, ipv6_localhost: bool = False) -> list[PortMapping]:
    """Read `runtimeConfig.portMappings`; CniError(7) names entry and key, CniError(100) a port wanted twice.

    ipv6_localhost: whether ::1 may be published.
    """
    runtime = configuration.get("runtimeConfig")
    if runtime is None:
        return []
    if not isinstance(runtime, dict):
        raise InvalidConfiguration("runtimeConfig is not an object")
    entries = runtime.get("portMappings")
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidConfiguration("runtimeConfig.portMappings is not a list")
    mappings = [parse_entry(f"portMappings[{number}]", entry) for number, entry in enumerate(entries)]
    if not ipv6_localhost:
        check_localhost(mappings)
    _check_distinct(mappings)
    return mappings


def check_localhost(mappings: list[PortMapping]) -> None:
    """Refuse ::1, where nothing makes it reach a container; CniError(7) names the entry."""
    for number, mapping in enumerate(mappings):
        if mapping.host_ip is not None and mapping.host_ip.family == 6 and mapping.host_ip.is_loopback:
            raise InvalidConfiguration(
                f"portMappings[{number}].hostIP is ::1, which the kernel never routes to another interface",
                'Use 127.0.0.1, which localhost falls back to, or set "ipv6Localhost": true.',
            )


def parse_entry(where: str, entry: object) -> PortMapping:
    """Read one entry; CniError(7) names it by `where`, and the key."""
    if not isinstance(entry, dict):
        raise InvalidConfiguration(f"{where} is not an object")
    # containerd sends HostPort, podman hostPort: Go's decoder, and so everybody's, does not mind the case.
    values = {key.lower(): value for key, value in entry.items()}
    return PortMapping(
        _parse_host_ip(f"{where}.hostIP", values.get("hostip")),
        _parse_host_port(f"{where}.hostPort", values["hostport"]) if "hostport" in values else 0,
        _parse_protocol(f"{where}.protocol", values.get("protocol")),
        _parse_port(f"{where}.containerPort", values.get("containerport")),
        allocated="hostport" not in values,
    )


def _parse_host_port(where: str, value: object) -> int:
    if value is None or (value == 0 and not isinstance(value, bool)):
        raise InvalidConfiguration(
            f"{where} is {'null' if value is None else 0}, which means not published",
            "Leave the key hostPort out to be given a free port, leave the entry out to publish none, "
            f"or name a port of the host, 1 to {_LAST_PORT}.",
        )
    return _parse_port(where, value)


def _parse_port(where: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LAST_PORT:
        raise InvalidConfiguration(f"{where} is {value!r}, not a number from 1 to {_LAST_PORT}")
    return value


def _parse_protocol(where: str, value: object) -> str:
    protocol = "tcp" if value in (None, "") else value
    if not isinstance(protocol, str) or protocol.lower() not in PROTOCOLS:
        raise InvalidConfiguration(f"{where} is {value!r}, not one of {', '.join(PROTOCOLS)}")
    return protocol.lower()


def _parse_host_ip(where: str, value: object) -> Address | None:
    if value in (None, ""):
        return None
    try:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a string")  # noqa: TRY004 - one way to be wrong
        address = Address.parse(value)
    except ValueError as error:
        raise InvalidConfiguration(f"{where}: {error}", "Leave it out for all addresses of the host.") from error
    if address.family == 6 and address.packed[:12] == b"\0" * 10 + b"\xff\xff":
        raise InvalidConfiguration(f"{where} is {value}, an IPv4 address in IPv6 clothes", "Write it as IPv4.")
    return address


def _check_distinct(mappings: list[PortMapping]) -> None:
    seen: dict[tuple[int, str, int, Address | None], PortMapping] = {}
    for mapping in mappings:
        for family in (4, 6):
            if not mapping.host_port or not mapping.serves(family):
                continue
            key = (family, mapping.protocol, mapping.host_port, mapping.specific_host_ip)
            if key in seen:
                raise HostPortConflict(
                    f"host port {mapping.host_port}/{mapping.protocol} is wanted twice in one request: "
                    f"{seen[key]} and {mapping}"
                )
            seen[key] = mapping
