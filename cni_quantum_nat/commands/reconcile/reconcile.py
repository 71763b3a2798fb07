"""`quantum-nat reconcile`: make the kernel's rules match the records, once or continuously."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...model.errors import InvalidConfiguration
from ...state.directory import State
from ...state.program_lock import ProgramLock
from ..parser import add_command, seconds
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
        summary="make the kernel's rules match the records",
        description="Compare the kernel's rules with the records, and repair the differences in one transaction for each "
        "backend. ADD and DEL wait meanwhile. A missing or altered table is rebuilt.",
        examples=("reconcile --dry-run", "reconcile --watch"),
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print the differences; exit status 1 if there are any"
    )
    parser.add_argument(
        "--watch", action="store_true", help="keep running, and repair the rules as soon as they are flushed"
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        default=_DEFAULT_INTERVAL_S,
        metavar="SECONDS",
        help="with --watch, also compare everything this often (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object; with --watch, one per line")


def run(arguments: argparse.Namespace) -> int:
    """Reconcile, and print the result; return 1 if a dry run finds differences, or a record cannot be read."""
    state = State(arguments.state_dir, ProgramLock)
    if arguments.watch:
        from .watch import watch  # only with --watch

        if arguments.dry_run:
            raise InvalidConfiguration("--watch and --dry-run cannot be combined", "Leave one of them out.")
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
        print(f"The kernel matches the records ({count(outcome.attachments, 'attachment')}).")
    if outcome.disagreements and not dry_run:
        print(summary(outcome))
