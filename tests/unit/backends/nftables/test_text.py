"""The table's text, and what the hot path knows of it."""

from __future__ import annotations

import re

from cni_quantum_nat.backends.nftables.layout import CHAIN_USE, GOTO, JUMP, ORDINARY, ORDINARY_LENGTHS, SETS
from cni_quantum_nat.backends.nftables.rules import plan_rules
from cni_quantum_nat.backends.nftables.text import table_text
from cni_quantum_nat.model.addresses import Endpoint
from tests.unit.attachments import attachment

TEXT = table_text("quantum")
CHAINS = dict(re.findall(r"\tchain (\w+) \{\n(.*?)\n\t\}", TEXT, re.DOTALL))


def rules_of(chain: str) -> list[str]:
    lines = [line.strip() for line in CHAINS[chain].splitlines()]
    return [line for line in lines if line and not line.startswith(("comment ", "type "))]


def test_check_expects_as_many_rules_and_jumps_as_there_are() -> None:
    for chain, use in CHAIN_USE.items():
        jumps = len(re.findall(rf"\b(?:goto|jump) {chain}\b", TEXT))
        assert len(rules_of(chain)) + jumps == use, chain


def test_check_knows_every_chain_but_those_that_elements_lead_to() -> None:
    policies = {policy.chain for policy in ORDINARY}
    assert {name for name in CHAINS if not name.startswith("subnet")} == set(CHAIN_USE) | policies
    assert len(CHAINS) == len(CHAIN_USE) + len(policies) + 32 + 128


def test_every_ordinary_policy_is_counted_by_the_chain_that_all_of_them_jump_to() -> None:
    assert all(rules_of(policy.chain)[0] == "jump established" for policy in ORDINARY)


def test_every_set_is_declared_and_used() -> None:
    for name in SETS:
        assert re.search(rf"\t(?:set|map) {name} \{{", TEXT)
        assert f"@{name}" in "".join(CHAINS.values())


def test_a_usual_subnet_takes_no_element_with_a_verdict() -> None:
    """The kernel looks at all of those for each that it is given, so that ADD would grow with the containers."""
    for family, lengths in ORDINARY_LENGTHS.items():
        for length in lengths:
            container = attachment("net", "web", "eth0")
            container.endpoints = [Endpoint.parse(f"{'10.88.0.2' if family == 4 else 'fd88::2'}/{length}")]
            container.outbound.masquerade = (4, 6)
            sets = [SETS[element.set_name] for element in plan_rules(container)]
            assert sets
            assert not [layout for layout in sets if {JUMP, GOTO} & {*layout.data}]


def test_nothing_is_masqueraded_that_is_not_a_containers() -> None:
    rules = [rule for chain in CHAINS for rule in rules_of(chain) if re.search(r"masquerade$|^snat", rule)]
    assert rules
    assert [rule for rule in rules if "@" not in rule] == ["masquerade"]
    assert "masquerade" in rules_of("masqueraded")
    leading = re.findall(r"^\t\t(.*) (?:goto|jump) masqueraded$", TEXT, re.MULTILINE)
    assert leading
    assert all(re.search(r" @masqueraded(_via)?[46]$", rule) for rule in leading)
