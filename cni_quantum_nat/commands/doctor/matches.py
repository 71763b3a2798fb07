"""Compare a packet with the matches of a rule. A match is true, false, or unknown (None)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .chain import Chain, Expression
    from .chains import Ruleset

_PORTS = {"dport": "port", "sport": "source_port"}
_TRANSPORTS = ("tcp", "udp", "sctp", "udplite", "dccp")
_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_BY_HISTORY = ("xt", "limit", "quota", "ct count")  # what is matched depends on what cannot be seen
_OTHER_HEADERS = ("icmp", "icmpv6", "arp", "vlan", "esp", "ah", "comp", "gre", "igmp")


class Packet(NamedTuple):
    """The packet to trace. A field that is None or empty is unknown, and may match.

    state: of its connection: "new" or "established", "invalid" before connection tracking has seen it. status: "dnat", "snat" or both if
    the connection is translated. local: which of its addresses, "saddr" and "daddr", are the host's. original: source address, destination
    address and port of the connection's first packet, before it was translated. tcp_flags: None is unknown.
    """

    family: int
    incoming: str
    outgoing: str
    source: str
    destination: str
    protocol: str
    port: int | None
    state: str = "new"
    status: frozenset[str] = frozenset()
    source_port: int | None = None
    local: frozenset[str] | None = None
    original: tuple[str, str, int | None] = ("", "", None)
    is_reply: bool = False
    tcp_flags: frozenset[str] | None = None


def every(answers: Iterable[bool | None]) -> bool | None:
    known: bool | None = True
    for answer in answers:
        if answer is False:
            return False
        if answer is None:
            known = None
    return known


def matches(expression: Expression, packet: Packet, ruleset: Ruleset, chain: Chain) -> bool | None:
    if any(kind in expression for kind in _BY_HISTORY) or "stmt" in expression.get("set", {}):  # the latter is a meter
        return None if expression.get("xt", {}).get("type") != "target" else True
    if "match" not in expression:
        return True
    match = expression["match"]
    left, right, operator = match["left"], match["right"], match["op"]
    if "&" in left:
        return _matches_bits(left["&"], operator, right, packet, ruleset)
    if left.get("meta", {}).get("key") == "mark":
        return _matches_bits([left, 0xFFFFFFFF], operator, right, packet, ruleset)
    value = value_of(left, packet)
    if value == "":  # the packet has no such header or connection: no match, whatever the operator
        return False
    return None if value is None else _compare(value, operator, right, ruleset, chain)


def _matches_bits(parts: Any, operator: str, right: Any, packet: Packet, ruleset: Ruleset) -> bool | None:
    """Compare some bits of the packet mark, which is 0 unless a rule sets it, or some of TCP's flags."""
    left, mask = parts if len(parts) == 2 else ({}, None)
    equal: bool | None
    if left.get("meta", {}).get("key") == "mark" and isinstance(mask, int) and isinstance(right, int):
        equal = False if right & ~ruleset.possible_mark & mask else None if ruleset.possible_mark & mask else right == 0
    elif left.get("payload", {}).get("field") == "flags":
        flags, masked, wanted = packet.tcp_flags, _words(mask), _words(right)
        if packet.protocol != "tcp":
            return False
        equal = None if flags is None or masked is None or wanted is None else flags & masked == wanted
    else:
        return None
    return not equal if operator == "!=" and equal is not None else equal


def _words(value: Any) -> set[str] | None:
    if isinstance(value, dict) and "|" in value:
        value = value["|"]
    if isinstance(value, str):
        return {value}
    return {str(word) for word in value} if isinstance(value, list) else None


def _compare(value: Any, operator: str, right: Any, ruleset: Ruleset, chain: Chain) -> bool | None:
    equal = equals(value, right, operator, ruleset, chain)
    return not equal if operator in ("!=", "!") and equal is not None else equal


def value_of(left: Any, packet: Packet) -> Any:
    """Return the packet's value for the left side of a match; None if it is unknown."""
    if "payload" in left:
        return _payload(left["payload"], packet)
    if "concat" in left:
        values = [value_of(part, packet) for part in left["concat"]]
        return tuple(values)
    if "ct" in left:
        return _tracked(left["ct"], packet)
    if "fib" in left:
        return _routed(left["fib"], packet)
    key = left.get("meta", {}).get("key")
    known: dict[str, Callable[[], Any]] = {
        "iifname": lambda: packet.incoming or None,
        "iif": lambda: packet.incoming or None,
        "oifname": lambda: packet.outgoing or None,
        "oif": lambda: packet.outgoing or None,
        "l4proto": lambda: packet.protocol,
        "nfproto": lambda: f"ipv{packet.family}",
        "protocol": lambda: "ip" if packet.family == 4 else "ip6",
        "pkttype": lambda: {"host", "unicast"},
    }
    return known[key]() if key in known else None


