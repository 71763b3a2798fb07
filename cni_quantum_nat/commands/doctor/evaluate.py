"""Evaluate what a chain does to a packet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .matches import equals, every, matches, value_of

if TYPE_CHECKING:
    from .chain import Chain, Expression, Rule
    from .chains import Ruleset
    from .matches import Packet

_DEEPEST = 16  # the kernel's own limit of jumps
_DROPS = ("drop", "reject")
DROPS, EXEMPTS, HANDS_OVER = "drop", "notrack", "queue"


class Fate(NamedTuple):
    """What may happen to the packet, and where.

    verdict: "accept", "drop", "notrack", "queue", or "dnat" followed by its target. number: of the rule in its chain; 0 for the chain's policy.
    """

    verdict: str
    number: int
    chain: Chain

    @property
    def where(self) -> str:
        """The rule or policy, as text."""
        return f"rule {self.number}" if self.number else "its policy"


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
        certain = every(matches(expression, packet, ruleset, chain) for expression in rule)
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
        return [*found, Fate(DROPS, 0, chain)], False
    return found, comes_out


def drops_of(ruleset: Ruleset, chain: Chain, packet: Packet) -> tuple[Fate | None, bool]:
    """Return where the chain drops the packet, or keeps it from being translated (None if it does not), and whether that is certain."""
    ended, goes_on = fates(ruleset, chain, packet)
    drops = [fate for fate in ended if fate.verdict in (DROPS, EXEMPTS, HANDS_OVER)]
    certain = not goes_on and len(drops) == len(ended) and drops[-1].verdict != HANDS_OVER
    return (drops[-1] if drops else None), certain


def _outcome(  # noqa: PLR0913, PLR0917 - the state of the evaluation
    ruleset: Ruleset, chain: Chain, rule: Rule, packet: Packet, depth: int, number: int
) -> Outcome:
    for expression in rule:
        if "vmap" in expression:
            return _outcome_of_map(ruleset, chain, expression["vmap"], packet, depth, number)
        if any(kind in expression for kind in _TERMINAL) or expression.get("xt", {}).get("name") in (
            "DNAT",
            "REDIRECT",
        ):
            return _follow(ruleset, chain, expression, packet, depth, number)
    return Outcome([], goes_on=True)


def _outcome_of_map(  # noqa: PLR0913, PLR0917 - as above
    ruleset: Ruleset, chain: Chain, vmap: Expression, packet: Packet, depth: int, number: int
) -> Outcome:
    """Follow the first verdict with the packet's key, and those before it that may have it."""
    value, data = value_of(vmap["key"], packet), vmap["data"]
    entries = ruleset.sets.get((chain.table, data[1:])) if isinstance(data, str) else data.get("set", [])
    ended: list[Fate] = []
    comes_out = False
    for key, verdict in entries or []:
        equal = None if value is None else equals(value, key, "==", ruleset, chain)
        if equal is False:
            continue
        outcome = _follow(ruleset, chain, dict(verdict), packet, depth, number)
        ended += outcome.ended
        comes_out = comes_out or outcome.comes_out
        if equal:
            return Outcome(ended, outcome.goes_on, comes_out)
    return Outcome(ended, goes_on=True, comes_out=comes_out)


def _follow(  # noqa: PLR0911, PLR0913, PLR0917 - as above
    ruleset: Ruleset, chain: Chain, verdict: Expression, packet: Packet, depth: int, number: int
) -> Outcome:
    if "accept" in verdict:
        return Outcome([Fate("accept", number, chain)], goes_on=False)
    if any(kind in verdict for kind in _DROPS):
        return Outcome([Fate(DROPS, number, chain)], goes_on=False)
    for kind in (EXEMPTS, HANDS_OVER):
        if kind in verdict:
            return Outcome([Fate(kind, number, chain)], goes_on=False)
    if (translated := _translation_of(verdict)) is not None:
        return Outcome([Fate(f"dnat {translated}", number, chain)], goes_on=False)
    if "return" in verdict:
        return Outcome([], goes_on=False, comes_out=True)
    name = next((verdict[kind]["target"] for kind in ("jump", "goto") if kind in verdict), "")
    goal = ruleset.chains.get((chain.table, name))
    if goal is None or depth >= _DEEPEST:
        return Outcome([], goes_on=True)
    ended, out = fates(ruleset, goal, packet, depth + 1)
    return Outcome(ended, goes_on=out and "goto" not in verdict, comes_out=out and "goto" in verdict)


_TERMINAL = ("accept", "drop", "reject", "return", "jump", "goto", "dnat", "redirect", "notrack", "queue")


def _translation_of(verdict: Expression) -> str | None:
    """Return the target of a destination translation; None if the verdict is something else."""
    for kind in ("dnat", "redirect"):
        if kind in verdict:
            return str(verdict[kind])
    return str(verdict["xt"]["name"]) if verdict.get("xt", {}).get("type") == "target" else None
