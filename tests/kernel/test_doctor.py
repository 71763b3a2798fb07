"""`quantum-nat doctor`: each test breaks one thing, expects a finding of that check, and follows its advice."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from .peer import TimedOut
from .plugin import Plugin, publish
from .terminal import on_terminal
from .test_policies import listen
from .test_watch import Watch
from .topology import CLIENT, HOST, Container, Host, Namespace, wait_until
from .unprivileged import unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path


def findings(plugin: Plugin) -> list[dict[str, str]]:
    """Return the doctor's findings, and check that its exit status agrees."""
    done = plugin.operate("doctor", "--json")
    reports: list[dict[str, str]] = json.loads(done.stdout)
    wrong = [report for report in reports if report["status"] != "ok"]
    assert done.returncode == (1 if wrong else 0), done.stderr
    return wrong


def only_finding(plugin: Plugin, check: str) -> dict[str, str]:
    """Return the only finding, which must be of this check."""
    found = findings(plugin)
    assert {entry["check"] for entry in found} == {check}, found
    return found[0]


def follow_advice(plugin: Plugin, remedy: str) -> None:
    """Run the command that the doctor advises, if any, and check that the finding is gone."""
    for command in remedy.split("; "):
        words = command.split()
        if words[0] == "quantum-nat":
            assert plugin.operate(*words[1:]).returncode == 0
        elif words[0] == "sysctl":
            name, _, value = words[-1].partition("=")
            plugin.host.set_sysctl(name.removeprefix("net.").replace(".", "/"), value)
        else:
            plugin.host.run(*words)
    assert findings(plugin) == []


@pytest.fixture
def healthy(host: Host, client: Namespace, plugin: Plugin) -> Container:
    """A container with published ports, on a host without problems."""
    container = host.container()
    container.serve("web", 80)
    client.serve("outside", 80)
    host.set_bridge_netfilter("1")
    plugin.add(container, publish(8080), publish(9090, hostIP="127.0.0.1"), publish(5353, 53, protocol="udp"))
    return container


@pytest.mark.frozen
@pytest.mark.behaviour
def test_a_healthy_host_has_no_problems(host: Host, plugin: Plugin, healthy: Container) -> None:
    if plugin.programs is None:
        plugin.add(host.container(), publish(8081), conntrackTimeout=77)
    before = host.run("nft", "--stateless", "list", "ruleset")
    assert findings(plugin) == []
    assert host.run("nft", "--stateless", "list", "ruleset") == before
    assert healthy.id in before or plugin.programs
    done = plugin.operate("doctor")
    assert done.stdout.splitlines()[-1] == "0 problems"
    assert done.stdout.startswith("ok      kernel\n")


