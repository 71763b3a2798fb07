"""`quantum-nat reconcile`: makes the kernel agree with the records, once or for as long as it runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...model.errors import InvalidConfiguration
from ...state.directory import State
from ..parser import add_command
from ..tables import complain, print_table
from .repair import as_json, count, reconcile, summary

if TYPE_CHECKING:
    import argparse

    from ..parser import Commands
    from .repair import Outcome

_COLUMNS = ("CHANGE", "WHAT", "OWNER", "WHY")
_DEFAULT_INTERVAL_S = 60


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "reconcile",
        run,
        summary="make the kernel's rules agree with the records",
        description="Compare the kernel's rules with the records, and put right what differs in one transaction for each "
        "backend. ADD and DEL wait meanwhile. A table that is missing or was altered is built anew.",
        examples=("reconcile --dry-run", "reconcile --watch"),
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what differs; exit status 1 when anything does"
    )
    parser.add_argument("--watch", action="store_true", help="stay, and heal at once whatever flushes the rules")
    parser.add_argument(
        "--interval",
        type=float,
        default=_DEFAULT_INTERVAL_S,
        metavar="SECONDS",
        help="with --watch, compare everything this often too (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object; with --watch one a line")


def run(arguments: argparse.Namespace) -> int:
    """Reconcile, and print what was done; 1 when a rehearsal finds something to do, or a record cannot be read."""
    state = State(arguments.state_dir)
    if arguments.watch:
        from .watch import watch  # what stays and waits

        if arguments.dry_run:
            raise InvalidConfiguration("--watch heals, and --dry-run changes nothing", "Leave one of them out.")
        return watch(state, arguments.interval, as_json=arguments.json)
    outcome = reconcile(state, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps(as_json(outcome), indent=2))
    else:
        _print(outcome, dry_run=arguments.dry_run)
    complain(outcome.damaged)
    return 1 if outcome.damaged or (arguments.dry_run and outcome.disagreements) else 0


def _print(outcome: Outcome, *, dry_run: bool) -> None:
    if outcome.disagreements:
        print_table(_COLUMNS, ((d.change, d.what, d.owner or "-", d.why) for _, d in outcome.disagreements))
    else:
        print(f"The kernel agrees with the {count(outcome.attachments, 'attachment')} on record.")
    if outcome.disagreements and not dry_run:
        print(summary(outcome))
