"""conditionsV4 and conditionsV6: match expressions are accepted, everything else is refused."""

from __future__ import annotations

import pytest

from cni_quantum_nat.cni.conditions import backend_of, check_conditions


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["ip", "saddr", "!=", "192.0.2.0/24"],
        ["ip saddr { 192.0.2.1, 192.0.2.128-192.0.2.255 }"],
        ["iifname", "eth*", "meta", "mark", "&", "0xff", "==", "0x1"],
        ["ct", "state", "new,related"],
        ["-s", "192.0.2.0/24"],
        ["!", "-d", "192.0.2.1", "-m", "mark", "--mark", "0x1/0xff"],
        ["-m", "iprange", "--src-range", "192.0.2.1-192.0.2.9"],
        ["-m", "conntrack", "--ctstate", "NEW"],
    ],
)
def test_match_expressions_pass(words: list[str]) -> None:
    assert check_conditions(words) == words


@pytest.mark.parametrize(
    "words",
    [
        ["ip saddr 192.0.2.1 drop"],
        ["ip", "saddr", "192.0.2.1", "counter"],
        ["meta mark set 1"],
        ["ip saddr vmap { 192.0.2.1 : drop }"],
        ["ip saddr 192.0.2.1;", "add", "rule"],
        ["ip saddr 192.0.2.1\nadd rule x"],
        ["ip saddr 192.0.2.1 } chain x {"],
        ["ip saddr 192.0.2.1 }"],
        ["ip saddr { 192.0.2.1"],
        ['iifname "eth0" comment "x"'],
        ["ip saddr 192.0.2.1 # the rest"],
        ["ip saddr $x"],
        ["ip saddr @set"],
        ["-j", "DROP"],
        ["-s", "192.0.2.1", "-jDROP"],
        ["--jum", "DROP"],
        ["--goto=x"],
        ["-s", "192.0.2.1\n-A", "INPUT"],
        ["-s", "192.0.2.1 -j DROP"],
        ["-t", "filter"],
        ["-m", "comment", "--comment", 'a"b'],
        ["-A", "INPUT"],
        ["--"],
    ],
)
def test_everything_else_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"match|unbalanced|not an address"):
        check_conditions(words)


def test_the_first_character_selects_the_syntax_as_in_portmap() -> None:
    assert backend_of(["-s", "x"]) == backend_of(["!", "-s", "x"]) == "iptables"
    assert backend_of(["ip", "saddr"]) == "nftables"
