"""`quantum-nat doctor` and filters of other programs, at every hook: each case adds one, proves by traffic that it drops, and runs the cure
as printed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from .plugin import Plugin, publish
from .test_doctor import findings, only_finding
from .test_doctor_paths import Network, network, traffic_of
from .test_sources import FAR, FAR_HOST, far
from .topology import CLIENT, HOST, NO_REPLY_TIMEOUT_S, Host, Namespace

__all__ = ["far", "network"]  # fixtures
ALL = ("inbound4", "inbound6", "outbound4", "outbound6", "local")


class Case(NamedTuple):
    """What is added: text for nft -f, or commands of iptables. where: the chain that doctor names. dead: the traffic that then fails."""

    where: str
    rule: str
    dead: str
    nft: str = ""
    commands: tuple[str, ...] = ()


def chain(family: str, hook: str, rules: str, *, policy: str = "accept") -> str:
    """Return a table with one base chain. hook: with its priority."""
    return f"table {family} filtering {{{{ chain checked {{{{ type filter hook {hook}; policy {policy}; {rules}; }}}}\n}}}}"


OURS = "chain checked in table {} filtering"
CASES = {
    "prerouting-before-tracking": Case(OURS.format("inet"), "rule 1 drops connections to host port 8080/tcp", "inbound4 inbound6", chain("inet", "prerouting priority -300", "tcp dport 8080 drop")),
    "prerouting-before-translation": Case(OURS.format("inet"), "rule 1 drops connections to host port 8080/tcp", "inbound4 inbound6", chain("inet", "prerouting priority -150", "ct state new tcp dport 8080 drop")),
    "prerouting-of-type-nat": Case(OURS.format("ip"), "rule 1 drops connections to host port 8080/tcp", "inbound4", chain("ip", "prerouting priority -150", "tcp dport 8080 drop").replace("type filter", "type nat")),
    "prerouting-after-translation": Case(OURS.format("ip"), "rule 1 drops connections to host port 8080/tcp", "inbound4", chain("ip", "prerouting priority -50", "ip daddr {v4} tcp dport 80 drop")),
    "prerouting-untracked": Case(OURS.format("inet"), "rule 1 exempts from connection tracking", "inbound4 inbound6", chain("inet", "prerouting priority -300", "tcp dport 8080 notrack")),
    "raw": Case("chain PREROUTING in table ip raw", "rule 1 drops", "inbound4", commands=("iptables-nft -t raw -A PREROUTING -p tcp --dport 8080 -j DROP",)),
    "raw-legacy": Case("chain PREROUTING in table ip raw, legacy", "rule 1 drops", "inbound4", commands=("iptables-legacy -t raw -A PREROUTING -p tcp --dport 8080 -j DROP",)),
    "raw-of-ipv6": Case("chain PREROUTING in table ip6 raw", "rule 1 drops", "inbound6", commands=("ip6tables-nft -t raw -A PREROUTING -p tcp --dport 8080 -j DROP",)),
    "raw-untracked": Case("chain PREROUTING in table ip raw", "rule 1 exempts from connection tracking", "inbound4", commands=("iptables-nft -t raw -A PREROUTING -p tcp --dport 8080 -j CT --notrack",)),
    "forward-policy-of-ipv6-alone": Case("chain FORWARD in table ip6 filter", "its policy drops", "inbound6 outbound6", commands=("ip6tables-nft -P FORWARD DROP",)),
    "forward-policy-of-ipv6-legacy": Case("chain FORWARD in table ip6 filter, legacy", "its policy drops", "inbound6 outbound6", commands=("ip6tables-legacy -P FORWARD DROP",)),
    "forward-mangle-legacy": Case("chain FORWARD in table ip mangle, legacy", "rule 1 drops", "inbound4", commands=("iptables-legacy -t mangle -A FORWARD -o cni0 -m conntrack --ctstate NEW -j DROP",)),
    "forward-jump": Case("chain REFUSED in table ip filter", "rule 2 drops connections to host port 8080/tcp", "inbound4", commands=("iptables-nft -N REFUSED", "iptables-nft -A REFUSED -p udp -j RETURN", "iptables-nft -A REFUSED -d {v4} -p tcp --dport 80 -j REJECT", "iptables-nft -A FORWARD -j REFUSED")),
    "forward-jump-of-nft": Case("chain refused in table inet filtering", "rule 1 drops", "inbound4 inbound6", "table inet filtering {{ chain refused {{ oifname cni0 tcp dport 80 drop; }}\nchain checked {{ type filter hook forward priority 0; ct state new jump refused; }}\n}}"),
    "forward-policy-and-other-ports": Case(OURS.format("ip"), "its policy drops connections to host port 8080/tcp", "inbound4", chain("ip", "forward priority 0", "ct state established,related accept; tcp dport {{ 81, 443 }} accept; ip saddr 10.88.0.0/24 accept", policy="drop")),
    "forward-set-of-ports": Case(OURS.format("inet"), "rule 1 drops", "inbound4 inbound6", "table inet filtering {{ set closed {{ type inet_service; flags interval; elements = {{ 70-90, 8000 }}; }}\nchain checked {{ type filter hook forward priority 0; ct status dnat tcp dport @closed drop; }}\n}}"),
    "forward-set-of-endpoints": Case(OURS.format("ip"), "rule 1 drops", "inbound4", chain("ip", "forward priority 0", "ip daddr . tcp dport {{ {v4} . 80, 10.88.0.99 . 80 }} drop")),
    "forward-map": Case(OURS.format("ip"), "rule 1 drops", "inbound4 outbound4", chain("ip", "forward priority 0", "ip saddr vmap {{ 10.1.0.0/16 : accept, 10.88.0.0/24 : drop }}")),
    "forward-replies-only": Case(OURS.format("inet"), "rule 2 drops", "inbound4 inbound6 outbound4 outbound6", chain("inet", "forward priority 10", "ct state established,related accept; reject")),
    "forward-no-replies": Case(OURS.format("ip"), "rule 1 drops replies from", "inbound4 outbound4", chain("ip", "forward priority 0", "ip saddr {v4} ct state established drop")),
    "output-before-translation": Case(OURS.format("ip"), "rule 1 drops connections from this host to 127.0.0.1, host port 9090/tcp", "local", chain("ip", "output priority -150", "ip daddr 127.0.0.1 tcp dport 9090 drop")),
    "output-after-translation": Case("chain OUTPUT in table ip filter", "rule 1 drops connections from this host", "local", commands=("iptables-nft -A OUTPUT -d 10.88.0.0/24 -p tcp -j DROP",)),
    "input": Case(OURS.format("inet"), "rule 1 drops replies from 10.88.0.11 to this host", "local", chain("inet", "input priority 0", 'iifname "cni0" meta l4proto tcp drop')),
    "input-legacy": Case("chain INPUT in table ip filter, legacy", "rule 1 drops replies from 10.88.0.11 to this host", "local", commands=("iptables-legacy -A INPUT -s 10.88.0.0/24 -p tcp -j DROP",)),
    "postrouting": Case("chain POSTROUTING in table ip mangle", "rule 1 drops", "inbound4 outbound4 local", commands=("iptables-nft -t mangle -A POSTROUTING -o cni0 -p tcp -j DROP",)),
    "postrouting-after-translation": Case(OURS.format("ip"), "rule 1 drops connections from 10.88.0.11", "outbound4", chain("ip", "postrouting priority 200", 'oifname "uplink" ct state new ip saddr 198.51.100.1 ip protocol tcp drop')),
    "ingress-of-the-uplink": Case(OURS.format("netdev"), "rule 1 drops connections to host port 8080/tcp", "inbound4 inbound6", chain("netdev", 'ingress device "uplink" priority 0', "tcp dport 8080 drop")),
    "ingress-of-the-uplink-in-inet": Case(OURS.format("inet"), "rule 1 drops connections to host port 8080/tcp", "inbound4 inbound6", chain("inet", 'ingress device "uplink" priority 0', "tcp dport 8080 drop")),
    "ingress-of-the-container": Case(OURS.format("netdev"), "rule 1 drops", "inbound4 outbound4 local", chain("netdev", 'ingress device "{port}" priority 0', "ip saddr {v4} ip protocol tcp drop")),
    "egress-of-the-uplink": Case(OURS.format("netdev"), "rule 1 drops replies from 10.88.0.11", "inbound4 inbound6", chain("netdev", 'egress device "uplink" priority 0', "tcp sport 8080 drop")),
    "bridge-input": Case(OURS.format("bridge"), "rule 1 drops", "inbound4 outbound4 local", chain("bridge", "input priority 0", "ip saddr {v4} ip protocol tcp drop")),
    "bridge-output": Case(OURS.format("bridge"), "rule 1 drops", "inbound4 outbound4 local", chain("bridge", "output priority 0", 'oifname "{port}" ip protocol tcp drop')),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_filter_is_named_and_cured(plugin: Plugin, network: Network, name: str) -> None:
    case, host, container = CASES[name], network.host, network.container
    names = {"port": network.port, "v4": container.address[4], "v6": container.address[6]}
    if "legacy" in name:
        host.require_legacy_iptables()
    if case.nft:
        host.run("nft", "-f", "-", stdin=case.nft.format(**names))
    for command in case.commands:
        host.run(*command.format(**names).split())
    assert [one for one in ALL if not traffic_of(network, one)] == case.dead.split()
    found = findings(plugin)
    assert {(entry["check"], entry["status"], entry["where"]) for entry in found} == {
        ("filters", "problem", case.where)
    }, found
    assert any(case.rule in entry["problem"] for entry in found), found
    for entry in found:
        host.run("sh", "-c", entry["remedy"])
    assert [one for one in ALL if not traffic_of(network, one)] == [], found
    assert findings(plugin) == []


def test_a_cure_opens_nothing_but_the_published_port(plugin: Plugin, network: Network) -> None:
    """Neither the container's other ports, nor the published one by routing, nor another container."""
    host, client = network.host, network.client
    network.container.serve("private", 81)
    other = host.container()
    other.serve("other", 80)
    host.run("iptables-nft", "-P", "FORWARD", "DROP")
    host.run("sh", "-c", " && ".join(entry["remedy"] for entry in findings(plugin)))
    assert network.inbound()
    assert network.outbound()
    client.ip(f"route add 10.88.0.0/24 via {HOST[4]}")
    assert client.cannot_reach(network.container.address[4], 81)
    assert client.cannot_reach(network.container.address[4], 80)
    assert client.cannot_reach(other.address[4], 80)
    assert other.cannot_reach(CLIENT[4], 80)


