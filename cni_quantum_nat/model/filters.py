"""Read which clients may reach a host port: by source network, by incoming interface. No I/O.

The plugin has this module in itself, but a call imports it only where a port mapping names clients.
"""

from __future__ import annotations

from .addresses import Address, Subnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# An interval set has no empty prefix: all addresses of a family are two networks.
_HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}


def is_interface_name(name: str) -> bool:
    """Whether an interface can have this name, and nft and iptables-restore read it as one: quotes, backslash and * are syntax."""
    strange = not name.isprintable() or any(c in '/:"\\*' or c.isspace() for c in name)
    return not strange and 1 <= len(name.encode()) <= 15 and name not in (".", "..")


def parse_sources(texts: Iterable[object]) -> tuple[Subnet, ...]:
    """Read networks and addresses of clients; return networks with the same addresses, of which none contains another.

    ValueError says what is wrong.
    """
    found = dict.fromkeys(subnet for text in texts for subnet in _parse_source(text))
    widest: list[Subnet] = []  # in order, a network comes right after those that contain it
    for subnet in sorted(found, key=lambda s: (s.family, s.first.packed, s.prefix_length)):
        if not (widest and widest[-1].covers(subnet)):
            widest.append(subnet)
    kept = set(widest)
    return tuple(subnet for subnet in found if subnet in kept)


def _parse_source(text: object) -> list[Subnet]:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a string")  # noqa: TRY004 - as for any other value
    written, slash, length = text.partition("/")
    address = Address.parse(written)
    if length == "0" and address.is_unspecified:
        return [Subnet.parse(half) for half in _HALVES[address.family]]
    subnet = Subnet.parse(text if slash else f"{text}/{8 * len(address.packed)}")
    if subnet.first != address:
        raise ValueError(f"{text!r} has bits beyond its prefix: write {subnet}")
    if subnet.family == 6 and address.packed.startswith(b"\0" * 10 + b"\xff\xff"):
        raise ValueError(f"{text!r} is IPv4-mapped: write it as IPv4")
    return [subnet]


def parse_interfaces(names: Iterable[object]) -> tuple[str, ...]:
    """Read names of interfaces; return each once. ValueError says what is wrong."""
    found: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or not is_interface_name(name):
            raise ValueError(
                f"{name!r} is not an interface name (1 to 15 bytes, without '/', ':', '\"', backslash, '*' or white space)"
            )
        found[name] = None
    return tuple(found)
