"""Parse the port mappings that a runtime requests. No I/O.

A pod's start waits for this module.
"""

from __future__ import annotations

from ..model.addresses import Address
from ..model.attachments import PROTOCOLS, PortMapping
from ..model.errors import HostPortConflict, InvalidConfiguration
from ..model.ranges import LEAST, join, part_of, ports_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..model.addresses import Subnet
    from ..model.attachments import Attachment

_LAST_PORT = 65535


def parse_port_mappings(configuration: dict[str, Any], *, ipv6_localhost: bool = False) -> list[PortMapping]:
    """Parse `runtimeConfig.portMappings`.

    ipv6_localhost: whether ::1 may be published.

    Raises:
        CniError: (7) an entry is invalid; (100) a port is requested twice.
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
    mappings = _parse_entries(entries)
    if not ipv6_localhost:
        check_localhost(mappings)
    return join(_distinct(mappings))


def _parse_entries(entries: list[object]) -> list[PortMapping]:
    """Parse the entries; those with ports in a row become one mapping.

    A runtime writes a range as tens of thousands of entries, so one that is like the last, with both ports one higher, is only compared.
    """
    mappings: list[PortMapping] = []
    following: dict[str, Any] = {}  # the entry that would continue the last mapping
    one, other = "", ""  # its keys that name ports
    last = 0  # the last port of the mapping; 0 if nothing can continue it
    entry: Any
    for number, entry in enumerate(entries):
        # To Python, 80 == 80.0.
        if last and entry == following and type(entry[one]) is type(entry[other]) is int:
            last += 1
            mappings[-1].size += 1
        else:
            mappings.append(parse_entry(f"portMappings[{number}]", entry))
            keys = [key for key in entry if key.lower() in {"hostport", "containerport"}]
            last = mappings[-1].host_port
            if last != mappings[-1].container_port or len(keys) != 2:
                last = 0
                continue
            one, other = keys
            following = {**entry}
        following[one] = following[other] = last + 1
        if last == _LAST_PORT:
            last = 0
    return mappings


def keep_live_changes(attachment: Attachment, former: Attachment) -> None:
    """Keep what an operator published and withdrew since the runtime asked last; `former` is the record with that.

    What the runtime asks for goes before what an operator has published on the same host port.
    """
    mappings, withdrawn = list(attachment.port_mappings), []
    for gone in former.withdrawn:
        kept: list[PortMapping] = []
        for mapping in mappings:
            if mapping.live or not _asks_for(mapping, gone):
                kept.append(mapping)
            elif mapping.size == 1:
                mapping.host_port = mapping.host_port or gone.host_port
                withdrawn.append(mapping)
            else:  # the range is another one by now
                first, last = max(mapping.host_port, gone.host_port), min(mapping.last_host_port, gone.last_host_port)
                kept += [
                    *part_of(mapping, mapping.host_port, first - 1),
                    *part_of(mapping, last + 1, mapping.last_host_port),
                ]
                withdrawn += part_of(mapping, first, last)
        mappings = kept
    families = {endpoint.address.family for endpoint in attachment.endpoints}
    for live in former.port_mappings:
        is_taken = any(mapping.host_port and mapping.is_same_port(live, families) for mapping in mappings)
        if live.live and not is_taken and any(map(live.serves, families)):
            mappings.append(live.copy())
    attachment.port_mappings, attachment.withdrawn = mappings, withdrawn


def _asks_for(mapping: PortMapping, withdrawn: PortMapping) -> bool:
    """Whether a request has ports of one that was withdrawn; that had its host port allocated if it names none."""
    if not mapping.host_port:
        return withdrawn.allocated and mapping.asked_for == withdrawn.asked_for
    shift = mapping.container_port - mapping.host_port
    is_same_way = (mapping.protocol, mapping.host_ip, shift) == (
        withdrawn.protocol,
        withdrawn.host_ip,
        withdrawn.container_port - withdrawn.host_port,
    )
    return (
        is_same_way and mapping.host_port <= withdrawn.last_host_port and withdrawn.host_port <= mapping.last_host_port
    )


def check_localhost(mappings: list[PortMapping]) -> None:
    """Refuse mappings on ::1; raise CniError(7), which names the entry."""
    number = 0
    for mapping in mappings:
        if mapping.host_ip is not None and mapping.host_ip.family == 6 and mapping.host_ip.is_loopback:
            raise InvalidConfiguration(
                f"portMappings[{number}].hostIP is ::1, which the kernel never routes to another interface",
                'Use 127.0.0.1, or set "ipv6Localhost": true in the network configuration.',
            )
        number += mapping.size


def parse_entry(where: str, entry: object) -> PortMapping:
    """Parse one entry; raise CniError(7), which names `where` and the key."""
    if not isinstance(entry, dict):
        raise InvalidConfiguration(f"{where} is not an object")
    # containerd sends HostPort, podman hostPort: Go's decoder ignores case.
    values = {key.lower(): value for key, value in entry.items()}
    return PortMapping(
        _parse_host_ip(f"{where}.hostIP", values.get("hostip")),
        _parse_host_port(f"{where}.hostPort", values["hostport"]) if "hostport" in values else 0,
        _parse_protocol(f"{where}.protocol", values.get("protocol")),
        _parse_port(f"{where}.containerPort", values.get("containerport")),
        allocated="hostport" not in values,
        allow_from=_parse_allow_from(f"{where}.allowFrom", values.get("allowfrom")),
        publish_on=_parse_publish_on(f"{where}.publishOn", values.get("publishon")),
    )


def _parse_allow_from(where: str, value: object) -> tuple[Subnet, ...]:
    if value is None:
        return ()
    from ..model.filters import parse_sources  # only where a mapping names clients

    try:
        return parse_sources(_require_list(value))
    except ValueError as error:
        raise InvalidConfiguration(
            f"{where}: {error}", 'For example: "allowFrom": ["192.0.2.0/24", "2001:db8::/32"].'
        ) from error


def _parse_publish_on(where: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    from ..model.filters import parse_interfaces  # as above

    try:
        return parse_interfaces(_require_list(value))
    except ValueError as error:
        raise InvalidConfiguration(
            f"{where}: {error}", 'For example: "publishOn": ["eth1"]; "lo" stands for clients on this host.'
        ) from error


def _require_list(value: object) -> list[object]:
    """Return a list that is not empty: whether an empty one means everybody or nobody, opinions differ."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is not a list with at least one entry")
    return value


