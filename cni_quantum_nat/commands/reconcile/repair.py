"""One comparison of the kernel with the records, and the repair of what differs."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ...model.errors import InvalidConfiguration
from ...state.claims import PortClaims
from ..records import Records, locked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.errors import CniError
    from ...state.directory import State
    from .agreement import Agreement, Disagreement


class Outcome(NamedTuple):
    """What a comparison found and, unless it was a rehearsal, put right.

    attachments: how many are on record. forgotten_flows: how many had begun without the rules. took_ms: all of it.
    """

    disagreements: list[tuple[str, Disagreement]]
    damaged: list[CniError]
    attachments: int
    forgotten_flows: int
    took_ms: float


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


def summary(outcome: Outcome) -> str:
    """Say in a line what was done."""
    forgotten = f", {count(outcome.forgotten_flows, 'flow')} forgotten" if outcome.forgotten_flows else ""
    changes = count(len(outcome.disagreements), "difference")
    attachments = count(outcome.attachments, "attachment")
    return f"Put right {changes} for {attachments} in {outcome.took_ms:.0f} ms{forgotten}."


def count(number: int, what: str) -> str:
    """Return the number and the noun, in the plural where it is one."""
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
