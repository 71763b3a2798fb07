"""Write docs/development/decision.md from table.py: python -m tests.unit.nat.decision_page."""

from __future__ import annotations

from pathlib import Path

from .situations import ADDRESS, CALLS, PORT, RECORDS
from .table import TABLE, Outcome

PAGE = Path(__file__).parents[3] / "docs" / "development" / "decision.md"
_HEAD = """# Who gets a host port or an address

`nat/decision.py` decides what a call changes. A *host port* and an *address* are one unit each: a call takes, refuses or releases
a unit as a whole. A *range* of host ports is a unit like a host port. It is in the way of every port and range that it overlaps
with: an ADD is refused if any of their owners would refuse it, and waits if any of them is a sibling. When an owner gives a range
up, attachments of its container that wait get what they asked for, the oldest first, unless somebody else has a part of it. Who
waits for a range has no claim to those of its ports that nobody has: another container may take them. So a port within others'
range, and a range around others' port, have the outcomes of the first table too, and the tests run each cell for them.

This page lists the outcome of every call in every situation. It is generated from
`tests/unit/nat/table.py` (`python -m tests.unit.nat.decision_page`); `tests/unit/nat/test_decision.py` runs each cell through
the NAT Manager with a real state directory and a backend in memory.

The calls are about one attachment, *ours*. Rows say who has the unit in the kernel before the call:

- *free*: nobody. *ours*: this attachment. *sibling's*: another attachment of the same container, in force.
- *other's, alive*, *dead* or *cannot tell*: an attachment of another container, by whether its network namespace exists. It cannot
  be told where the namespace's path is in another mount namespace.
- *orphan's*: an owner without a record. *unreadable*: an owner whose record is damaged.
- *shared*: a shared port of another container; ours is shared the same way, or not shared.

Cells say who has the unit after the call. *Refused* is error 100 with nothing changed; *differs* is error 103. *X forgotten* means
that X has lost its rules, its record and its conntrack entries. "ADD again" is an ADD after the same ADD. "GC, list" has a list that
names ours, and the other container unless it is dead. The tables are for a record of ours that is in force. Below each is what
differs when our record is lost, damaged, of another boot of the kernel, or of another host network namespace that uses the
same state directory.

Two records in force that ask for the same port or address cannot come from calls: a state directory that was restored from a copy
can have them. Healing then gives the unit to the newer one.
"""
_TITLES = {PORT: "A host port", ADDRESS: "An address"}


def outcome(cell: Outcome, record: str) -> str:
    """Return the outcome for what has become of our record."""
    if isinstance(cell, str):
        return cell
    usual, exceptions = cell
    return exceptions.get(record, usual)


def page() -> str:
    """Return the page."""
    return _HEAD + "".join(f"\n## {title}\n\n{_table(kind)}\n{_exceptions(kind)}" for kind, title in _TITLES.items())


def _table(kind: str) -> str:
    rows = [["before", *CALLS], ["---"] * (1 + len(CALLS))]
    rows += [[state, *(outcome(cells[call], RECORDS[0]) for call in CALLS)] for state, cells in TABLE[kind].items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _exceptions(kind: str) -> str:
    lines = []
    for record in RECORDS[1:]:
        for call in CALLS:
            by_outcome: dict[str, list[str]] = {}
            for state, cells in TABLE[kind].items():
                if outcome(cells[call], record) != outcome(cells[call], RECORDS[0]):
                    by_outcome.setdefault(outcome(cells[call], record), []).append(state)
            lines += [
                f"| {record} | {call} | {'; '.join(states)} | {result} |\n" for result, states in by_outcome.items()
            ]
    return "| our record is | call | before | after |\n| --- | --- | --- | --- |\n" + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
