"""Units, the things that attachments own: a host port or a range of them, a container's address, or a network CIDR. No I/O.

A unit is taken, refused and released as a whole, however many rules it needs in the kernel.
A pod's start waits for this module.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .addresses import Address, Subnet


class PortRange:
    """The ports from `first` to `last`: a field of a key that matches each of them."""

    __slots__ = ("first", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PortRange) and (self.first, self.last) == (other.first, other.last)

    def __hash__(self) -> int:
        return hash((self.first, self.last))

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class HostPort:
    """A port of the host, or a range of ports, which is one unit too.

    family: 4 or 6. protocol: "tcp", "udp" or "sctp". port: the first one. address: the host address that it is on, None for all
    addresses of the family. size: the number of ports.
    """

    __slots__ = ("address", "family", "port", "protocol", "size")

    def __init__(self, family: int, protocol: str, port: int, address: Address | None = None, size: int = 1) -> None:
        self.family = family
        self.protocol = protocol
        self.port = port
        self.address = address
        self.size = size

    @property
    def last(self) -> int:
        """The last port."""
        return self.port + self.size - 1

    @property
    def ports(self) -> int | PortRange:
        """The port, or all ports of the range, as a field of a key."""
        return self.port if self.size == 1 else PortRange(self.port, self.last)

    def common_with(self, other: HostPort) -> HostPort | None:
        """Return the ports that both have, None if there are none."""
        if (self.family, self.protocol, self.address) != (other.family, other.protocol, other.address):
            return None
        first, last = max(self.port, other.port), min(self.last, other.last)
        return HostPort(self.family, self.protocol, first, self.address, last - first + 1) if first <= last else None

    @property
    def _fields(self) -> tuple[int, str, int, int, Address | None]:
        return self.family, self.protocol, self.port, self.size, self.address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostPort) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    @property
    def name(self) -> str:
        """What records call it."""
        return f"IPv{self.family} {self}"

    def __str__(self) -> str:
        return f"{self.ports}/{self.protocol}" + ("" if self.address is None else f" on {self.address}")


class Overlaps:
    """A set of units that finds those that have something in common with another unit: equal ones, and host ports that overlap."""

    __slots__ = ("_ranges", "_units")

    def __init__(self, units: Iterable[Unit] = ()) -> None:
        self._units: dict[Unit, None] = {}
        self._ranges: list[HostPort] = []
        for unit in units:
            self.add(unit)

    def add(self, unit: Unit) -> None:
        """Add a unit."""
        if unit not in self._units:
            self._units[unit] = None
            if isinstance(unit, HostPort) and unit.size > 1:
                self._ranges.append(unit)

    def of(self, unit: Unit) -> list[Unit]:
        """Return the units that have something in common with this one. For a range of ports, all units are looked through."""
        if not isinstance(unit, HostPort) or (unit.size == 1 and not self._ranges):
            return [unit] if unit in self._units else []
        if unit.size == 1:
            equal: list[Unit] = [unit] if unit in self._units else []
            return [*equal, *(held for held in self._ranges if held.common_with(unit))]
        return [held for held in self._units if isinstance(held, HostPort) and held.common_with(unit)]


if TYPE_CHECKING:
    Unit = Address | Subnet | HostPort