def test_doctor_runs_beside_the_recommended_service(
    host: Host, plugin: Plugin, healthy: Container, tmp_path: Path
) -> None:
    """At 1.0.0 its owned table was read out of bounds by libnftables' listing in JSON, and doctor ended in a traceback."""
    assert healthy
    with Watch(plugin, tmp_path):
        done = plugin.operate("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    host.run("nft", "add table inet other")
    assert plugin.operate("doctor").returncode == 0


def test_an_empty_host_has_no_problems(plugin: Plugin) -> None:
    done = plugin.operate_as([*plugin.command, "doctor"])
    assert (done.returncode, "0 problems" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("command", ["doctor", "list", "gc", "reconcile"])
def test_a_mistyped_state_directory_is_no_empty_host(plugin: Plugin, command: str) -> None:
    done = plugin.operate(command)
    assert done.returncode == 1
    assert f"there is no state directory {plugin.state_directory}" in done.stderr
    assert not plugin.state_directory.exists()


SETTINGS: list[tuple[str, str, str]] = [
    ("forwarding", "ipv4/ip_forward", "0"),
    ("forwarding", "ipv6/conf/all/forwarding", "0"),
    ("route_localnet", "ipv4/conf/cni0/route_localnet", "0"),
]


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(("check", "setting", "value"), SETTINGS)
def test_a_sysctl_that_is_off(host: Host, plugin: Plugin, check: str, setting: str, value: str) -> None:
    host.set_sysctl(setting, value)
    found = only_finding(plugin, check)
    assert "is off" in found["problem"]
    follow_advice(plugin, found["remedy"])


DAMAGE: list[tuple[str, str, str]] = [
    ("table", "delete table inet quantum", "missing"),
    ("table", "flush chain inet quantum host_ports", "host_ports"),
    ("table", "replace rule inet quantum guard handle {handle} iif != lo ip daddr 127.1.0.0/16 drop", "guard"),
    ("table", "add chain inet quantum mine", "altered"),
    ("elements", "delete element inet quantum endpoints4 {{ tcp . 8080 }}", "endpoints4"),
    ("elements", "add element inet quantum masqueraded4 {{ 10.99.0.1 }}", "10.99.0.1"),
]


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(("check", "command", "named"), DAMAGE)
def test_altered_rules(host: Host, plugin: Plugin, check: str, command: str, named: str) -> None:
    listed = host.run("nft", "-a", "list chain inet quantum guard")
    handle = re.search(r"ip daddr 127.* handle (\d+)", listed)
    assert handle is not None
    host.run("nft", command.format(handle=handle[1]))
    found = only_finding(plugin, check)
    assert named in found["where"] + found["problem"]
    follow_advice(plugin, found["remedy"])


def test_an_element_without_a_record(host: Host, plugin: Plugin, healthy: Container) -> None:
    lost = host.container()
    plugin.add(lost)
    (plugin.state_directory / "attachments" / lost.id / "net:eth0.json").unlink()
    found = only_finding(plugin, "elements")
    assert f"net/{lost.id}/eth0" in found["problem"]
    follow_advice(plugin, found["remedy"])
    assert healthy.id in host.ruleset()


@pytest.mark.behaviour
@pytest.mark.usefixtures("healthy")
def test_missing_rules(host: Host, plugin: Plugin) -> None:
    if host.backend == "nftables":
        host.run("nft", "flush", "ruleset")
    else:
        host.run("nft", "flush chain ip nat PREROUTING")
    found = only_finding(plugin, "table")
    follow_advice(plugin, found["remedy"])


def test_an_unreadable_record(plugin: Plugin, healthy: Container) -> None:
    record = plugin.state_directory / "attachments" / healthy.id / "net:eth0.json"
    record.write_text("{")
    found = only_finding(plugin, "records")
    assert str(record) in found["problem"]


def test_an_attachment_without_its_namespace(plugin: Plugin, healthy: Container) -> None:
    healthy.remove()
    found = only_finding(plugin, "namespaces")
    assert healthy.id in found["problem"]
    follow_advice(plugin, found["remedy"])


def test_a_nearly_full_conntrack_table(
    host: Host, client: Namespace, plugin: Plugin, healthy: Container, tmp_path: Path
) -> None:
    """Only the initial network namespace can set the limit, so the doctor reads a file that is mounted over it."""
    for _ in range(10):
        client.ask(HOST[4], 8080)
    tracked = int(host.sysctl("netfilter/nf_conntrack_count"))
    limit = tmp_path / "limit"
    limit.write_text(f"{tracked + 1}\n")
    mount = f'mount --bind {limit} /proc/sys/net/netfilter/nf_conntrack_max && exec "$@"'
    line = [*plugin.command, "--state-dir", str(plugin.state_directory), "doctor", "--json"]
    done = plugin.operate_as(["unshare", "--mount", "sh", "-c", mount, "sh", *line])
    (found,) = [report for report in json.loads(done.stdout) if report["status"] != "ok"]
    assert (done.returncode, found["check"]) == (1, "conntrack")
    assert f"of {tracked + 1} entries" in found["problem"]
    assert found["remedy"] == f"sysctl -w net.netfilter.nf_conntrack_max={2 * (tracked + 1)}"
    assert healthy


SECOND, SECOND_CLIENT = {4: "203.0.113.1", 6: "2001:db8:2::1"}, {4: "203.0.113.2", 6: "2001:db8:2::2"}


@pytest.mark.usefixtures("client")
def test_a_strict_reverse_path_filter_on_a_second_uplink(host: Host, plugin: Plugin) -> None:
    plugin.add(host.container())
    host.add_uplink("second", SECOND, SECOND_CLIENT)
    host.ip("route add default via 203.0.113.2 dev second metric 500")
    assert findings(plugin) == []
    host.set_sysctl("ipv4/conf/second/rp_filter", "1")
    found = only_finding(plugin, "rp_filter")
    assert "second" in found["where"]
    follow_advice(plugin, found["remedy"])


def test_replies_that_leave_by_another_uplink(
    host: Host, client: Namespace, plugin: Plugin, healthy: Container
) -> None:
    """The network outside lets no packet in from an address that is not behind that uplink."""
    host.add_uplink("second", SECOND, SECOND_CLIENT)
    host.ip(
        "route add default via 203.0.113.2 dev second metric 500",
        "route add default via 2001:db8:2::2 dev second metric 5000",
    )
    client.ip("address add 192.0.2.50/32 dev lo")
    client.set_sysctl("ipv4/conf/uplink/rp_filter", "1")
    assert client.cannot_reach(SECOND[4], 8080, source="192.0.2.50")
    found = only_finding(plugin, "uplinks")
    assert (found["status"], found["where"]) == ("unknown", "uplink second")
    assert "leave via uplink" in found["problem"]
    host.run("sh", "-c", found["remedy"])
    assert client.ask(SECOND[4], 8080, source="192.0.2.50").server == "web"
    assert client.ask(HOST[4], 8080, source="192.0.2.50").server == "web"
    assert healthy.ask(CLIENT[4], 80).source == HOST[4]
    assert findings(plugin) == []


def test_a_bridge_port_without_hairpin_mode(host: Host, plugin: Plugin, healthy: Container) -> None:
    assert healthy.ask(HOST[4], 8080).server == "web"
    (port,) = re.findall(r"(veth\d+)@", host.run("ip", "-o", "link", "show", "master", "cni0"))
    host.ip(f"link set {port} type bridge_slave hairpin off")
    assert healthy.cannot_reach(HOST[4], 8080)
    found = only_finding(plugin, "hairpin")
    assert found["where"] == f"bridge port {port}"
    follow_advice(plugin, found["remedy"].partition(";")[0])
    assert healthy.ask(HOST[4], 8080).server == "web"
    host.set_bridge_netfilter("0")
    host.ip(f"link set {port} type bridge_slave hairpin off")
    assert findings(plugin) == []


def test_what_several_containers_lack_is_one_problem(host: Host, plugin: Plugin, healthy: Container) -> None:
    others = [host.container() for _ in range(2)]
    for number, other in enumerate(others):
        plugin.add(other, publish(8090 + number))
    for port in re.findall(r"(veth\d+)@", host.run("ip", "-o", "link", "show", "master", "cni0")):
        host.ip(f"link set {port} type bridge_slave hairpin off")
    assert healthy.cannot_reach(HOST[4], 8080)
    (found,) = findings(plugin)
    assert (found["check"], found["where"]) == ("hairpin", "3 ports of bridge cni0")
    assert "and 2 more" in found["problem"]
    host.run("sh", "-c", found["remedy"])
    assert healthy.ask(HOST[4], 8080).server == "web"
    for other in others:
        other.remove()
    (found,) = findings(plugin)
    assert (found["check"], "and 1 more" in found["problem"]) == ("namespaces", True)
    follow_advice(plugin, found["remedy"])


def test_progress_is_shown_on_a_terminal(plugin: Plugin, healthy: Container) -> None:
    assert healthy
    status, shown = on_terminal(plugin, "doctor")
    assert status == 0
    assert "Checking the host" in shown
    assert shown.rstrip().endswith(" problems")


def test_an_external_interface_that_is_missing_or_outdated(host: Host, plugin: Plugin) -> None:
    host.add_uplink("second", {4: "203.0.113.1", 6: "2001:db8:2::1"}, {4: "203.0.113.2", 6: "2001:db8:2::2"})
    plugin.add(host.container(), network="named", externalInterface="second")
    plugin.add(host.container(), network="found", externalInterface="default")
    assert findings(plugin) == []
    host.ip("route replace default via 203.0.113.2 dev second")
    found = only_finding(plugin, "external interface")
    assert "default route is now via second" in found["problem"]
    host.ip(f"route replace default via {CLIENT[4]} dev uplink")
    host.ip("link delete second")
    found = only_finding(plugin, "external interface")
    assert found["where"] == "interface second"
    assert "is gone" in found["problem"]


DOCKER = """
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
-A DOCKER-ISOLATION -i docker0 ! -o docker0 -j DROP
-A DOCKER-ISOLATION -j RETURN
COMMIT
"""
UFW = """
*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
COMMIT
"""
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        goto filter_FWD
    }
    chain filter_FWD {
        iifname "trusted0" accept
        reject with icmpx admin-prohibited
    }
}
"""


def docker(host: Host, variant: str) -> None:
    host.run(f"iptables-{variant}-restore", stdin=DOCKER)


def ufw(host: Host, variant: str) -> None:
    host.run(f"iptables-{variant}-restore", stdin=UFW)


def firewalld(host: Host, _variant: str) -> None:
    host.run("nft", "-f", "-", stdin=FIREWALLD)


def allow_docker(host: Host, variant: str) -> None:
    for option in ("-i", "-o"):
        host.run(f"iptables-{variant}", "-I", "DOCKER-USER", option, "cni0", "-j", "ACCEPT")


def allow_ufw(host: Host, variant: str) -> None:
    for option in ("-i", "-o"):
        host.run(f"iptables-{variant}", "-A", "FORWARD", option, "cni0", "-j", "ACCEPT")


def allow_firewalld(host: Host, _variant: str) -> None:
    host.run("nft", 'insert rule inet firewalld filter_FWD iifname "cni0" accept')


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize(
    ("block", "allow", "drops_inbound"),
    [(docker, allow_docker, True), (ufw, allow_ufw, True), (firewalld, allow_firewalld, False)],
    ids=["docker", "ufw", "firewalld"],
)
def test_a_filter_that_drops_forwarded_traffic(
    host: Host,
    client: Namespace,
    plugin: Plugin,
    healthy: Container,
    block: Callable[[Host, str], None],
    allow: Callable[[Host, str], None],
    drops_inbound: bool,
    variant: str,
) -> None:
    if variant == "legacy":
        host.require_legacy_iptables()
    block(host, variant)
    if drops_inbound:
        assert client.cannot_reach(HOST[4], 8080)
    with pytest.raises((TimedOut, OSError)):  # a reject is "no route to host"
        healthy.ask(CLIENT[4], 80, timeout=0.3)
    found = only_finding(plugin, "filters")
    assert " drops " in found["problem"]
    assert {"docker": "DOCKER-USER", "ufw": "ufw route", "firewalld": "firewall-cmd"}[block.__name__] in found["remedy"]
    allow(host, variant)
    assert client.ask(HOST[4], 8080).server == "web"
    assert healthy.ask(CLIENT[4], 80).server == "outside"
    assert findings(plugin) == []


OWNED = (
    "add table inet firewalld { flags owner; set outside { type ipv4_addr; elements = { 9.9.9.9, 198.51.100.2 }; }; "
    "chain forward { type filter hook forward priority 10; ct status dnat accept; ct state established accept; "
    "ip daddr @outside jump refuse; }; chain refuse { drop; }; }"
)


def test_a_filter_whose_table_belongs_to_a_running_program(
    host: Host, plugin: Plugin, healthy: Container, stack: ExitStack
) -> None:
    """As firewalld's from 2.3 on."""
    line = ["nsenter", f"--net={host.path}", "--", "nft", "--interactive"]
    owner = stack.enter_context(
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    )
    stack.callback(owner.terminate)
    assert owner.stdin is not None
    owner.stdin.write(OWNED + "\n")
    owner.stdin.flush()
    wait_until(lambda: "firewalld" in host.run("nft", "list", "tables"), "the table is there")
    with pytest.raises((TimedOut, OSError)):
        healthy.ask(CLIENT[4], 80, timeout=0.3)
    found = only_finding(plugin, "filters")
    assert " drops " in found["problem"]
    assert "firewall-cmd" in found["remedy"]


