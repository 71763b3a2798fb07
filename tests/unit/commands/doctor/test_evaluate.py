"""The doctor's evaluation of cases that this kernel cannot show: a kernel that refuses the table, all kinds of chains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from cni_quantum_nat.commands.doctor import rules
from cni_quantum_nat.commands.doctor.chains import Ruleset
from cni_quantum_nat.commands.doctor.evaluate import drops_of
from cni_quantum_nat.commands.doctor.matches import Packet
from cni_quantum_nat.commands.doctor.snapshot import Snapshot
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state.directory import State

if TYPE_CHECKING:
    from pathlib import Path

PACKET = Packet(4, "eth0", "cni0", "198.51.100.7", "10.88.0.2", "tcp", 80, "new", frozenset({"dnat"}))


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel has no namespaces for this user")
def test_a_kernel_that_refuses_the_table_is_reported_with_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise CniError(50, "nftables cannot hold table inet quantum", "Error: Could not process rule: Not supported")

    monkeypatch.setattr(rules, "rehearse", refuse)
    (found,) = rules.check_kernel(Snapshot(State(str(tmp_path))))
    assert "Not supported" in found.problem
    assert "nft_fib_inet" in found.remedy


def match(left: dict[str, Any], right: object, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


META_IN = {"meta": {"key": "iifname"}}
META_OUT = {"meta": {"key": "oifname"}}
SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
TARGET = {"payload": {"protocol": "ip", "field": "daddr"}}
PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
STATE = {"ct": {"key": "state"}}
ACCEPT, DROP, XT = {"accept": None}, {"drop": None}, {"xt": {"type": "match", "name": "anything"}}

CASES: list[tuple[list[list[dict[str, Any]]], str]] = [
    ([], "drops"),
    ([[ACCEPT]], "passes"),
    ([[match(META_IN, "eth0"), match(META_OUT, "cni0"), ACCEPT]], "passes"),
    ([[match(META_IN, "docker0"), ACCEPT]], "drops"),
    ([[match(META_IN, "docker0", "!="), ACCEPT]], "passes"),
    ([[match(META_OUT, "cni*"), ACCEPT]], "passes"),
    ([[match(META_OUT, {"set": ["lo", "cni0"]}), ACCEPT]], "passes"),
    ([[match(TARGET, {"prefix": {"addr": "10.88.0.0", "len": 16}}), ACCEPT]], "passes"),
    ([[match(TARGET, {"prefix": {"addr": "10.89.0.0", "len": 16}}), ACCEPT]], "drops"),
    ([[match(SOURCE, {"set": ["198.51.100.7", {"prefix": {"addr": "10.0.0.0", "len": 8}}]}), DROP], [ACCEPT]], "drops"),
    ([[match(PORT, {"range": [80, 90]}), ACCEPT]], "passes"),
    ([[match({"payload": {"protocol": "udp", "field": "dport"}}, 80), ACCEPT]], "drops"),
    ([[match({"payload": {"protocol": "ip6", "field": "daddr"}}, "fd00::1"), ACCEPT]], "drops"),
    ([[match(STATE, ["established", "related"], "in"), ACCEPT]], "drops"),
    ([[match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT]], "passes"),
    ([[XT, ACCEPT]], "may drop"),
    ([[match({"meta": {"key": "mark"}}, 1), ACCEPT]], "drops"),
    ([[match({"meta": {"key": "mark"}}, 0), ACCEPT]], "passes"),
    (
        [[{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 3}}], [match({"meta": {"key": "mark"}}, 1), ACCEPT]],
        "may drop",
    ),
    (
        [[{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 2}}], [match({"meta": {"key": "mark"}}, 1), ACCEPT]],
        "drops",
    ),
    ([[match({"payload": {"protocol": "ip6", "field": "daddr"}}, "fd00::1", "!="), ACCEPT]], "drops"),
    ([[match({"concat": [TARGET, PORT]}, {"set": [{"concat": ["10.88.0.2", 80]}]}), ACCEPT]], "passes"),
    ([[match(TARGET, {"range": ["10.88.0.1", "10.88.0.9"]}), ACCEPT]], "passes"),
    ([[match(PORT, 100, "<"), ACCEPT]], "passes"),
    ([[{"queue": None}]], "may drop"),
    ([[{"vmap": {"key": {"meta": {"key": "cpu"}}, "data": {"set": [[0, ACCEPT], [1, DROP]]}}}], [ACCEPT]], "may drop"),
    ([[XT, DROP], [ACCEPT]], "may drop"),
    ([[{"limit": {"rate": 1}}, ACCEPT]], "may drop"),
    ([[match(TARGET, "@known"), ACCEPT]], "passes"),
    ([[match(TARGET, "@unheard"), ACCEPT]], "may drop"),
    ([[{"jump": {"target": "accepts"}}]], "passes"),
    ([[{"jump": {"target": "returns"}}, {"counter": None}], [ACCEPT]], "passes"),
    ([[{"goto": {"target": "returns"}}], [ACCEPT]], "drops"),
    ([[{"return": None}], [ACCEPT]], "drops"),
    ([[{"vmap": {"key": STATE, "data": {"set": [["new", ACCEPT], ["invalid", DROP]]}}}]], "passes"),
    ([[{"vmap": {"key": META_IN, "data": {"set": [["eth0", {"jump": {"target": "accepts"}}]]}}}]], "passes"),
    ([[{"reject": {"type": "icmpx"}}], [ACCEPT]], "drops"),
    ([[{"jump": {"target": "loops"}}], [ACCEPT]], "passes"),
]


def ruleset(forward: list[list[dict[str, Any]]]) -> Ruleset:
    """Return a table with this forward chain, with policy drop, and chains to jump to."""
    table = {"family": "inet", "table": "filter"}
    chains = {"forward": forward, "accepts": [[ACCEPT]], "returns": [[{"return": None}], [DROP]]}
    chains["loops"] = [[{"jump": {"target": "loops"}}]]
    base = {"type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}
    listed: list[dict[str, Any]] = [{"set": {**table, "name": "known", "elem": ["10.88.0.2"]}}]
    listed += [{"chain": {**table, "name": name, **(base if name == "forward" else {})}} for name in chains]
    listed += [{"rule": {**table, "chain": name, "expr": rule}} for name, body in chains.items() for rule in body]
    return Ruleset(listed)


@pytest.mark.parametrize(("forward", "verdict"), CASES)
def test_verdict_of_a_chain(forward: list[list[dict[str, Any]]], verdict: str) -> None:
    host = ruleset(forward)
    (chain,) = host.hooked("forward", 4)
    drop, certain = drops_of(host, chain, PACKET)
    assert ("passes" if drop is None else "drops" if certain else "may drop") == verdict
