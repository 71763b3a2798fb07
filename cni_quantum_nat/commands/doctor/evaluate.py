"""Evaluate what a chain does to a packet. A match is true, false, or unknown (None)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .chains import Chain, Expression, Rule, Ruleset

_DEEPEST = 16  # the kernel's own limit of jumps
_DROPS = ("drop", "reject")


class Packet(NamedTuple):
    """The packet to trace. A field that is None or empty is unknown, and may match.

    state: of its connection, "new" or "established". status: "dnat", "snat" or both if it was translated.
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


class Fate(NamedTuple):
    """What may happen to the packet, and where. verdict: "accept", "drop", or "dnat" followed by its target."""

    verdict: str
    where: str
    chain: Chain


class Outcome(NamedTuple):
    """The effect of a matching rule. goes_on: to the next rule. comes_out: returns from the chain."""

    ended: list[Fate]
    goes_on: bool
    comes_out: bool = False


def fates(ruleset: Ruleset, chain: Chain, packet: Packet, depth: int = 0) -> tuple[list[Fate], bool]:
    """Return what may happen to the packet in a chain, and whether it may also leave the chain without a verdict."""
    found: list[Fate] = []
    comes_out = False
    for number, rule in enumerate(chain.rules, 1):
        certain = _all(_matches(expression, packet, ruleset, chain) for expression in rule)
        if certain is False:
            continue
        outcome = _outcome(ruleset, chain, rule, packet, depth, number)
        found += outcome.ended
        comes_out = comes_out or outcome.comes_out
        if certain and not outcome.goes_on:
            break
    else:
        comes_out = True
    if comes_out and chain.hook and chain.policy == "drop":
        return [*found, Fate("drop", "its policy", chain)], False
    return found, comes_out


def drops_of(ruleset: Ruleset, chain: Chain, packet: Packet) -> tuple[Fate | None, bool]:
    """Return where the chain drops the packet (None if it does not), and whether that is certain."""
    ended, goes_on = fates(ruleset, chain, packet)
    drops = [fate for fate in ended if fate.verdict == "drop"]
    return (drops[-1] if drops else None), not goes_on and len(drops) == len(ended)


def _outcome(  # noqa: PLR0913, PLR0917 - the state of the evaluation
    ruleset: Ruleset, chain: Chain, rule: Rule, packet: Packet, depth: int, number: int
) -> Outcome:
    for expression in rule:
        verdict = _target_of(expression, packet, ruleset, chain)
        if verdict is not None:
            return _follow(ruleset, chain, verdict, packet, depth, number)
    return Outcome([], goes_on=True)


def _follow(  # noqa: PLR0913, PLR0917 - as above
    ruleset: Ruleset, chain: Chain, verdict: Expression, packet: Packet, depth: int, number: int
) -> Outcome:
    if "accept" in verdict:
        return Outcome([Fate("accept", f"rule {number}", chain)], goes_on=False)
    if any(kind in verdict for kind in _DROPS):
        return Outcome([Fate("drop", f"rule {number}", chain)], goes_on=False)
    if (translated := _translation_of(verdict)) is not None:
        return Outcome([Fate(f"dnat {translated}", f"rule {number}", chain)], goes_on=False)
    if "return" in verdict:
        return Outcome([], goes_on=False, comes_out=True)
    name = next((verdict[kind]["target"] for kind in ("jump", "goto") if kind in verdict), "")
    goal = ruleset.chains.get((chain.table, name))
    if goal is None or depth >= _DEEPEST:
        return Outcome([], goes_on=True)
    ended, out = fates(ruleset, goal, packet, depth + 1)
    return Outcome(ended, goes_on=out and "jump" in verdict, comes_out=out and "goto" in verdict)


_TERMINAL = ("accept", "drop", "reject", "return", "jump", "goto", "dnat", "redirect")


def _translation_of(verdict: Expression) -> str | None:
    """Return the target of a destination translation; None if the verdict is something else."""
    for kind in ("dnat", "redirect"):
        if kind in verdict:
            return str(verdict[kind])
    return str(verdict["xt"]["name"]) if verdict.get("xt", {}).get("type") == "target" else None


