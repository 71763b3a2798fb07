"""conditionsV4 and conditionsV6: match expressions are accepted, everything else is refused."""

from __future__ import annotations

import pytest

from cni_quantum_nat.model.conditions import backend_of, check_conditions


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


@pytest.mark.parametrize(
    "words",
    [
        ["ip saddr != { 192.0.2.1, 198.51.100.0/24 } tcp dport ssh"],
        ["ip saddr & 255.255.255.0 == 192.0.2.0"],
        ["ip saddr . tcp dport { 192.0.2.1 . 80, 192.0.2.2-192.0.2.9 . 90-99 }"],
        ["ip saddr . meta l4proto { 192.0.2.1 . tcp }"],
        ["ip6 daddr 2001:db8::/32 iifname != wg0"],
        ["ether saddr 02:00:00:00:00:01"],
        ["fib saddr type local", "meta skuid 1000"],
        ["!", "-s", "192.0.2.1,198.51.100.0/24"],
    ],
)
def test_addresses_and_numbers_pass(words: list[str]) -> None:
    assert check_conditions(words) == words


@pytest.mark.parametrize(
    "words",
    [
        ["iif", "wg0"],
        ["meta oif wg0"],
        ["fib saddr oif wg0"],
        ["ip saddr != localhost"],
        ["ip saddr { 192.0.2.1, www.example.com }"],
        ["ip saddr . tcp dport { localhost . 80 }"],
        ["ip saddr . ip daddr { 192.0.2.1 . localhost }"],
        ["ip6 daddr ip6-localhost"],
        ["meta skuid root"],
        ["-s", "localhost"],
        ["!", "--source", "192.0.2.1,localhost"],
    ],
)
def test_names_that_are_looked_up_are_refused(words: list[str]) -> None:
    """At 1.0.0 (defect 4) a network whose condition no longer loaded kept the whole host from being repaired."""
    with pytest.raises(ValueError, match=r"names are not looked up|by name"):
        check_conditions(words)
