"""The state of the host, each part read once, when a check first uses it."""

from __future__ import annotations

import json
import os
from functools import cache, cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.nftables.cover import COVER
from ...backends.nftables.layout import TABLE
from ...backends.nftables.programs import open_libnftables
from ...kernel.netlink import NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket, attributes, message
from ...kernel.routes import interface_towards
from ...model.addresses import Address
from ...model.errors import KERNEL_REFUSED, CniError
from ..records import read_records
from .chains import Ruleset
from .network import read_default_routes
from .paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.addresses import Subnet
    from ...model.attachments import Attachment, PortMapping
    from ...nat.records import Records
    from ...state.directory import State
    from .network import DefaultRoute

_PROC = Path("/proc/sys/net")
_NETLINK_NETFILTER = 12
_GETTABLE, _GETCHAIN = 10 << 8 | 1, 10 << 8 | 4
_TABLE_NAME, _TABLE_FLAGS, _DORMANT, _OWNER = 1, 2, 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK = 1, 3, 4
_HOOK_DEVICE, _HOOK_DEVICES = 3, 4
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_OURS = (("inet", TABLE), ("inet", COVER))


class Snapshot:
    """The host, its rules and the records."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.kept: dict[str, Any] = {}  # results that several checks use

    @cached_property
    def records(self) -> Records:
        return read_records(self.state)

    @cached_property
    def living(self) -> list[Attachment]:
        """The attachments with an existing network namespace."""
        return self.records.in_force

    @cached_property
    def paths(self) -> Paths:
        """The host's links and addresses, and the path to each living attachment."""
        return Paths(self.living)

    def published(self) -> Iterator[tuple[Attachment, PortMapping, int]]:
        """Yield the living attachments' published ports, for each address family."""
        for attachment in self.living:
            for mapping in attachment.port_mappings:
                for family in sorted(attachment.published_families):
                    if mapping.serves(family):
                        yield attachment, mapping, family

    @cached_property
    def families(self) -> set[int]:
        """The address families in use."""
        used: set[int] = set()
        for attachment in self.living:
            used |= {*attachment.outbound.masquerade, *attachment.published_families}
        return used

    @cached_property
    def foreign(self) -> Ruleset:
        """The chains of other programs; raise CniError(101) if they cannot be listed."""
        listed, owned = [], []
        for family, name, is_owned in list_tables():
            if (family, name) not in _OURS:
                listed += _list_owned(family, name) if is_owned else list_json(f"table {family} {name}")
                owned += [f"{family} {name}"] if is_owned else []
        return Ruleset(listed, _list_devices(), owned)

    @cached_property
    def default_routes(self) -> list[DefaultRoute]:
        """The default routes, by family, preferred ones first."""
        return [route for route in read_default_routes() if route.number in self.paths.links]

    @cached_property
    def external(self) -> dict[int, list[str]]:
        """The interfaces of the default routes, by family, preferred ones first."""
        names: dict[int, list[str]] = {4: [], 6: []}
        for route in self.default_routes:
            names[route.family].append(self.paths.links[route.number].name)
        return {family: list(dict.fromkeys(found)) for family, found in names.items()}

    @cached_property
    def outer_addresses(self) -> dict[tuple[int, str], str]:
        """The first address of each interface that is not link-local, by family and interface."""
        found: dict[tuple[int, str], str] = {}
        for one in self.paths.addresses:
            if one.number in self.paths.links and not ip_address(str(one.address)).is_link_local:
                found.setdefault((one.address.family, self.paths.links[one.number].name), str(one.address))
        return found

    def is_outside(self, address: str, external: str) -> bool:
        """Whether packets of an address may arrive at the external interface: it is not the host's, of another interface's subnet, or special."""
        parsed = ip_address(address)
        if parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified or parsed.is_link_local:
            return False
        one = Address.parse(address)
        return not any(subnet.contains(one) for name, subnet in self._subnets if name != external)

    @cached_property
    def _subnets(self) -> list[tuple[str, Subnet]]:
        """The connected subnets, with their interfaces."""
        links = self.paths.links
        return [(links[one.number].name, one.subnet) for one in self.paths.addresses if one.number in links]

    def interface_of(self, attachment: Attachment, family: int) -> str:
        """Return the host interface towards the container; empty if it is unknown."""
        endpoint = attachment.published_endpoint(family)
        return "" if endpoint is None else self.interface_towards(endpoint.address) or endpoint.host_interface

    @staticmethod
    def interface_towards(address: Address) -> str:
        """Return the host interface towards an address; empty if there is no route."""
        try:
            return interface_towards(address)
        except CniError:
            return ""


