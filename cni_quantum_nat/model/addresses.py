"""IP addresses, subnets, and the addresses of a container. No I/O.

A pod's start waits for this module.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton


class Address:
    """An IP address: `family` is 4 or 6, `packed` 4 or 16 bytes in network order."""

    __slots__ = ("family", "packed")

    def __init__(self, family: int, packed: bytes) -> None:
        self.family = family
        self.packed = packed

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse the usual text form; raise ValueError if it is not an IP address."""
        family = 6 if ":" in text else 4
        try:
            return cls(family, inet_pton(AF_INET6 if family == 6 else AF_INET, text))
        except (OSError, ValueError):
            raise ValueError(f"{text!r} is not an IP address") from None

    def __str__(self) -> str:
        return inet_ntop(AF_INET6 if self.family == 6 else AF_INET, self.packed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    @property
    def is_unspecified(self) -> bool:
        """Whether this is 0.0.0.0 or ::."""
        return not any(self.packed)

    @property
    def is_loopback(self) -> bool:
        """Whether this is in 127.0.0.0/8 or ::1."""
        return self.packed[0] == 127 if self.family == 4 else self.packed == b"\0" * 15 + b"\1"


class Subnet:
    """A subnet: its first address and its prefix length."""

    __slots__ = ("first", "prefix_length")

    def __init__(self, first: Address, prefix_length: int) -> None:
        self.first = first
        self.prefix_length = prefix_length

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """Read ADDRESS/PREFIX; bits beyond the prefix are cleared. ValueError says what is wrong."""
        return Endpoint.parse(text).network

    def __str__(self) -> str:
        return f"{self.first}/{self.prefix_length}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subnet) and (self.first, self.prefix_length) == (other.first, other.prefix_length)

    def __hash__(self) -> int:
        return hash((self.first, self.prefix_length))

    def contains(self, address: Address) -> bool:
        """Return whether the address is in the subnet."""
        if len(address.packed) != len(self.first.packed):
            return False
        spare = len(address.packed) * 8 - self.prefix_length
        return int.from_bytes(address.packed, "big") >> spare == int.from_bytes(self.first.packed, "big") >> spare

    def covers(self, other: Subnet) -> bool:
        """Return whether all of the other subnet is in this one."""
        return self.prefix_length <= other.prefix_length and self.contains(other.first)

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.first.family

    @property
    def last(self) -> bytes:
        """Its last address, packed."""
        bits = len(self.first.packed) * 8
        number = int.from_bytes(self.first.packed, "big") | ((1 << (bits - self.prefix_length)) - 1)
        return number.to_bytes(bits // 8, "big")

    @property
    def after(self) -> bytes:
        """The address after the last one, packed; empty if there is none."""
        bits = len(self.first.packed) * 8
        number = int.from_bytes(self.first.packed, "big") + (1 << (bits - self.prefix_length))
        return b"" if number >> bits else number.to_bytes(bits // 8, "big")


class Endpoint:
    """An address of the container, its prefix length, and the host interface that routes to it.

    `host_interface` is empty until it is needed.
    """

    __slots__ = ("address", "host_interface", "prefix_length")

    def __init__(self, address: Address, prefix_length: int, host_interface: str = "") -> None:
        self.address = address
        self.prefix_length = prefix_length
        self.host_interface = host_interface

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse ADDRESS/PREFIX; raise ValueError if it is not valid."""
        address_text, slash, length_text = text.partition("/")
        address = Address.parse(address_text)
        longest = len(address.packed) * 8
        if not slash or not (length_text.isascii() and length_text.isdigit()) or not 1 <= int(length_text) <= longest:
            raise ValueError(f"{text!r} needs a prefix length from 1 to {longest}, for example {address}/{longest}")
        return cls(address, int(length_text))

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix_length}"

    @property
    def network(self) -> Subnet:
        """The subnet that it is in."""
        bits = len(self.address.packed) * 8
        mask = (1 << bits) - (1 << (bits - self.prefix_length))
        first = (int.from_bytes(self.address.packed, "big") & mask).to_bytes(bits // 8, "big")
        return Subnet(Address(self.address.family, first), self.prefix_length)