def test_what_several_filters_drop_is_found_in_one_run(plugin: Plugin, network: Network) -> None:
    """The cures of two rules of one chain of iptables are in an order in which the numbers stay right."""
    host = network.host
    for rule in ("-A FORWARD -d 10.88.0.0/24 -p tcp --dport 80 -j DROP", "-A FORWARD -s 10.88.0.0/24 -p tcp -j DROP"):
        host.run("iptables-nft", *rule.split())
    host.run("nft", "-f", "-", stdin=chain("ip", "prerouting priority -300", "tcp dport 8080 drop").format())
    found = findings(plugin)
    assert [entry["problem"].partition(" drops")[0] for entry in found] == ["rule 2", "rule 1", "rule 1"], found
    for entry in found:
        host.run("sh", "-c", entry["remedy"])
    assert network.inbound()
    assert network.outbound()
    assert findings(plugin) == []


def test_before_connection_tracking_replies_from_outside_have_no_narrow_cure(plugin: Plugin, network: Network) -> None:
    network.host.run("nft", "-f", "-", stdin=chain("ip", "prerouting priority -300", "ct state invalid drop").format())
    assert [one for one in ALL if not traffic_of(network, one)] == ["inbound4", "outbound4", "local"]
    found = findings(plugin)
    assert {entry["check"] for entry in found} == {"filters"}
    commands = [entry["remedy"] for entry in found if entry["remedy"].startswith("nft ")]
    assert len(commands) == len(found) - 1
    for command in commands:
        network.host.run("sh", "-c", command)
    assert [one for one in ALL if not traffic_of(network, one)] == ["outbound4"]
    left = only_finding(plugin, "filters")
    assert "drops replies from outside to 10.88.0.11" in left["problem"]
    assert "no rule tells them from other packets" in left["remedy"]