def list_tables() -> list[tuple[str, str, bool]]:
    """List the tables that meet packets, so not dormant ones: family, name, and whether a process owns it.

    libnftables' own listing in JSON reads beyond its buffers for an owned table (1.0.6), and so does that of such a table: see _list_owned.
    """
    tables = []
    for family, parts in _dump(_GETTABLE, "tables"):
        flags = int.from_bytes(parts.get(_TABLE_FLAGS, b""), "big")
        if not flags & _DORMANT:
            tables.append((family, _text(parts[_TABLE_NAME]), bool(flags & _OWNER)))
    return tables


def _list_devices() -> dict[tuple[str, str], frozenset[str]]:
    """Return the devices of chains that are attached to some, by table and name: libnftables 1.0.6 leaves them out of its JSON."""
    found = {}
    for family, parts in _dump(_GETCHAIN, "chains"):
        hook = list(attributes(parts.get(_CHAIN_HOOK, b"")))
        names = [value for kind, value in hook if kind == _HOOK_DEVICE]
        names += [value for kind, nested in hook if kind == _HOOK_DEVICES for _, value in attributes(nested)]
        if names:
            table = f"{family} {_text(parts[_CHAIN_TABLE])}"
            found[table, _text(parts[_CHAIN_NAME])] = frozenset(map(_text, names))
    return found


def _dump(kind: int, what: str) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Yield the family and the attributes of all tables or chains; raise CniError(101) if they cannot be listed."""
    netfilter = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        for reply in netfilter.dump_unchanged(message(kind, NLM_F_REQUEST | NLM_F_DUMP, 1, bytes(4))):
            if reply.error_number:
                raise CniError(
                    KERNEL_REFUSED, f"cannot list {what}: {os.strerror(reply.error_number)}", "Run it as root."
                )
            if reply.payload[0] in _FAMILIES:
                yield _FAMILIES[reply.payload[0]], dict(attributes(reply.payload, 4))
    except OSError as error:
        raise CniError(KERNEL_REFUSED, f"cannot list {what}: {error.strerror}", "Run it as root.") from error
    finally:
        netfilter.close()


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def list_json(what: str) -> list[dict[str, Any]]:
    """Return what `nft list` prints as JSON; raise CniError(101) if it fails."""
    nft = open_libnftables()
    nft.set_json_output(True)
    status, output, error = nft.cmd(f"list {what}")
    if status:
        raise CniError(KERNEL_REFUSED, f"cannot list {what}: {' '.join(error.split())}", "Run it as root.")
    listed: list[dict[str, Any]] = json.loads(output)["nftables"]
    return listed


def _list_owned(family: str, table: str) -> list[dict[str, Any]]:
    """List a table that another process owns, such as firewalld's from 2.3 on: by its sets and chains, since the table's own flags are misread."""
    found = [entry for kind in ("sets", "maps") for entry in list_json(f"{kind} {family}") if _is_of(entry, table)]
    for entry in list_json(f"chains {family}"):
        if _is_of(entry, table):
            found += list_json(f"chain {family} {table} {entry['chain']['name']}")
    return found


def _is_of(entry: dict[str, Any], table: str) -> bool:
    return any(value.get("table") == table for value in entry.values())


@cache
def sysctl(name: str) -> str | None:
    """Read a sysctl below net/; None if the kernel lacks it."""
    try:
        return (_PROC / name).read_text().strip()
    except OSError:
        return None