def _tracked(ct: dict[str, Any], packet: Packet) -> Any:
    key = ct.get("key")
    if key in ("state", "status", "state or status"):
        return {"state": {packet.state}, "status": set(packet.status)}.get(key, {packet.state, *packet.status})
    if packet.state == "invalid":  # it has no connection yet, and nothing of one matches
        return ""
    if key == "direction":
        return "reply" if packet.is_reply else "original"
    source, destination, port = packet.original
    if ct.get("dir") == "original":
        originals = {"proto-dst": port, "saddr": source or None, "daddr": destination or None}
        field = str(key).removeprefix("ip ").removeprefix("ip6 ")
        return originals.get(field)
    return None


def _routed(fib: dict[str, Any], packet: Packet) -> Any:
    """Return what the host's routes say of the packet. All that are traced come in by the interface that leads to their source."""
    flags = fib.get("flags", [])
    if fib.get("result") == "type":
        return None if packet.local is None or len(flags) != 1 else "local" if flags[0] in packet.local else "unicast"
    return True if "saddr" in flags and packet.incoming else None


def _payload(payload: dict[str, Any], packet: Packet) -> Any:  # noqa: PLR0911 - one for each kind
    of, field = payload.get("protocol"), str(payload.get("field"))
    if of in ("ip", "ip6"):
        if of != ("ip" if packet.family == 4 else "ip6"):
            return ""  # the packet has no such header: no match
        wanted = {"saddr": packet.source or None, "daddr": packet.destination or None}
        return {**wanted, "protocol": packet.protocol, "nexthdr": packet.protocol}.get(field)
    if of in (*_TRANSPORTS, "th"):
        if of not in ("th", packet.protocol):
            return ""
        if field == "flags" and of == "tcp":
            return set(packet.tcp_flags) if packet.tcp_flags is not None else None
        return getattr(packet, _PORTS[field]) if field in _PORTS else None
    if of == "ether" and field == "type":
        return "ip" if packet.family == 4 else "ip6"
    return "" if of in _OTHER_HEADERS else None


def equals(value: Any, right: Any, operator: str, ruleset: Ruleset, chain: Chain) -> bool | None:  # noqa: PLR0911 - one for each kind
    if value is None or value == "":  # of a concatenation: unknown, or the packet has none
        return None if value is None else False
    if isinstance(value, set):
        names = {right} if isinstance(right, str) else set(right.get("set", ()) if isinstance(right, dict) else right)
        return bool(value & {str(name) for name in names})
    if isinstance(right, str) and right.startswith("@"):
        return _in_set(value, ruleset.sets.get((chain.table, right[1:])), ruleset, chain)
    if isinstance(right, list):
        return any(equals(value, one, operator, ruleset, chain) for one in right)
    if isinstance(right, dict):
        return _in_dict(value, right, ruleset, chain)
    if isinstance(value, bool) or isinstance(right, bool):
        return value is right
    if operator not in ("==", "!=", "in"):
        return _ordered(value, operator, right)
    text, wanted = str(value), str(right)
    return text.startswith(wanted[:-1]) if wanted.endswith("*") else text == wanted


def _ordered(value: Any, operator: str, right: Any) -> bool | None:
    if not isinstance(value, int) or not isinstance(right, int):
        return None
    return {"<": value < right, ">": value > right, "<=": value <= right, ">=": value >= right}.get(operator)


def _in_dict(value: Any, right: dict[str, Any], ruleset: Ruleset, chain: Chain) -> bool | None:  # noqa: PLR0911 - one for each kind
    if "set" in right:
        return _in_set(value, right["set"], ruleset, chain)
    if "elem" in right:
        return equals(value, right["elem"]["val"], "==", ruleset, chain)
    if "concat" in right and isinstance(value, tuple) and len(value) == len(right["concat"]):
        return every(equals(a, b, "==", ruleset, chain) for a, b in zip(value, right["concat"], strict=True))
    if "prefix" in right and value:
        prefix = right["prefix"]
        return ip_address(value) in ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
    if "range" in right and value:
        first, last = right["range"]
        number = value if isinstance(value, int) else _PROTOCOL_NUMBERS.get(value)
        if number is not None:
            return int(first) <= number <= int(last)
        return int(ip_address(first)) <= int(ip_address(value)) <= int(ip_address(last))
    return None if value else False


def _in_set(value: Any, elements: Any, ruleset: Ruleset, chain: Chain) -> bool | None:
    if not isinstance(elements, list):
        return None
    answers = [equals(value, element, "==", ruleset, chain) for element in elements]
    return True if True in answers else None if None in answers else False
