"""Compare the kernel with the records once, and repair the differences."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ...connections.tracker import ConnectionTracker, is_tracking
from ..records import locked, read_records, require_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...model.errors import CniError
    from ...nat.records import Records
    from ...state.directory import State
    from .agreement import Agreement, Disagreement


class Outcome(NamedTuple):
    """The differences that a comparison found and, unless it was a dry run, repaired.

    attachments: the number of records. deleted_entries: of conntrack, for connections that began without the rules.
    took_ms: the duration of all of it.
    """

    disagreements: list[tuple[str, Disagreement]]
    damaged: list[CniError]
    attachments: int
    deleted_entries: int
    took_ms: float


def reconcile(
    state: State, *, dry_run: bool = False, progress: bool = True, then: Callable[[], None] = lambda: None
) -> Outcome:
    """Compare and, unless it is a dry run, repair. progress: show it on a terminal.

    then: called after that, under the same lock.

    Raises:
        CniError: (7) there is no such state directory; (11) timed out waiting for the lock; (101) the kernel refuses.
    """
    from .agreement import agreements  # libnftables: completions do without

    started = time.monotonic()
    require_directory(state, usual_too=True)  # without records, everything in the kernel would be removed
    deleted = 0
    with locked(state), _no_garbage_collection():
        records = read_records(state, progress=progress)
        found = agreements(state, records)
        disagreements = [(agreement.backend, entry) for agreement in found for entry in agreement.disagreements]
        if not dry_run:
            deleted = _establish(found, state, records)
        then()
    took_ms = (time.monotonic() - started) * 1000
    return Outcome(disagreements, records.damaged, len(records.in_force), deleted, took_ms)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable Python's garbage collector, which takes half of the time with 10,000 containers."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _establish(found: list[Agreement], state: State, records: Records) -> int:
    """Repair the differences, and return the number of conntrack entries deleted."""
    differing = [agreement for agreement in found if agreement.disagreements]
    for agreement in differing:
        agreement.establish()
    if differing:
        state.note_rebuild()
    for attachment in records.leftovers:
        state.remove(attachment.id)
    state.forget_networks()
    if not differing or not is_tracking():
        return 0
    with ConnectionTracker() as tracker:
        return tracker.delete_untranslated(records.in_force)


def summary(outcome: Outcome) -> str:
    """Return a one-line summary."""
    entries = "conntrack entry" if outcome.deleted_entries == 1 else "conntrack entries"
    deleted = f", and deleted {outcome.deleted_entries} {entries}" if outcome.deleted_entries else ""
    changes = count(len(outcome.disagreements), "difference")
    attachments = count(outcome.attachments, "attachment")
    return f"Repaired {changes} for {attachments} in {outcome.took_ms:.0f} ms{deleted}."


def count(number: int, what: str) -> str:
    """Return the number and the noun, in the plural if needed."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def as_json(outcome: Outcome) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "attachments": outcome.attachments,
        "differences": [{"backend": backend, **entry._asdict()} for backend, entry in outcome.disagreements],
        "deletedConntrackEntries": outcome.deleted_entries,
        "tookMs": round(outcome.took_ms, 1),
        "damaged": [error.as_result("1.1.0") for error in outcome.damaged],
    }
