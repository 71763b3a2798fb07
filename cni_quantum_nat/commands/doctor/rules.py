"""Checks of our own records, table and elements."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.nftables import cover
from ...backends.nftables.layout import TABLE
from ...backends.nftables.programs import rehearse
from ...model.attachments import NFTABLES
from ...model.errors import CniError
from ...state.files import Foreign
from ..reconcile.repair import reconcile
from .child import ask_in_new_namespace
from .finding import Finding, Remark
from .paths import Causes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .snapshot import Snapshot


def _reconcile(host: Snapshot) -> str:
    return f"quantum-nat {host.state.option}reconcile"


def check_kernel(_host: Snapshot) -> Iterator[Finding]:
    """Check that the kernel accepts the table, in a new network namespace."""
    refused = ask_in_new_namespace(_refusal)
    if refused:
        yield Finding(
            "the kernel",
            f"it refuses table inet {TABLE}: {refused}",
            "Use Linux 5.7 or newer with nf_tables, nft_nat, nft_masq, nft_fib_inet and nft_numgen, or backend iptables.",
        )


def check_table(host: Snapshot) -> Iterator[Finding]:
    """Check that the table and its chains exist and are unchanged."""
    for _, entry in _compared(host):
        if entry.change == "rebuild":
            yield Finding(entry.what, entry.why, _reconcile(host))


def check_elements(host: Snapshot) -> Iterator[Finding]:
    """Check that each record has its elements or rules, and that each of those has a record."""
    found = [(backend, entry) for backend, entry in _compared(host) if entry.change != "rebuild"]
    if found:
        backend, entry = found[0]
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Finding(f"{backend} {entry.what}{others}", f"{entry.why} ({entry.owner or 'no owner'})", _reconcile(host))


def check_cover(host: Snapshot) -> Iterator[Finding | Remark]:
    """Check the copy of the table that `reconcile --watch` keeps, if one runs."""
    if not host.records.of_backend(NFTABLES):
        return
    found = cover.presence()
    if found == cover.MISSING:
        yield Remark(f"none: `{_reconcile(host)} --watch` does not run here, and a flush would refuse new connections")
    elif found == cover.EMPTY:
        yield Finding(
            f"table inet {cover.COVER}",
            "it is empty, so a flush would refuse new connections, unless the watch is comparing at this moment",
            "journalctl -u quantum-nat-reconcile.service",
            certain=False,
        )


def check_records(host: Snapshot) -> Iterator[Finding]:
    """Check that the state directory is ours alone, and that its records are readable and from this boot."""
    try:
        host.state.check()
    except CniError as error:
        if not isinstance(error.__cause__, Foreign):
            raise
        yield Finding("state directory", error.message, error.details)
    for damage in host.records.damaged:
        yield Finding("state directory", damage.message, damage.details)
    if host.records.leftovers:
        count = len(host.records.leftovers)
        yield Finding(
            "state directory",
            f"{count} record{'' if count == 1 else 's'} from an earlier boot, without effect",
            f"quantum-nat {host.state.option}gc",
        )
    yield from _find_writable_parents(host.state.directory)


def _find_writable_parents(directory: str) -> Iterator[Finding]:
    """Find parent directories in which other users can replace the state directory."""
    owners = {0, os.geteuid()} | _outside_users()
    for parent in Path(directory).parents:
        try:
            status = parent.stat()
        except OSError:
            continue
        if status.st_uid not in owners or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            yield Finding(
                str(parent),
                f"owner {status.st_uid} and mode {stat.S_IMODE(status.st_mode):04o} let others replace the state directory",
                "Set stateDir to a path that only root can change.",
            )


def _outside_users() -> set[int]:
    """Return how a user namespace shows the owners that it has no number for: the host's, who have power over it anyway. Nothing on the host."""
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
        return set()
    return {int(Path("/proc/sys/kernel/overflowuid").read_text())}


def check_namespaces(host: Snapshot) -> Iterator[Finding]:
    """Check that the attachments' network namespaces still exist."""
    causes = Causes()
    for attachment in host.records.over:
        if attachment not in host.records.leftovers:
            causes.add(
                "containers",
                "their network namespaces are gone",
                f"quantum-nat {host.state.option}gc",
                str(attachment.id),
            )
    yield from (Finding(*cause[:3], certain=cause[3]) for cause in causes)


def _compared(host: Snapshot) -> list[Any]:
    """Compare the kernel with the records, once for both checks."""
    if "compared" not in host.kept:
        # Without progress: doctor shows its own.
        outcome = reconcile(host.state, dry_run=True, progress=False) if host.state.exists() else None
        host.kept["compared"] = outcome.disagreements if outcome else []
    return list(host.kept["compared"])


def _refusal() -> str:
    """Return the kernel's reason for refusing the table; empty if it accepts it."""
    try:
        rehearse()
    except CniError as error:
        return error.details or error.message
    return ""
