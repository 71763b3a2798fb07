"""`quantum-nat gc`: removes attachments whose network namespace is gone."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from ..model.errors import CniError
from ..nat.manager import NatManager, left_alone
from ..state.directory import State
from ..state.program_lock import ProgramLock
from .parser import add_command, seconds
from .progress import tracked
from .records import require_directory
from .tables import CONTAINER_CHARACTERS, complain, print_table

if TYPE_CHECKING:
    import argparse

    from ..model.attachments import Attachment
    from .parser import Commands

_COLUMNS = ("NETWORK", "CONTAINER", "INTERFACE", "NAMESPACE", "RESULT")


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "gc",
        run,
        summary="remove attachments whose network namespace is gone",
        description="Remove the attachments of containers whose network namespace is gone, because their runtime never called DEL; and those "
        "of earlier boots of the host.",
        examples=("gc --dry-run", "gc --interval 900"),
    )
    parser.add_argument("--interval", metavar="SECONDS", type=seconds, help="keep running, and repeat it this often")
    parser.add_argument("--dry-run", action="store_true", help="only say which they are")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(arguments: argparse.Namespace) -> int:
    """Remove them, and print which they were; 1 when one could not be removed, or a record cannot be read."""
    while arguments.interval is not None:
        try:
            _collect(arguments)
        except CniError as error:  # the next time may be better
            complain([error])
        sys.stdout.flush()
        time.sleep(arguments.interval)
    return _collect(arguments)


def _collect(arguments: argparse.Namespace) -> int:
    state = State(arguments.state_dir, ProgramLock)
    require_directory(state)
    if not state.exists():
        _print([], arguments)
        return 0
    with NatManager(state) as manager:
        records = manager.records()
        gone = sorted(records.over, key=lambda attachment: (attachment.sequence, attachment.created_at))
        going = tracked(gone, "Removing", len(gone))
        removed = [(attachment, _remove(manager, attachment, arguments)) for attachment in going]
        if not arguments.dry_run:
            state.forget_networks()
    _print(removed, arguments)
    complain([*records.damaged, *map(left_alone, records.uncertain)])
    return 1 if records.damaged or records.uncertain or any(error for _, error in removed) else 0


def _remove(manager: NatManager, attachment: Attachment, arguments: argparse.Namespace) -> CniError | None:
    """Remove one, unless it is a rehearsal; a failure keeps nobody from removing the others."""
    if arguments.dry_run:
        return None
    try:
        manager.remove(attachment.id)
    except CniError as error:
        return error
    return None


def _print(removed: list[tuple[Attachment, CniError | None]], arguments: argparse.Namespace) -> None:
    done = "would be removed" if arguments.dry_run else "removed"
    if arguments.json:
        print(json.dumps([_as_json(*entry) for entry in removed], indent=2))
    else:
        print_table(_COLUMNS, (_row(attachment, error, done) for attachment, error in removed))


def _row(attachment: Attachment, error: CniError | None, done: str) -> tuple[str, ...]:
    return (
        attachment.id.network,
        attachment.id.container_id[:CONTAINER_CHARACTERS],
        attachment.id.interface,
        attachment.netns,
        f"{error.message}. {error.details}" if error else done,
    )


def _as_json(attachment: Attachment, error: CniError | None) -> dict[str, object]:
    return {
        "network": attachment.id.network,
        "containerId": attachment.id.container_id,
        "interface": attachment.id.interface,
        "netns": attachment.netns,
        "error": None if error is None else error.as_result("1.1.0"),
    }