@pytest.mark.parametrize("program", ["nft", "iptables-nft"])
def test_a_chain_that_drops_for_many_containers_is_one_problem(plugin: Plugin, network: Network, program: str) -> None:
    host = network.host
    for number in range(4):
        other = host.container()
        other.serve(f"web{number}", 80)
        plugin.add(other, publish(8090 + number))
    if program == "nft":
        host.run(
            "nft", "-f", "-", stdin=chain("inet", "forward priority 0", 'oifname "cni0" ct state new drop').format()
        )
    else:
        host.run(*["iptables-nft", "-A", "FORWARD", "-o", "cni0", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"])
    (found,) = findings(plugin)
    assert found["problem"].endswith(" and 9 more" if program == "nft" else " and 4 more")  # nft's is of both families
    assert found["remedy"].count("accept") + found["remedy"].count("ACCEPT") == (2 if program == "nft" else 1)
    host.run("sh", "-c", found["remedy"])
    for number in range(4):
        assert network.client.ask(HOST[4], 8090 + number, timeout=NO_REPLY_TIMEOUT_S).server == f"web{number}"
    assert findings(plugin) == []


WITHOUT_EFFECT = {
    "a-port-outside": chain("inet", "forward priority 0", "tcp dport 25 drop"),
    "a-block-list": chain("inet", "prerouting priority -300", "ip saddr {{ 203.0.113.0/24, 192.0.2.7 }} drop"),
    "a-mark-that-nobody-sets": chain("ip", "forward priority 0", "meta mark & 0x8000 == 0x8000 drop"),
    "another-interface": chain("inet", "forward priority 0", 'iifname "wg0" drop; oifname "docker*" drop'),
    "invalid-packets": chain("inet", "forward priority 0", "ct state invalid drop; tcp flags & (fin|syn) == (fin|syn) drop"),
    "spoofed-sources": chain("inet", "prerouting priority -150", "fib saddr . iif oif missing drop"),
    "what-is-for-the-host": chain("inet", "prerouting priority -50", "fib daddr type local tcp dport {{ 80, 8080 }} drop"),
    "other-families": chain("inet", "forward priority 0", "ip6 daddr != fd88::/64 ip6 saddr != fd88::/64 drop; icmp type echo-request drop"),
    "other-protocols": chain("inet", "forward priority 0", "meta l4proto 50-60 drop; ip protocol 100-120 drop"),
    "a-dormant-table": "table inet filtering {{ flags dormant; chain checked {{ type filter hook forward priority 0; policy drop; }}\n}}",
    "kube-proxy": """table ip kube-proxy {{
        map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
        chain endpoint {{ meta l4proto tcp dnat to 10.244.0.5:8080; }}
        chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
        chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
    }}
    add element ip kube-proxy service-ips {{ 10.96.0.1 . tcp . 8080 : goto endpoint }}""",
    "another-device": chain("netdev", 'ingress device "cni1" priority 0', "drop"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_filter_of_other_traffic_is_no_problem(plugin: Plugin, network: Network, name: str) -> None:
    network.host.run("nft", "-f", "-", stdin=WITHOUT_EFFECT[name].format())
    assert [one for one in ALL if not traffic_of(network, one)] == []
    assert findings(plugin) == []


UNKNOWN = {
    "an-allow-list": (chain("inet", "forward priority 0", "ct state new ct status dnat ip saddr != 198.51.100.0/24 drop"), "others may pass"),
    "a-rate": (chain("inet", "forward priority 0", "ct state new limit rate over 500/second drop"), "rule 1 may drop"),
    "a-count": (chain("inet", "forward priority 0", "ct state new tcp dport 80 ct count over 100 drop"), "rule 1 may drop"),
    "a-meter": ("table inet filtering {{ set met {{ type ipv4_addr; size 1000; flags dynamic; }}\nchain checked {{ type filter hook prerouting priority -300; tcp dport 8080 add @met {{ ip saddr limit rate over 1000/second }} drop; }}\n}}", "rule 1 may drop"),
    "a-mark": (chain("ip", "prerouting priority -150", "meta mark set ct mark") + "\n" + chain("ip", "forward priority 0", "meta mark 7 drop").replace("filtering", "marking"), "may drop"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_depends_on_what_doctor_cannot_know_is_unknown(plugin: Plugin, network: Network, name: str) -> None:
    text, problem = UNKNOWN[name]
    network.host.run("nft", "-f", "-", stdin=text.format())
    assert [one for one in ALL if not traffic_of(network, one) and one.endswith("4")] == []
    found = findings(plugin)
    assert {(entry["check"], entry["status"]) for entry in found} == {("filters", "unknown")}, found
    assert all(problem in entry["problem"] for entry in found), found


def test_services_of_kube_proxy_by_iptables_are_no_problem(plugin: Plugin, network: Network) -> None:
    for command in (
        "-N KUBE-SVC",
        "-A KUBE-SVC -p tcp -j DNAT --to-destination 10.244.0.5:8080",
        "-A PREROUTING -d 10.96.0.1/32 -p tcp --dport 8080 -j KUBE-SVC",
    ):
        network.host.run("iptables-nft", "-t", "nat", *command.split())
    assert [one for one in ALL if not traffic_of(network, one)] == []
    assert findings(plugin) == []


FILTERED: dict[str, tuple[dict[str, Any], str]] = {
    "publishOn": ({"publishOn": ["eth1"]}, 'iifname "uplink" ip daddr {v4} ct state new drop'),
    "allowFrom": ({"allowFrom": [f"{CLIENT[4]}/32", f"{CLIENT[6]}/128"]}, f"ip saddr != {CLIENT[4]} ip daddr {{v4}} ct state new drop"),
}  # fmt: skip


@pytest.mark.nftables
@pytest.mark.parametrize("key", FILTERED)
def test_a_filter_of_clients_for_whom_the_port_is_not_published_is_no_problem(
    host: Host, client: Namespace, far: Namespace, plugin: Plugin, key: str
) -> None:
    web = host.container()
    web.serve("web", 80)
    keys, rule = FILTERED[key]
    plugin.add(web, publish(8080), **keys)
    text = chain("ip", "forward priority 0", rule.format(v4=web.address[4])).format()
    host.run("nft", "-f", "-", stdin=text)
    (asking, address) = (far, FAR_HOST[4]) if key == "publishOn" else (client, HOST[4])
    assert asking.ask(address, 8080).server == "web"
    assert findings(plugin) == []


@pytest.mark.nftables
@pytest.mark.usefixtures("far")
def test_another_uplink_on_which_nothing_is_published_is_no_problem(
    host: Host, client: Namespace, plugin: Plugin
) -> None:
    web = host.container()
    web.serve("web", 80)
    plugin.add(web, publish(8080), publishOn=["uplink"])
    host.ip(f"route add default via {FAR[4]} dev eth1 metric 500")
    assert client.ask(HOST[4], 8080).server == "web"
    assert findings(plugin) == []


def test_dockers_chain_for_others_is_used_where_it_comes_first(plugin: Plugin, network: Network) -> None:
    docker = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\nCOMMIT\n"
    network.host.run("iptables-nft-restore", stdin=docker)
    assert not network.inbound()
    found = only_finding(plugin, "filters")
    assert re.search(r"-I DOCKER-USER \S.* -d 10\.88\.0\.11 -p tcp --dport 80 ", found["remedy"])
    network.host.run("sh", "-c", found["remedy"])
    assert network.inbound()
    assert network.outbound()
    assert findings(plugin) == []


def test_a_filter_of_ufw(plugin: Plugin, host: Host, network: Network) -> None:
    """Its command is not on this host: what it says is what ufw would make of it."""
    ufw = (
        "*filter\n:FORWARD DROP [0:0]\n:ufw-before-forward - [0:0]\n:ufw-user-forward - [0:0]\n-A FORWARD -j ufw-before-forward\n"
        "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A ufw-before-forward -j ufw-user-forward\nCOMMIT\n"
    )
    host.run("iptables-nft-restore", stdin=ufw)
    assert not network.inbound()
    assert only_finding(plugin, "filters")["remedy"].split(" && ") == [
        "ufw route prepend allow in on uplink out on cni0 proto tcp to 10.88.0.11 port 80",
        "ufw route prepend allow in on cni0 out on uplink from 10.88.0.11",
    ]
    for rule in (
        "-i uplink -o cni0 -p tcp -d 10.88.0.11 --dport 80 -j ACCEPT",
        "-i cni0 -o uplink -s 10.88.0.11 -j ACCEPT",
    ):
        host.run("iptables-nft", "-I", "ufw-user-forward", *rule.split())
    assert network.inbound()
    assert network.outbound()
    assert findings(plugin) == []
