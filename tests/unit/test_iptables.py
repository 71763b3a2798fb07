"""What iptables-restore is given to read."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.hotpath.addresses import Endpoint
from cni_quantum_nat.hotpath.model import Attachment, AttachmentId, Inbound, Outbound, PortMapping
from cni_quantum_nat.slowpath.iptables_rules import FIXED_CHAINS, fixed_rules, own_chains, plan_rules
from cni_quantum_nat.slowpath.iptables_text import Listing, Script, owner_of

# What protocol.py lets through as names.
NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,80}", fullmatch=True)
INTERFACES = st.text(
    st.characters(exclude_characters="/:\0", exclude_categories=["Z", "C"]), min_size=1, max_size=5
).filter(lambda name: name not in (".", "..") and not any(c.isspace() for c in name))


def attachment(identity: AttachmentId) -> Attachment:
    return Attachment(
        identity,
        backend="iptables",
        netns="",
        netns_identity=(0, 0),
        endpoints=[Endpoint.parse("10.0.0.2/24"), Endpoint.parse("fd00::2/64")],
        port_mappings=[PortMapping(None, 8080, "tcp", 80)],
        outbound=Outbound((4, 6)),
        inbound=Inbound(),
        established_timeout_s=3600,
        created_at=1.0,
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
            assert owner_of(line.replace("-I", "-A", 1)) == identity.owner


def test_no_name_of_a_chain_is_too_long() -> None:
    fixed = [name for names in FIXED_CHAINS.values() for name in names]
    own = own_chains(attachment(AttachmentId("n" * 100, "c" * 100, "eth0")))
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