PORTMAP = """
table ip cni_hostport {
    chain hostports { tcp dport 8080 dnat to 10.88.0.99:80 comment "another"; }
    chain prerouting { type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump hostports; }
}
"""
DOCKER_NAT = """
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("who", "command", "rules"),
    [
        ("portmap", ("nft", "-f", "-"), PORTMAP),
        ("Docker", ("iptables-nft-restore",), DOCKER_NAT),
    ],
)
def test_another_plugin_that_translates_the_same_port(
    host: Host, client: Namespace, plugin: Plugin, who: str, command: tuple[str, ...], rules: str
) -> None:
    host.run(*command, stdin=rules)
    found = only_finding(plugin, "other plugins")
    assert f"{who} also translates host port 8080/tcp" in found["problem"]
    assert "Quantum NAT takes precedence" in found["problem"]
    assert client.ask(HOST[4], 8080).server == "web"


def test_a_service_on_the_host_shadowed_by_a_host_port(
    stack: ExitStack, host: Host, plugin: Plugin, healthy: Container
) -> None:
    listen(stack, host, 8080, 4)
    found = only_finding(plugin, "host services")
    assert healthy.id in found["where"]
    assert "8080/tcp" in found["problem"]


@pytest.mark.usefixtures("healthy")
def test_a_failed_check_is_not_reported_as_ok(host: Host, plugin: Plugin) -> None:
    """Without root, neither the records nor the kernel can be read."""
    line = [*plugin.command, "--state-dir", str(plugin.state_directory), "doctor", "--json"]
    done = plugin.operate_as(unprivileged(line))
    assert done.stdout, done.stderr
    statuses = {entry["check"]: entry["status"] for entry in json.loads(done.stdout)}
    assert done.returncode == 1
    assert {statuses[check] for check in ("kernel", "records", "table", "elements", "host services")} == {"unknown"}
    assert host


# -- one packet


def followed(plugin: Plugin, packet: str, *arguments: str) -> dict[str, Any]:
    done = plugin.operate("doctor", "--packet", packet, "--json", *arguments)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if answer["verdict"] == "delivered" else 1)
    return answer


@pytest.mark.frozen
@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_is_traced_to_the_container(
    client: Namespace, plugin: Plugin, healthy: Container, family: int
) -> None:
    address = HOST[family] if family == 4 else f"[{HOST[family]}]"
    answer = followed(plugin, f"tcp:{address}:8080")
    assert client.ask(HOST[family], 8080).server == "web"
    assert answer["verdict"] == "delivered"
    steps = "\n".join(answer["steps"])
    assert "matches: host port 8080/tcp" in steps
    assert f"endpoints{family} {{ tcp . 8080 : {healthy.address[family]} . 80 }}" in steps
    assert f"net/{healthy.id}/eth0" in steps
    assert "interface cni0" in steps
    printed = plugin.operate("doctor", "--packet", f"tcp:{address}:8080").stdout.splitlines()
    assert printed[0].startswith("1. ")
    assert printed[-1].startswith("delivered: ")


CASES: list[tuple[str, tuple[str, ...], str, str]] = [
    ("tcp:198.51.100.1:8081", (), "refused", "is not published"),
    ("udp:198.51.100.1:5353", (), "refused", "nothing listens on"),
    ("tcp:127.0.0.1:9090", (), "delivered", "80/tcp"),
    ("tcp:127.0.0.1:9090", ("--from", "198.51.100.2"), "dropped", "guard"),
    ("tcp:198.51.100.1:9090", (), "refused", "is not published"),
    ("tcp:[::1]:8080", (), "refused", "is not published"),
    ("tcp:203.0.113.77:8080", (), "unknown", "is not an address of this host"),
]


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(("packet", "arguments", "verdict", "why"), CASES)
def test_verdicts_of_other_packets(
    plugin: Plugin, packet: str, arguments: tuple[str, ...], verdict: str, why: str
) -> None:
    answer = followed(plugin, packet, *arguments)
    assert (answer["verdict"], why in answer["why"]) == (verdict, True), answer


@pytest.mark.usefixtures("healthy")
def test_a_packet_without_an_endpoint(host: Host, client: Namespace, plugin: Plugin) -> None:
    host.run("nft", "delete element inet quantum endpoints4 { tcp . 8080 }")
    assert client.is_refused(HOST[4], 8080)
    answer = followed(plugin, f"tcp:{HOST[4]}:8080")
    assert answer["verdict"] == "refused"
    assert "no element of" in answer["steps"][-1]


def test_a_packet_dropped_by_a_filter(host: Host, client: Namespace, plugin: Plugin, healthy: Container) -> None:
    docker(host, "nft")
    assert client.cannot_reach(HOST[4], 8080)
    answer = followed(plugin, f"tcp:{HOST[4]}:8080")
    assert answer["verdict"] == "dropped"
    assert "FORWARD" in answer["why"]
    assert host.ask("127.0.0.1", 9090).server == "web"
    assert followed(plugin, "tcp:127.0.0.1:9090")["verdict"] == "delivered"
    assert healthy


def test_the_source_address_at_the_container(host: Host, client: Namespace, plugin: Plugin, healthy: Container) -> None:
    assert client.ask(HOST[4], 8080).source == CLIENT[4]
    assert "stays unchanged" in "".join(followed(plugin, f"tcp:{HOST[4]}:8080", "--from", CLIENT[4])["steps"])
    other_container = host.container()
    assert other_container.ask(HOST[4], 8080).source != other_container.address[4]
    steps = followed(plugin, f"tcp:{HOST[4]}:8080", "--from", other_container.address[4])["steps"]
    assert "the source becomes an address of the host" in "".join(steps)
    assert healthy


@pytest.mark.parametrize("family", [4, 6])
def test_outbound_nat_is_traced(client: Namespace, plugin: Plugin, healthy: Container, family: int) -> None:
    assert healthy.ask(CLIENT[family], 80).source == HOST[family]
    address = CLIENT[family] if family == 4 else f"[{CLIENT[family]}]"
    answer = followed(plugin, f"tcp:{address}:80", "--from", healthy.address[family])
    assert answer["verdict"] == "delivered"
    assert answer["steps"][-1].endswith("the source becomes the address of uplink")
    assert client


def test_a_fixed_source_address_is_shown(host: Host, plugin: Plugin) -> None:
    container = host.container()
    plugin.add(container, snatAddress="198.51.100.9")
    answer = followed(plugin, f"tcp:{CLIENT[4]}:80", "--from", container.address[4])
    assert answer["steps"][-1].endswith("the source becomes 198.51.100.9")


@pytest.mark.parametrize(
    "text", ["8080", "tcp:198.51.100.1", "icmp:198.51.100.1:1", "tcp:nonsense:80", "tcp:1.2.3.4:0"]
)
def test_an_invalid_packet_is_refused(plugin: Plugin, text: str) -> None:
    done = plugin.operate("doctor", "--packet", text)
    assert done.returncode == 1
    assert "is not PROTOCOL:ADDRESS:PORT" in done.stderr or "is not an IP address" in done.stderr