def _parse_host_port(where: str, value: object) -> int:
    if value is None or (value == 0 and not isinstance(value, bool)):
        raise InvalidConfiguration(
            f"{where} is {'null' if value is None else 0}, not a number from 1 to {_LAST_PORT}",
            "Leave out the key hostPort to get a free port, or leave out the entry to publish none.",
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
            raise ValueError(f"{value!r} is not a string")  # noqa: TRY004 - caught below
        address = Address.parse(value)
    except ValueError as error:
        raise InvalidConfiguration(
            f"{where}: {error}", "Leave it out to publish on all addresses of the host."
        ) from error
    if address.family == 6 and address.packed[:12] == b"\0" * 10 + b"\xff\xff":
        raise InvalidConfiguration(f"{where} is {value}, an IPv4-mapped IPv6 address", "Write it as an IPv4 address.")
    return address


def _distinct(mappings: list[PortMapping]) -> list[PortMapping]:
    """Return the mappings, one that is given twice once; CniError(100) when two want the same host port for different things."""
    mappings = _without_overlaps(mappings)
    seen: dict[tuple[int, str, int, Address | None], PortMapping] = {}
    distinct: dict[str, PortMapping] = {}
    for mapping in mappings:
        same = distinct.get(str(mapping))
        if same is not None and same.filters == mapping.filters:
            continue
        keys = [
            (family, mapping.protocol, mapping.host_port, mapping.specific_host_ip)
            for family in (4, 6)
            if mapping.host_port and mapping.size == 1 and mapping.serves(family)
        ]
        former = same or next((seen[key] for key in keys if key in seen), None)
        seen.update(dict.fromkeys(keys, mapping))
        distinct[str(mapping)] = mapping
        if former is not None:
            raise HostPortConflict(
                f"host port {mapping.host_port}/{mapping.protocol} is requested twice in one call: {former} and {mapping}",
                "Publish each container port on its own host port.",
            )
    return list(distinct.values())


def _without_overlaps(mappings: list[PortMapping]) -> list[PortMapping]:
    """Return the mappings with ranges as single ports where they are short or overlap with another one: errors name single ports."""
    parts: list[PortMapping] = []
    for mapping in mappings:
        overlaps = mapping.size > 1 and any(
            other is not mapping and mapping.is_same_port(other, {4, 6}) for other in mappings
        )
        parts += ports_of(mapping) if overlaps or 1 < mapping.size < LEAST else [mapping]
    return parts
