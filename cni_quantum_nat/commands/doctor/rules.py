"""Checks of our own: the records, the table, what is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.base import is_alive
from ...backends.nftables.layout import ORDINARY, TABLE
from ...backends.nftables.programs import build
from ...backends.nftables.table import NftablesTable
from ...model.errors import CniError
from ...state.files import Foreign
from ..reconcile.repair import reconcile
from .child import ask_in_new_namespace
from .finding import Finding
from .snapshot import list_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .snapshot import Snapshot

_RECONCILE = "quantum-nat reconcile"
_REFUSED = "refused"


def check_kernel(_host: Snapshot) -> Iterator[Finding]:
    """Whether the kernel takes the table, in a network namespace where nobody is."""
    refused = _reference().get(_REFUSED)
    if refused:
        yield Finding(
            "the kernel",
            f"it does not take table inet {TABLE}: {refused}",
            "Linux 5.7 or newer with nf_tables, nft_nat, nft_masq, nft_fib_inet and nft_numgen; or backend iptables.",
        )


def check_table(host: Snapshot) -> Iterator[Finding]:
    """Whether the table and its chains are there, and are what we made."""
    rebuilds = [entry for _, entry in _compared(host) if entry.change == "rebuild"]
    for entry in rebuilds:
        yield Finding(entry.what, entry.why, _RECONCILE)
    if rebuilds or not NftablesTable().exists():
        return
    ours, found = _reference(), _content(list_json(f"table inet {TABLE}"))
    for name, wanted in ours.items() if _REFUSED not in ours else ():
        if found.get(name) != wanted:
            yield Finding(f"table inet {TABLE}", f"{name} was altered", f"nft delete table inet {TABLE}; {_RECONCILE}")
    kinds = tuple(f"chain {policy.kind}_" for policy in ORDINARY)
    for name in found.keys() - ours.keys():
        if not name.startswith(kinds) and not name.startswith("ct timeout"):
            yield Finding(
                f"table inet {TABLE}", f"{name} is none of ours", f"nft delete table inet {TABLE}; {_RECONCILE}"
            )


def check_elements(host: Snapshot) -> Iterator[Finding]:
    """Whether each record has its elements, or rules, and each of those has a record."""
    for backend, entry in _compared(host):
        if entry.change != "rebuild":
            yield Finding(f"{backend} {entry.what}", f"{entry.why} ({entry.owner or 'of nobody'})", _RECONCILE)


def check_records(host: Snapshot) -> Iterator[Finding]:
    """Whether the state directory is ours alone, and all records in it can be read and are of this boot."""
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
            f"{count} record{'' if count == 1 else 's'} of an earlier boot, which count for nothing",
            "quantum-nat gc; a stateDir on tmpfs has none.",
        )
    yield from _find_strangers(host.state.directory)


def _find_strangers(directory: str) -> Iterator[Finding]:
    """Find what makes others able to lead us elsewhere: only root should be able to change what is above the directory."""
    for parent in Path(directory).parents:
        try:
            status = parent.stat()
        except OSError:
            continue
        if status.st_uid not in (0, os.geteuid()) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            yield Finding(
                str(parent),
                f"user {status.st_uid} and mode {stat.S_IMODE(status.st_mode):04o} let others replace the state directory",
                "Give stateDir a path that only root can change.",
            )


def check_namespaces(host: Snapshot) -> Iterator[Finding]:
    """Whether the attachments' network namespaces are still there."""
    for attachment in host.records.attachments:
        if not is_alive(attachment):
            yield Finding(str(attachment.id), f"its network namespace {attachment.netns} is gone", "quantum-nat gc")


def _compared(host: Snapshot) -> list[Any]:
    """Compare kernel and records, once for both checks that want it."""
    if "compared" not in host.kept:
        host.kept["compared"] = reconcile(host.state, dry_run=True).disagreements if host.state.exists() else []
    return list(host.kept["compared"])


def _content(listed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the table is made of, by name; without handles, and without what containers add."""
    content: dict[str, Any] = {}
    for kind, item in ((kind, item) for entry in listed for kind, item in entry.items()):
        if kind == "rule":
            content[f"chain {item['chain']}"]["rules"].append(item["expr"])
        elif kind in ("chain", "set", "map", "ct timeout"):
            kept = {key: value for key, value in item.items() if key not in ("handle", "elem")}
            content[f"{kind} {item['name']}"] = kept | ({"rules": []} if kind == "chain" else {})
    return content


def _reference() -> dict[str, Any]:
    """Return what the table should be made of, as the kernel says it where nobody else is."""
    return dict(ask_in_new_namespace(_build_and_list))


def _build_and_list() -> dict[str, Any]:
    try:
        build([])
    except CniError as error:
        return {_REFUSED: error.details or error.message}
    return _content(list_json(f"table inet {TABLE}"))
