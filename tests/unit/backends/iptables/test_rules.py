"""What iptables-restore is given to read."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.iptables.rules import (
    FIXED_CHAINS,
    chains_of,
    fixed_rules,
    plan_rules,
)
from cni_quantum_nat.backends.iptables.text import Listing, Names, Script, begin_anew, remove_owners
from cni_quantum_nat.model.addresses import Address, Endpoint
from cni_quantum_nat.model.attachments import Attachment, AttachmentId, Inbound, Outbound, PortMapping

# What protocol.py lets through as names.
NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,80}", fullmatch=True)
INTERFACES = st.text(
    st.characters(exclude_characters="/:\0", exclude_categories=["Z", "C"]), min_size=1, max_size=5
).filter(lambda name: name not in (".", "..") and not any(c.isspace() for c in name))


def attachment(identity: AttachmentId, *, created_at: float = 1.0, inbound: Inbound | None = None) -> Attachment:
    return Attachment(
        identity,
        backend="iptables",
        netns="",
        netns_identity=(0, 0),
        endpoints=[Endpoint.parse("10.0.0.2/24"), Endpoint.parse("fd00::2/64")],
        port_mappings=[PortMapping(None, 8080, "tcp", 80)],
        outbound=Outbound((4, 6)),
        inbound=inbound or Inbound(),
        established_timeout_s=3600,
        created_at=created_at,
    )


@pytest.mark.parametrize("family", [4, 6])
@given(st.builds(AttachmentId, NAMES, NAMES, INTERFACES))
def test_no_name_becomes_syntax_and_the_owner_can_be_read_back(family: int, identity: AttachmentId) -> None:
    for rule in plan_rules(attachment(identity), family):
        line = rule.line()
        assert "\n" not in line
        words = shlex.split(line)
        assert words.count("--comment") == 1
        assert words[words.index("--comment") + 1] == identity.owner
        if rule.chain.startswith("QUANTUM-"):
            assert Names().owner_of(re.sub("^-I", "-A", line)) == identity.owner


def test_no_name_of_a_chain_is_too_long() -> None:
    fixed = [name for names in FIXED_CHAINS.values() for name in names]
    own = chains_of(AttachmentId("n" * 100, "c" * 100, "eth0").owner)
    assert all(len(name) <= 28 for name in (*fixed, *own))


def test_a_script_makes_chains_first_and_removes_last_those_it_does_not_make() -> None:
    script = Script()
    script.remove_chains("nat", ["A", "B"])
    script.change([rule for rule in fixed_rules(4) if rule.chain == "QUANTUM-INBOUND"] or fixed_rules(4)[:1])
    script.make_chains("nat", ["B"])
    lines = script.text.splitlines()
    assert lines[:3] == ["*nat", ":B - [0:0]", ":A - [0:0]"]
    assert lines[-2:] == ["-X A", "COMMIT"]
    assert "-X B" not in lines


def test_a_listing_knows_the_owners_of_our_rules_alone() -> None:
    listing = Listing(
        "# comment\n*nat\n:PREROUTING ACCEPT [0:0]\n:QUANTUM-ANY-IP - [0:0]\n"
        '-A QUANTUM-ANY-IP -p tcp -m comment --comment "net/c/eth0" -j DNAT --to-destination 10.0.0.2:80\n'
        "-A QUANTUM-ANY-IP -p tcp -m comment --comment net/d/eth0 -j DNAT --to-destination 10.0.0.3:80\n"
        '-A PREROUTING -m comment --comment "docker" -j DOCKER\nCOMMIT\n'
        "*mangle\n-A QUANTUM-X -m comment --comment other -j ACCEPT\nCOMMIT\n"
    )
    assert listing.owners() == {"net/c/eth0", "net/d/eth0"}
    assert listing.chains["nat"] == {"PREROUTING", "QUANTUM-ANY-IP"}


@pytest.mark.parametrize(
    ("realm", "comment", "owner"),
    [
        ("", "net/c/eth0", "net/c/eth0"),
        ("", "net/c/eth0:12ab", "net/c/eth0:12ab"),
        (":12ab", "net/c/eth0:12ab", "net/c/eth0"),
        (":12ab", "net/c/eth0:34cd", "net/c/eth0:34cd"),
        (":12ab", "net/c/eth0", "net/c/eth0:"),
        (":12ab", "net/ours/eth0", "net/ours/eth0"),
    ],
)
def test_the_owner_of_another_state_directory_has_a_colon(realm: str, comment: str, owner: str) -> None:
    names = Names(realm, lambda name: name == "net/ours/eth0")
    line = f'-A QUANTUM-ANY-IP -p tcp -m comment --comment "{comment}" -j DNAT --to-destination 10.0.0.2:80'
    assert names.owner_of(line) == owner
    assert set(chains_of(comment)) <= names.chains_of(owner)
    assert names.is_of_1_0_0(line) == (comment == "net/ours/eth0")


WEB, OTHER = AttachmentId("net", "web", "eth0"), AttachmentId("net", "other", "eth0")


def saved(*identities: AttachmentId, family: int = 4) -> Listing:
    """Return what iptables-save lists when these are there; as we write it, it would."""
    rules = [
        *fixed_rules(family),
        *(rule for identity in identities for rule in plan_rules(attachment(identity), family)),
    ]
    own = {chain for identity in identities for chain in chains_of(identity.owner)}
    lines = []
    for table, names in FIXED_CHAINS.items():
        chains = [*names, *sorted(own)] if table == "nat" else names
        lines += [f"*{table}", *(f":{name} - [0:0]" for name in chains)]
        lines += [rule.line("-A") for rule in rules if rule.table == table]
    return Listing("\n".join(lines))


@pytest.mark.parametrize("family", [4, 6])
def test_a_listing_says_whether_all_that_is_fixed_is_there(family: int) -> None:
    assert saved(WEB, family=family).has_all_fixed(family)
    for number in range(len(fixed_rules(family))):
        damaged = saved(WEB, family=family)
        rule = fixed_rules(family)[number]
        damaged.rules.remove((rule.table, rule.line("-A")))
        assert not damaged.has_all_fixed(family)
    for table, names in FIXED_CHAINS.items():
        for name in names:
            damaged = saved(WEB, family=family)
            damaged.chains[table].remove(name)
            assert not damaged.has_all_fixed(family)


def test_what_is_left_out_goes_and_all_else_keeps_its_order() -> None:
    text = remove_owners(Script(), saved(WEB, OTHER), {WEB.owner}).text
    assert WEB.owner not in text
    assert [f"-X {chain}" in text for chain in (*chains_of(WEB.owner), *chains_of(OTHER.owner))] == [
        True,
        True,
        False,
        False,
    ]
    for chain in ("QUANTUM-ANY-IP", "QUANTUM-INBOUND", "QUANTUM-OUTBOUND"):
        kept = [rule for rule in plan_rules(attachment(OTHER), 4) if rule.chain == chain]
        assert f":{chain} - [0:0]" in text
        assert [line for line in text.splitlines() if line.startswith(f"-A {chain} ")] == [r.line("-A") for r in kept]
    assert ":QUANTUM-POSTROUTING" not in text, "where nothing changes, nothing is written"


def test_a_fresh_beginning_keeps_what_no_record_accounts_for() -> None:
    text = begin_anew(Script(), saved(WEB, OTHER), {WEB.owner}, 4).text
    lines = text.splitlines()
    assert WEB.owner not in text
    for rule in plan_rules(attachment(OTHER), 4):
        assert (rule.line("-A") in lines) == (rule.chain in FIXED_CHAINS["nat"]), "its own chains are left as they are"
    for rule in fixed_rules(4):
        assert lines.count(rule.line()) == 1
        assert lines.count(rule.line("-D")) == (not rule.chain.startswith("QUANTUM-"))


def test_a_condition_may_bring_a_comment_and_addresses() -> None:
    conditions = ("-m", "comment", "--comment", "net/other/eth0", "!", "-s", "192.0.2.1", "-d", "192.0.2.2")
    published = attachment(WEB, inbound=Inbound(conditions={4: conditions}, mark_bit=3))
    published.port_mappings[0].host_ip = Address.parse("192.0.2.2")
    rules = [rule for rule in plan_rules(published, 4) if rule.chain == "QUANTUM-HOST-IP"]
    assert len(rules) == 3
    for rule in rules:
        words = shlex.split(rule.specification)
        assert (words.count("-s"), words.count("-d")) == (1, 1)
        assert Names().owner_of(rule.line()) == WEB.owner


def test_one_rule_masquerades_by_the_mark() -> None:
    published = attachment(WEB, inbound=Inbound(mark_bit=3))
    published.port_mappings.append(PortMapping(None, 8081, "udp", 81))
    assert sum("--mark" in rule.specification for rule in plan_rules(published, 4)) == 1
