"""The table's text: the same chains in whatever order its parts come, and rules for what is a container's alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables.layout import (
    BUCKET,
    CLOSED,
    CORE,
    DEFAULT_TIMEOUT_S,
    FILTERS,
    FIXED_SOURCE,
    GOTO,
    HOST_IP,
    INTERFACES,
    LOCALHOST6,
    MASQUERADE_ALL,
    NETWORKS,
    NO_MASQUERADE,
    POLICIES,
    SETS,
    SHARED_PORTS,
    SOURCES,
    TABLE,
    UNMASQUERADED,
    VIA,
    Policy,
    network_timeout_part,
    network_udp_timeout_part,
    prefix_part,
    ranges_part,
    timeout_part,
    udp_timeout_part,
)
from cni_quantum_nat.backends.nftables.rules import plan_rules
from cni_quantum_nat.backends.nftables.text import (
    chains,
    default_parts,
    extension_text,
    parts_of,
    policies_text,
    sets_of,
    table_text,
)
from cni_quantum_nat.model.addresses import Endpoint
from tests.unit.attachments import attachment

PARTS = (
    *(HOST_IP, POLICIES, SHARED_PORTS, UNMASQUERADED, MASQUERADE_ALL, LOCALHOST6, CLOSED, VIA, FIXED_SOURCE),
    *(NO_MASQUERADE, NETWORKS, SOURCES, INTERFACES),
    *(prefix_part(4, 16), prefix_part(4, 24), prefix_part(6, 64), prefix_part(6, 128)),
    *(timeout_part(DEFAULT_TIMEOUT_S), timeout_part(60), timeout_part(7200), network_timeout_part(7200)),
    *(udp_timeout_part((30, 300)), network_udp_timeout_part((30, 300))),
    *map(ranges_part, (CORE, HOST_IP, POLICIES, UNMASQUERADED, MASQUERADE_ALL, LOCALHOST6, CLOSED)),
)
NOTHING_ALONE = {
    SHARED_PORTS,
    SOURCES,
    INTERFACES,
    UNMASQUERADED,
    *map(ranges_part, (UNMASQUERADED, LOCALHOST6, CLOSED)),
}
EVERYTHING = {CORE, *PARTS}
BLOCK = re.compile(r"\tchain (\w+) \{\n(.*?)\n\t\}", re.DOTALL)
SET = re.compile(r"\t(?:set|map|ct timeout) (\w+) \{")


class Reader:
    """Reads what nft would be given: of a chain that is there already, more rules are added at its end."""

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {}
        self.hooks: dict[str, str] = {}
        self.sets: list[str] = []

    def read(self, command: str) -> None:
        if command.startswith("flush chain "):
            self.chains[command.rsplit(maxsplit=1)[-1]] = []
            return
        assert command.startswith("table inet ")
        self.sets += SET.findall(command)
        for name, body in BLOCK.findall(command):
            for line in map(str.strip, body.splitlines()):
                if line.startswith("type "):
                    self.hooks[name] = line
                elif not line.startswith("comment "):
                    self.chains.setdefault(name, []).append(line)
            self.chains.setdefault(name, [])


def built(parts: set[str]) -> Reader:
    reader = Reader()
    reader.read(table_text(TABLE, parts))
    return reader


def extended(order: list[str]) -> Reader:
    """Build the core, and add one part after the other."""
    reader, present = built({CORE}), {CORE}
    for part in order:
        for command in extension_text(present, present | {part}):
            reader.read(command)
        present.add(part)
    return reader


@given(st.permutations(PARTS), st.integers(1, len(PARTS)))
def test_a_table_is_the_same_whatever_the_order_of_its_parts(order: list[str], count: int) -> None:
    grown, whole = extended(order[:count]), built({CORE, *order[:count]})
    assert grown.chains == whole.chains
    assert grown.hooks == whole.hooks
    assert sorted(grown.sets) == sorted(whole.sets)
    assert len(set(grown.sets)) == len(grown.sets), "nothing is declared twice"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_the_same_added_or_at_once(part: str) -> None:
    grown, whole = extended([part]), built({CORE, part})
    assert (grown.chains, grown.hooks) == (whole.chains, whole.hooks)
    # Buckets and filters are looked up by policies, and without time-outs nobody asks who is not masqueraded. Some ranges need their base.
    assert grown.chains != built({CORE}).chains or part in NOTHING_ALONE


@given(st.sets(st.sampled_from(PARTS)))
def test_a_table_refers_to_nothing_that_it_lacks(parts: set[str]) -> None:
    table = built({CORE, *parts})
    rules = "\n".join(rule for body in table.chains.values() for rule in body)
    assert set(re.findall(r"@(\w+)", rules)) <= set(table.sets)
    assert set(re.findall(r'ct timeout set "(\w+)"', rules)) <= set(table.sets)
    assert set(re.findall(r"(?:goto|jump) (\w+)", rules)) <= set(table.chains)


def test_every_set_is_declared_and_used() -> None:
    table = built(EVERYTHING)
    rules = "\n".join(rule for body in table.chains.values() for rule in body)
    kinds = [kind + end for kind in ("publish", "spread", "spread_by_client") for end in ("", "_on_ip")]
    policies = "\n".join(policies_text([Policy(kind, None, tuple(FILTERS)) for kind in kinds]))
    for name in table.sets:
        if name == "layout" or name.startswith(("established_", "udp_30_")):
            continue
        of_policies = BUCKET in SETS[name].key or SETS[name].part in FILTERS.values()
        assert f"@{name}" in (policies if of_policies else rules), name
    assert {layout.name for layout in sets_of(EVERYTHING)} <= set(table.sets)


@pytest.mark.parametrize("kind", ["publish", "publish_on_ip", "spread", "spread_by_client_on_ip"])
def test_a_connection_meets_conditions_then_its_interface_then_its_source(kind: str) -> None:
    policy = Policy(kind, {4: ("ip saddr 192.0.2.0/24",)}, tuple(FILTERS))
    rules: dict[str, list[str]] = {}
    for command in policies_text([policy]):
        if command.startswith("add rule"):
            *_, chain, rule = command.split(" ", 5)
            rules.setdefault(chain, []).append(rule)
    passed = []
    at = policy.chain
    while at in rules and "dnat" not in rules[at][0]:
        (goal,) = {rule.rpartition("goto ")[2] for rule in rules[at] if "goto" in rule}
        passed.append(at)
        at = goal
    assert [name.removeprefix(kind).partition("_if_")[0] for name in passed] == [
        "_by_interface_by_source",
        "_by_interface_by_source",
        "_by_source",
    ]
    assert at == kind
    assert rules[f"{kind}_by_source"][-1] == "drop", "whatever the sets contain"


def test_a_usual_container_takes_no_element_with_a_verdict() -> None:
    """The kernel looks at all of those for each that it is given, so that ADD would grow with the containers."""
    for address in ("10.88.0.2/16", "10.0.0.2/31", "fd88::2/64", "fd88::2/128"):
        container = attachment("net", "web", "eth0")
        container.endpoints = [Endpoint.parse(address)]
        container.outbound.masquerade = (4, 6)
        sets = [SETS[element.set_name] for element in plan_rules(container)]
        assert sets
        assert not [layout for layout in sets if layout.data == (GOTO,)]


def test_a_usual_container_needs_the_core_and_its_prefix_lengths() -> None:
    container = attachment("net", "web", "eth0")
    container.endpoints = [Endpoint.parse("10.88.0.2/16"), Endpoint.parse("fd88::2/64")]
    container.outbound.masquerade = (4, 6)
    needed = parts_of(plan_rules(container))
    assert needed == {CORE, prefix_part(4, 16), prefix_part(6, 64)}
    assert default_parts() == {CORE, timeout_part(DEFAULT_TIMEOUT_S)}


def test_nothing_is_masqueraded_that_is_not_a_containers() -> None:
    text = chains(EVERYTHING)
    rules = {name: chain.rules for name, chain in text.items()}
    translating = [(n, r) for n, body in rules.items() for r in body if re.search(r"masquerade$|\bsnat ", r)]
    without_a_set = {(name, rule) for name, rule in translating if "@" not in rule}
    # The paths of replies are entered by @published; interface_source by what the next assertion looks at.
    assert {name for name, _ in without_a_set} == {"interface_source", "return_path4", "return_path6"}
    leading = [r for body in rules.values() for r in body if r.endswith(" interface_source")]
    assert leading
    assert all(re.search(r" @(?:network_)?masqueraded(?:_via)?[46] goto interface_source$", rule) for rule in leading)
    entering = [r for body in rules.values() for r in body if re.search(r" return_path[46]$", r)]
    assert all(re.search(r" @published(?:_ranges)?[46] goto return_path[46]$", rule) for rule in entering)


@pytest.mark.parametrize("family", [4, 6])
def test_longer_prefixes_come_first_so_the_most_specific_subnet_decides(family: int) -> None:
    ip = {4: 30, 6: 126}[family]
    parts = {CORE, prefix_part(family, 8), prefix_part(family, ip), prefix_part(family, 16)}
    rules = [rule for rule in chains(parts)[f"outbound{family}"].rules if "subnets" in rule]
    assert [int(found[1]) for rule in rules if (found := re.search(r"@subnets\d_(\d+)", rule))] == [ip, 16, 8]


def test_conditions_go_on_to_the_chain_without_them() -> None:
    policy = Policy("publish", {4: ("ip saddr 192.0.2.0/24",)})
    commands = policies_text([policy])
    assert f"add chain inet {TABLE} {policy.chain}" in commands
    assert f"add rule inet {TABLE} {policy.chain} meta nfproto ipv4 ip saddr 192.0.2.0/24 goto publish" in commands
    assert f"add rule inet {TABLE} {policy.chain} meta nfproto ipv6 goto publish" in commands
    assert not any(command == f"flush chain inet {TABLE} publish" for command in commands), "that one is of a part"
