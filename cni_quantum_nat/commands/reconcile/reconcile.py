"""`quantum-nat reconcile`: makes the kernel agree with the records, once or for as long as it runs."""

from __future__ import annotations

import gc
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ...model.errors import InvalidConfiguration
from ...state.claims import PortClaims
from ...state.directory import State
from ..parser import add_command
from ..records import Records, locked
from ..tables import complain, print_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ...model.errors import CniError
    from ..parser import Commands
    from .agreement import Agreement, Disagreement

_COLUMNS = ("CHANGE", "WHAT", "OWNER", "WHY")
_DEFAULT_INTERVAL_S = 60


class Outcome(NamedTuple):
    """What a comparison found and, unless it was a rehearsal, put right.

    attachments: how many are on record. forgotten_flows: how many had begun without the rules. took_ms: all of it.
    """

    disagreements: list[tuple[str, Disagreement]]
    damaged: list[CniError]
    attachments: int
    forgotten_flows: int
    took_ms: float


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


def reconcile(state: State, *, dry_run: bool = False) -> Outcome:
    """Compare and, unless it is a rehearsal, put right.

    Raises: CniError: 7 where the state directory is none, 11 where the lock cannot be had, 101 where the kernel refuses.
    """
    from .agreement import agreements  # pydantic's weight is not here, but libnftables' and the records' is

    started = time.monotonic()
    _require_records(state)
    forgotten = 0
    with locked(state), _no_garbage_collection():
        records = Records(state)
        found = agreements(state, records)
        disagreements = [(agreement.backend, entry) for agreement in found for entry in agreement.disagreements]
        if not dry_run:
            forgotten = _establish(found, state, records)
    took_ms = (time.monotonic() - started) * 1000
    return Outcome(disagreements, records.damaged, len(records.attachments), forgotten, took_ms)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Let nobody look for cycles: that goes through all objects again and again, half of the time for 10,000 containers."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _establish(found: list[Agreement], state: State, records: Records) -> int:
    """Put right what differs, and return how many flows were forgotten."""
    from .gap import forget_flows_of_the_gap

    differing = [agreement for agreement in found if agreement.disagreements]
    for agreement in differing:
        agreement.establish()
    for attachment in records.leftovers:
        state.remove(attachment.id)
    if not records.damaged:  # a port that cannot be read of must stay counted
        PortClaims(state).count_again()
    return forget_flows_of_the_gap(records.attachments) if differing else 0


def _require_records(state: State) -> None:
    """Refuse a directory that is none: without records, everything in the kernel would be nobody's."""
    if not state.exists():
        raise InvalidConfiguration(
            f"there are no records in {state.directory}",
            "Name the networks' stateDir: quantum-nat --state-dir DIRECTORY reconcile. "
            "Where nothing was ever added, there is nothing to be done.",
        )


def _print(outcome: Outcome, *, dry_run: bool) -> None:
    if outcome.disagreements:
        print_table(_COLUMNS, ((d.change, d.what, d.owner or "-", d.why) for _, d in outcome.disagreements))
    else:
        print(f"The kernel agrees with the {_count(outcome.attachments, 'attachment')} on record.")
    if outcome.disagreements and not dry_run:
        print(summary(outcome))


def summary(outcome: Outcome) -> str:
    """Say in a line what was done."""
    forgotten = f", {_count(outcome.forgotten_flows, 'flow')} forgotten" if outcome.forgotten_flows else ""
    changes = _count(len(outcome.disagreements), "difference")
    attachments = _count(outcome.attachments, "attachment")
    return f"Put right {changes} for {attachments} in {outcome.took_ms:.0f} ms{forgotten}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def as_json(outcome: Outcome) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "attachments": outcome.attachments,
        "differences": [{"backend": backend, **entry._asdict()} for backend, entry in outcome.disagreements],
        "forgottenFlows": outcome.forgotten_flows,
        "tookMs": round(outcome.took_ms, 1),
        "damaged": [error.as_result("1.1.0") for error in outcome.damaged],
    }
