"""`quantum-nat status`: whether the kernel has what the records say, in one line and an exit status."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ..model.attachments import NFTABLES
from ..nat.records import Records, here_of
from .directories import states_of
from .parser import ALL_STATES, add_command
from .tables import age, complain

if TYPE_CHECKING:
    import argparse

    from ..model.errors import CniError
    from ..state.directory import State
    from .parser import Commands


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "status",
        run,
        summary="show in one line whether all is well",
        description="Show in one line the table, its cover (the copy that `reconcile --watch` keeps for a flush), the number of attachments, the differences between the kernel and the records, "
        "and the time since the rules were last rebuilt. The exit status is 1 if there are differences or unreadable records.",
        examples=("status", "status --json"),
        scope=ALL_STATES,
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array with an object for each state directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each state directory; return 1 if one is not as it should be."""
    found = [_status(state) for state in states_of(arguments)]
    if arguments.json:
        print(json.dumps([entry for entry, _ in found], indent=2))
    else:
        for entry, _ in found:
            print(f"{entry['stateDir']}: {_line(entry)}" if len(found) > 1 else _line(entry))
    for _, damaged in found:
        complain(damaged)
    return 0 if all(entry["ok"] for entry, _ in found) else 1


def _status(state: State) -> tuple[dict[str, Any], list[CniError]]:
    from ..backends.nftables import cover
    from ..backends.nftables.table import NftablesTable
    from .reconcile.repair import reconcile  # libnftables: completions do without

    entry: dict[str, Any] = {
        "stateDir": state.directory,
        "ok": True,
        "table": "not needed",
        "cover": "not needed",
        "attachments": 0,
        "differences": 0,
        "damaged": 0,
        "lastRebuild": state.rebuilt_at() or None,
    }
    if not state.exists():  # before the first container
        return entry, []
    if Records(state, here_of(state)).of_backend(NFTABLES):
        table = NftablesTable(state.realm)
        try:
            entry["table"] = "present" if table.exists() else "missing"
        finally:
            table.close()
        entry["cover"] = cover.presence()
    outcome = reconcile(state, dry_run=True)
    entry["attachments"], entry["differences"] = outcome.attachments, len(outcome.disagreements)
    entry["damaged"] = len(outcome.damaged)
    entry["ok"] = not (outcome.disagreements or outcome.damaged)
    return entry, outcome.damaged


def _line(entry: dict[str, Any]) -> str:
    rebuilt = f"{age(time.time() - entry['lastRebuild'])} ago" if entry["lastRebuild"] else "never"
    damaged = f", {entry['damaged']} unreadable records" if entry["damaged"] else ""
    return (
        f"{'ok' if entry['ok'] else 'not ok'}: table {entry['table']}, cover {entry['cover']}, {entry['attachments']} attachments, "
        f"{entry['differences']} differences{damaged}, last rebuilt: {rebuilt}"
    )
