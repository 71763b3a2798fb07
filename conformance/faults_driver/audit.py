"""Checks after a call, however it ended: with our own comparison, and with tools that share no code with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_quantum_nat.commands.reconcile.repair import reconcile
from cni_quantum_nat.state.directory import State
from tests.kernel.peer import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.plugin import Plugin
    from tests.kernel.topology import Host


def disagreements(plugin: Plugin) -> Iterator[str]:
    """Compare the kernel with the records as `quantum-nat reconcile --dry-run` does."""
    with inside(plugin.host.path):
        outcome = reconcile(State(str(plugin.state_directory)), dry_run=True)
    for backend, entry in outcome.disagreements:
        yield f"reconcile would {entry.change} {backend} {entry.what}: {entry.why}"
    for error in outcome.damaged:
        yield f"damaged: {error.message}"


def strangers(plugin: Plugin) -> Iterator[str]:
    """Compare the host ports and owners listed by nft or iptables-save with the files of the records."""
    recorded = [json.loads(path.read_text()) for path in plugin.state_directory.glob("attachments/*/*.json")]
    owners = {f"{r['network']}/{r['containerId']}/{r['interface']}" for r in recorded}
    has_rules = plugin.host.backend != "nftables" or "inet quantum\n" in plugin.host.run("nft", "list", "tables")
    held = plugin.host.owners() - {"shared"} if has_rules else set()
    yield from (f"the kernel has elements or rules of {owner}, which has no record" for owner in sorted(held - owners))
    yield from (f"the kernel has nothing of {owner}, which has a record" for owner in sorted(owners - held))
    if plugin.host.backend == "nftables" and has_rules:
        yield from _wrong_ports(plugin.host, recorded)
    tables = set(plugin.host.run("nft", "list", "tables").split("\n")) - {"", "table inet quantum"}
    yield from (f"{table} is left" for table in sorted(tables) if " inet " in table)


def _wrong_ports(host: Host, recorded: list[dict[str, Any]]) -> Iterator[str]:
    listed = host.elements()
    for family in (4, 6):
        expected = {
            (mapping["protocol"], mapping["hostPort"])
            for record in recorded
            for mapping in record["portMappings"]
            if not mapping["hostIP"] and any((":" in e["address"]) == (family == 6) for e in record["endpoints"])
        }
        keys = [key for key, _ in listed.get(f"endpoints{family}", [])]
        elements = [key["elem"]["val"] if "elem" in key else key for key in keys]
        found = {tuple(element["concat"]) for element in elements}
        if found != expected:
            yield f"endpoints{family} has {sorted(found)}, but the records have {sorted(expected)}"


def remains(plugin: Plugin) -> Iterator[str]:
    """Find a held lock and leftovers that are never removed: partly written files, empty directories."""
    lock = plugin.state_directory / "lock"
    if lock.exists():
        status = lock.stat()
        file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} "
        yield from (
            f"the lock is held: {line}" for line in Path("/proc/locks").read_text().splitlines() if file in line
        )
    known = {"lock", "iptables", "rebuilt", "attachments", "claims", "counters", "networks", "numbers", "tables"}
    yield from (f"{path} is left" for path in plugin.state_directory.iterdir() if path.name not in known)
    for container in plugin.state_directory.glob("attachments/*"):
        if not any(container.iterdir()):
            yield f"{container} is left, empty"
