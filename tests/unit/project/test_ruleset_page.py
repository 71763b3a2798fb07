"""docs/development/ruleset.md is what packaging/ruleset.py writes from the code that makes the table."""

from __future__ import annotations

import runpy
from pathlib import Path

from cni_quantum_nat.backends.nftables.layout import SETS
from cni_quantum_nat.backends.nftables.text import chains, default_parts, sets_of

ROOT = Path(__file__).parents[3]
RULESET = runpy.run_path(str(ROOT / "packaging" / "ruleset.py"))
PAGE: Path = RULESET["PAGE"]
NUMBERED = (
    "prefix",
    "timeout",
    "network_timeout",
    "udp_timeout",
    "network_udp_timeout",
)  # parts by number, of which the page has an example


def test_the_page_is_what_the_script_writes() -> None:
    assert RULESET["with_listings"](PAGE.read_text()) == PAGE.read_text()


def test_no_rule_is_kept_by_hand() -> None:
    page = PAGE.read_text()
    for name, listing in RULESET["BLOCKS"].items():
        assert listing() in page
        page = page.replace(f"<!-- {name}: begin -->\n\n{listing()}", "")
    rules = {rule for chain in chains(default_parts()).values() for rule in chain.rules if " " in rule}
    assert [rule for rule in rules if rule in page] == []


def test_every_part_says_when_it_is_added() -> None:
    described = {name for names, _ in RULESET["PARTS"] for name in names}
    parts = {layout.part for layout in SETS.values() if not layout.part.startswith(NUMBERED)} - default_parts()
    assert parts == {name for name in described if not name.startswith(NUMBERED)}
    assert all(any(name.startswith(kind) for name in described) for kind in NUMBERED)


def test_every_set_and_chain_is_on_the_page() -> None:
    page = PAGE.read_text()
    parts = default_parts() | {name for names, _ in RULESET["PARTS"] for name in names}
    assert [layout.name for layout in sets_of(parts) if f" {layout.name} {{" not in page] == []
    assert [name for name in chains(parts) if f"chain {name} {{" not in page or f"`{name}`" not in page] == []
