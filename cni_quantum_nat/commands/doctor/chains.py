"""All chains on the host: of nf_tables, iptables-nft and iptables-legacy, at every hook of the IP, bridge and device families.

A rule is a list of expressions in libnftables' JSON. libnftables shows iptables' own expressions only as "xt", so such tables
are read with iptables-save, and converted to the same expressions.
"""

from __future__ import annotations

from bisect import bisect
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.iptables.programs import save
from ...model.errors import CniError
from .chain import IP, Chain
from .iptables import chains_of_iptables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
_FAMILIES = {"ip": {4}, "ip6": {6}, "inet": {4, 6}, "bridge": {4, 6}, "netdev": {4, 6}}
_IPTABLES = ("raw", "mangle", "nat", "filter", "security")


class Ruleset:
    """All chains.

    sets: the elements of named sets and maps, by (table, name). unread: errors for what could not be read. owned: the tables that only a
    running program can change.
    """

    def __init__(
        self,
        listed: list[dict[str, Any]],
        devices: dict[tuple[str, str], frozenset[str]] | None = None,
        owned: Iterable[str] = (),
    ) -> None:
        self.chains: dict[tuple[str, str], Chain] = {}
        self.sets: dict[tuple[str, str], list[Any]] = {}
        self.unread: list[str] = []
        self.owned = frozenset(owned)
        self._classes: dict[str, int] = {}  # of addresses that were asked for
        for kind, item in ((kind, item) for entry in listed for kind, item in entry.items()):
            table = f"{item.get('family')} {item.get('table')}"
            if kind == "chain" and item["family"] in _FAMILIES:
                self.chains[table, item["name"]] = _chain_of_nft(table, item, devices or {})
            elif kind in ("set", "map"):
                self.sets[table, item["name"]] = item.get("elem", [])
            elif kind == "rule" and (table, item["chain"]) in self.chains:
                chain = self.chains[table, item["chain"]]
                chain.rules.append(item["expr"])
                if chain.handles is not None:
                    chain.handles.append(item.get("handle", 0))
        self._read_iptables()

    def hooked(self, hook: str, family: int, layer: str = IP) -> list[Chain]:
        """Return the chains at a hook for this family, in order of priority."""
        return self._hooked.get((layer, hook, family), [])

    @cached_property
    def _hooked(self) -> dict[tuple[str, str, int], list[Chain]]:
        found: dict[tuple[str, str, int], list[Chain]] = {}
        for chain in sorted(self.chains.values(), key=lambda chain: chain.priority):
            for family in chain.families if chain.hook else ():
                found.setdefault((chain.layer, chain.hook, family), []).append(chain)
        return found

    # -- what rules tell apart: packets of one class have the same fate

    @cached_property
    def port_boundaries(self) -> list[int]:
        """The ports at which any rule may begin or cease to match: numbers and ranges that rules and sets name, and what follows them."""
        return sorted({port for value in self._values for port in _boundaries_in(value)})

    @cached_property
    def _address_boundaries(self) -> dict[int, list[int]]:
        found: dict[int, set[int]] = {4: set(), 6: set()}
        for value in self._values:
            for family, first, last in _addresses_in(value):
                found[family] |= {first, last + 1}
        return {family: sorted(numbers) for family, numbers in found.items()}

    @cached_property
    def _names(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """The names that rules mention, and the beginnings of names."""
        texts = {text for value in self._values for text in _texts_in(value)}
        texts |= {device for chain in self.chains.values() for device in chain.devices}
        return frozenset(texts), tuple(text[:-1] for text in texts if text.endswith("*"))

    @cached_property
    def possible_mark(self) -> int:
        """The bits of the packet mark that any rule may set."""
        bits = 0
        for chain in self.chains.values():
            for expression in (expression for rule in chain.rules for expression in rule):
                mangle = expression.get("mangle", {})
                if mangle.get("key", {}).get("meta", {}).get("key") == "mark":
                    bits |= mangle["value"] if isinstance(mangle["value"], int) else 0xFFFFFFFF
        return bits

    @property
    def has_hooks(self) -> bool:
        """Whether any chain meets packets."""
        return bool(self._hooked)

    def port_class(self, port: int) -> int:
        """Return the same number for ports that all rules treat alike."""
        return bisect(self.port_boundaries, port)

    def addresses(self, family: int) -> Iterator[str]:
        """Yield an address of each class: of those that all rules treat alike."""
        make = IPv4Address if family == 4 else IPv6Address
        most = (1 << (32 if family == 4 else 128)) - 1
        yield from (str(make(number)) for number in self._address_boundaries[family] if number <= most)

    def address_class(self, address: str) -> int:
        """Return the same number for addresses of one family that all rules treat alike."""
        if address not in self._classes:
            parsed = ip_address(address)
            self._classes[address] = bisect(self._address_boundaries[parsed.version], int(parsed))
        return self._classes[address]

    def name_class(self, name: str) -> str:
        """Return the same text for interfaces that all rules treat alike."""
        exact, beginnings = self._names
        return name if name in exact or name.startswith(beginnings or ("/",)) else ""

    @property
    def _values(self) -> Iterator[Any]:
        yield from (chain.rules for chain in self.chains.values())
        yield from self.sets.values()

    # -- iptables

    def _read_iptables(self) -> None:
        """Read the tables that iptables-nft made, and those of iptables-legacy, with iptables-save."""
        for family, prefix in ((4, "ip"), (6, "ip6")):
            made = {f"{prefix} {table}" for table in _IPTABLES} & {table for table, _ in self.chains}
            if any(chain.rules or chain.policy == "drop" for chain in self.chains.values() if chain.table in made):
                self._replace(family, "nft", made)
            if self._has_legacy(family):
                self._replace(family, "legacy", set())

    def _has_legacy(self, family: int) -> bool:
        try:
            return bool(_LEGACY_TABLES[family].read_text().strip())
        except FileNotFoundError:
            return False
        except PermissionError:
            self.unread.append(f"only root can read {_LEGACY_TABLES[family]}: run doctor as root")
            return False

    def _replace(self, family: int, variant: str, only: set[str]) -> None:
        try:
            text = save(family, variant)
        except CniError as error:
            chains = (chain for chain in self.chains.values() if chain.table in only)
            if variant == "legacy" or any("xt" in e for chain in chains for rule in chain.rules for e in rule):
                self.unread.append(error.message)
            return
        for chain in chains_of_iptables(text, family, variant):
            if not only or chain.table in only:
                self.chains[chain.table, chain.name] = chain


def _chain_of_nft(table: str, item: dict[str, Any], devices: dict[tuple[str, str], frozenset[str]]) -> Chain:
    hook, priority, policy = item.get("hook", ""), item.get("prio", 0), item.get("policy", "accept")
    found = devices.get((table, item["name"]), frozenset())
    kind = item.get("type", "filter")
    return Chain(_FAMILIES[item["family"]], table, item["name"], hook, priority, policy, [], kind, found, [])


def _boundaries_in(value: Any) -> Iterator[int]:
    """Yield the first number, and the one after the last, of each number or range in libnftables' JSON, whether ports or not."""
    if isinstance(value, dict):
        for key, content in value.items():
            if key == "range" and len(numbers := [*_numbers_of(content[0]), *_numbers_of(content[1])]) == 2:
                yield from (numbers[0], numbers[1] + 1)
            elif key != "counter":
                yield from _boundaries_in(content)
    elif isinstance(value, list):
        for content in value:
            yield from _boundaries_in(content)
    else:
        for number in _numbers_of(value):
            yield from (number, number + 1)


def _numbers_of(value: Any) -> list[int]:
    """Return the number that a value is, as iptables-save's are text; nothing for other values."""
    if isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isdecimal()):
        return [int(value)]
    return []


def _addresses_in(value: Any) -> Iterator[tuple[int, int, int]]:
    """Yield the addresses, prefixes and ranges of addresses in libnftables' JSON: family, first, last."""
    if isinstance(value, str):
        if "." in value or ":" in value:
            yield from _range_of(value, value)
    elif isinstance(value, list):
        for content in value:
            yield from _addresses_in(content)
    elif isinstance(value, dict) and "prefix" in value and isinstance(value["prefix"].get("addr"), str):
        network = ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}", strict=False)
        yield (network.version, int(network[0]), int(network[-1]))
    elif isinstance(value, dict) and "range" in value and isinstance(value["range"][0], str):
        yield from _range_of(*value["range"])
    elif isinstance(value, dict):
        for content in value.values():
            yield from _addresses_in(content)


def _range_of(first: str, last: str) -> Iterator[tuple[int, int, int]]:
    try:
        yield (ip_address(first).version, int(ip_address(first)), int(ip_address(last)))
    except ValueError:
        return  # other text, such as a MAC address


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for content in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(content)