def _target_of(expression: Expression, packet: Packet, ruleset: Ruleset, chain: Chain) -> Expression | None:
    """Return an expression's verdict, its own or from a verdict map; None if it has none."""
    if any(kind in expression for kind in _TERMINAL) or expression.get("xt", {}).get("name") in ("DNAT", "REDIRECT"):
        return expression
    if "vmap" not in expression:
        return None
    value = _value_of(expression["vmap"]["key"], packet)
    data = expression["vmap"]["data"]
    entries = ruleset.sets.get((chain.table, data[1:]), []) if isinstance(data, str) else data.get("set", [])
    for key, verdict in entries:
        if value is not None and _equals(value, key, "==", ruleset, chain):
            return dict(verdict)
    return None


def _all(answers: Iterable[bool | None]) -> bool | None:
    known: bool | None = True
    for answer in answers:
        if answer is False:
            return False
        if answer is None:
            known = None
    return known


def _matches(expression: Expression, packet: Packet, ruleset: Ruleset, chain: Chain) -> bool | None:
    if "xt" in expression or "limit" in expression:
        return None if expression.get("xt", {}).get("type") != "target" else True
    if "match" not in expression:
        return True
    match = expression["match"]
    value = _value_of(match["left"], packet)
    return None if value is None else _compare(value, match["op"], match["right"], ruleset, chain)


def _compare(value: Any, operator: str, right: Any, ruleset: Ruleset, chain: Chain) -> bool | None:
    equal = _equals(value, right, operator, ruleset, chain)
    return not equal if operator == "!=" and equal is not None else equal


def _value_of(left: Any, packet: Packet) -> Any:
    """Return the packet's value for the left side of a match; None if it is unknown."""
    if "payload" in left:
        return _payload(left["payload"], packet)
    if "ct" in left:
        return {"state": {packet.state}, "status": set(packet.status)}.get(left["ct"].get("key"))
    key = left.get("meta", {}).get("key")
    known: dict[str, Callable[[], Any]] = {
        "iifname": lambda: packet.incoming or None,
        "iif": lambda: packet.incoming or None,
        "oifname": lambda: packet.outgoing or None,
        "oif": lambda: packet.outgoing or None,
        "l4proto": lambda: packet.protocol,
        "nfproto": lambda: f"ipv{packet.family}",
    }
    return known[key]() if key in known else None


def _payload(payload: dict[str, Any], packet: Packet) -> Any:
    of, field = payload.get("protocol"), payload.get("field")
    if of in ("ip", "ip6"):
        if of != ("ip" if packet.family == 4 else "ip6"):
            return ""  # the packet has no such header: no match
        wanted = {"saddr": packet.source or None, "daddr": packet.destination or None, "protocol": packet.protocol}
        return wanted.get(str(field))
    if of in ("tcp", "udp", "sctp", "th"):
        if of not in ("th", packet.protocol):
            return ""
        return packet.port if field == "dport" else None
    return None


def _equals(value: Any, right: Any, operator: str, ruleset: Ruleset, chain: Chain) -> bool | None:
    if isinstance(value, set):
        names = {right} if isinstance(right, str) else set(right.get("set", ()) if isinstance(right, dict) else right)
        return bool(value & {str(name) for name in names})
    if isinstance(right, str) and right.startswith("@"):
        return _in_set(value, ruleset.sets.get((chain.table, right[1:])), ruleset, chain)
    if isinstance(right, list):
        return any(_equals(value, one, operator, ruleset, chain) for one in right)
    if isinstance(right, dict):
        return _in_dict(value, right, ruleset, chain)
    if operator not in ("==", "!=", "in"):
        return None
    text, wanted = str(value), str(right)
    return text.startswith(wanted[:-1]) if wanted.endswith("*") else text == wanted


def _in_dict(value: Any, right: dict[str, Any], ruleset: Ruleset, chain: Chain) -> bool | None:
    if "set" in right:
        return _in_set(value, right["set"], ruleset, chain)
    if "prefix" in right and value:
        prefix = right["prefix"]
        return ip_address(value) in ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
    if "range" in right and isinstance(value, int):
        first, last = right["range"]
        return int(first) <= value <= int(last)
    if "elem" in right:
        return _equals(value, right["elem"]["val"], "==", ruleset, chain)
    return None if value else False


def _in_set(value: Any, elements: Any, ruleset: Ruleset, chain: Chain) -> bool | None:
    if not isinstance(elements, list):
        return None
    answers = [_equals(value, element, "==", ruleset, chain) for element in elements]
    return True if True in answers else None if None in answers else False
