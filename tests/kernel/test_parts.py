"""Parts of the table: added to the core or made with it, the kernel lists the same; and an ordinary container needs little."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat.backends.nftables.layout import CORE, TABLE
from cni_quantum_nat.backends.nftables.text import extension_text, table_text
from tests.unit.backends.nftables.test_text import PARTS

from .plugin import Plugin, publish
from .topology import Container, Host, run

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = re.compile(r"^\t(\w[^\n]*) \{\n(.*?)^\t\}\n", re.MULTILINE | re.DOTALL)
MOST_LINES = 250
MOST_BYTES = 64 << 10
# Debian 12's nft gives its socket what it needs; what a message has is in strace's return value.
SENDMSG = re.compile(r"sendmsg\(.* = (\d+)$", re.MULTILINE)


def blocks(host: Host) -> dict[str, str]:
    """Return what the kernel has, by chain and set: these are listed in the order in which they were made."""
    return dict(BLOCK.findall(host.run("nft", "--stateless", "list", "table", "inet", TABLE)))


def rebuilt(host: Host, parts: set[str]) -> dict[str, str]:
    host.run("nft", "-f", "-", stdin=f"add table inet {TABLE}\ndelete table inet {TABLE}\n{table_text(TABLE, parts)}")
    return blocks(host)


@pytest.mark.parametrize("order", [PARTS, tuple(reversed(PARTS))], ids=["in order", "reversed"])
def test_a_part_that_is_added_is_listed_like_one_that_was_made_at_once(host: Host, order: tuple[str, ...]) -> None:
    present = {CORE}
    added = [rebuilt(host, present)]
    for part in order:
        host.run("nft", "-f", "-", stdin="\n".join(extension_text(present, present | {part})))
        present.add(part)
        added.append(blocks(host))
    present = {CORE}
    for part, grown in zip(order, added[1:], strict=True):
        present.add(part)
        assert grown == rebuilt(host, present), part
    assert len(added[-1]) > 2 * len(added[0])


def test_an_ordinary_container_takes_few_lines(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    lines = host.run("nft", "list", "table", "inet", TABLE).splitlines()
    assert set(container.address) == {4, 6}
    assert len(lines) <= MOST_LINES, "\n".join(lines)


def test_the_first_container_takes_one_small_batch(container: Container, plugin: Plugin, tmp_path: Path) -> None:
    """A user namespace's socket takes no more than a few hundred kilobytes at once, and may not ask for more."""
    trace = tmp_path / "trace"
    real = plugin.command
    plugin.command = ["strace", "-f", "-e", "trace=sendmsg", "-s", "0", "-o", str(trace), *real]
    plugin.add(container, publish(8080))
    sizes = [int(size) for size in SENDMSG.findall(trace.read_text())]
    assert sizes, trace.read_text()
    assert max(sizes) < MOST_BYTES


def test_the_table_is_taken_by_a_user_namespace(tmp_path: Path) -> None:
    """Which has no privilege over its socket's buffer: that is rootless podman's situation."""
    file = tmp_path / "table.nft"
    file.write_text(table_text(TABLE, {CORE, *PARTS}))
    listed = run("unshare", "-Urn", "sh", "-c", f"nft -f {file} && nft list table inet {TABLE}")
    assert "chain host_ports" in listed
