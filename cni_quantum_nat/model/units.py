"""Units, the things that attachments own: a host port, a container's address, or a network CIDR. No I/O.

A unit is taken, refused and released as a whole, however many rules it needs in the kernel.
A pod's start waits for this module.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .addresses import Address, Subnet


class HostPort:
    """A port of the host.

    family: 4 or 6. protocol: "tcp", "udp" or "sctp". address: the host address that it is on, None for all addresses of the family.
    """

    __slots__ = ("address", "family", "port", "protocol")

    def __init__(self, family: int, protocol: str, port: int, address: Address | None = None) -> None:
        self.family = family
        self.protocol = protocol
        self.port = port
        self.address = address

    @property
    def _fields(self) -> tuple[int, str, int, Address | None]:
        return self.family, self.protocol, self.port, self.address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostPort) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    @property
    def name(self) -> str:
        """What records call it."""
        return f"IPv{self.family} {self}"

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" + ("" if self.address is None else f" on {self.address}")


if TYPE_CHECKING:
    Unit = Address | Subnet | HostPort
