"""The table that is made from compiled rules is the one that libnftables makes of the text."""

from __future__ import annotations

import runpy
import subprocess
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat.backends.nftables import batch, layout, programs, text
from cni_quantum_nat.backends.nftables.table import NftablesTable, rules_in
from cni_quantum_nat.kernel.netlink import attributes

from .peer import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .topology import Host

COMPILER = runpy.run_path(str(Path(__file__).parents[2] / "packaging" / "compile_rules.py"))
PREFIXES = {layout.prefix_part(4, n) for n in (8, 16, 24, 32)} | {layout.prefix_part(6, n) for n in (48, 64, 127, 128)}
PARTS = sorted(COMPILER["every_part"]() | PREFIXES)
POLICIES = [
    layout.Policy(kind + where)
    for kind in (layout.SPREAD_EVENLY, layout.SPREAD_BY_CLIENT)
    for where in ("", layout.ON_ONE_ADDRESS)
]
BOOT = "b0075f3c"


@pytest.fixture
def table(host: Host) -> Iterator[NftablesTable]:
    with inside(host.path):
        made = NftablesTable()
        yield made
        made.close()


def ruleset() -> str:
    done = subprocess.run(["nft", "list", "table", "inet", layout.TABLE], capture_output=True, text=True, check=True)
    return done.stdout


def expressions(table: NftablesTable) -> dict[str, list[bytes]]:
    """Return the kernel's own listing of the rules by chain, without their handles."""
    _, fingerprint = table.state_of("")
    found = rules_in(fingerprint)
    del found[""]  # the base chains, which nft's listing shows
    return {name: [_expressions(rule) for rule in rules] for name, rules in found.items()}


def _expressions(rule: bytes) -> bytes:
    return dict(attributes(rule))[4]


def make_by_text(parts: set[str], policies: list[layout.Policy]) -> None:
    programs._run(
        [
            f"add table inet {layout.TABLE}",
            f"delete table inet {layout.TABLE}",
            text.table_text(layout.TABLE, parts, boot_id=BOOT),
            *text.policies_text(policies),
        ]
    )


@pytest.mark.parametrize(
    ("parts", "policies"),
    [
        (text.default_parts(), []),
        ({layout.CORE}, []),
        (text.default_parts() | {layout.prefix_part(4, 16), layout.prefix_part(6, 64)}, []),
        (set(PARTS), POLICIES),
    ],
    ids=["core", "without time-outs", "an ordinary container", "all parts"],
)
def test_both_list_the_same(table: NftablesTable, parts: set[str], policies: list[layout.Policy]) -> None:
    make_by_text(parts, policies)
    by_text, kernels = ruleset(), expressions(table)
    table.transact(batch.table(parts, policies, [], BOOT), "make it")
    assert ruleset() == by_text
    assert expressions(table) == kernels


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_added_as_by_text(table: NftablesTable, part: str) -> None:
    before = text.default_parts()
    make_by_text(before, [])
    programs._run(text.extension_text(before, before | {part}))
    by_text, kernels = ruleset(), expressions(table)
    make_by_text(before, [])
    if messages := batch.extension(before, before | {part}, []):
        table.transact(messages, "extend it")
    assert ruleset() == by_text
    assert expressions(table) == kernels


@pytest.mark.parametrize("first", PARTS)
def test_every_two_parts_are_compiled(first: str) -> None:
    for second in PARTS:
        for without in (set(), text.default_parts()):
            batch.table(
                {layout.CORE, first, second} | without,
                POLICIES if layout.SHARED_PORTS in (first, second) else [],
                [],
                BOOT,
            )


def test_every_prefix_length_is_compiled() -> None:
    for parts in combinations([f"prefix4_{n}" for n in range(33)] + [f"prefix6_{n}" for n in range(129)], 1):
        batch.table({*text.default_parts(), *parts, layout.NETWORKS}, [], [], BOOT)


def test_conditions_are_not_compiled() -> None:
    with pytest.raises(batch.NotCompiled):
        batch.table(
            text.default_parts(), [layout.Policy(layout.PUBLISH, {4: ("ip", "saddr", "192.0.2.0/24")})], [], BOOT
        )


def test_the_module_is_what_the_script_writes() -> None:
    assert COMPILER["compiled"]() == COMPILER["MODULE"].read_text()
