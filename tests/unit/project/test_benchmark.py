"""The evaluation in the benchmark: figures, targets, comparisons, and the copies of rules for filled hosts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from conformance.benchmark import calls, costs
from conformance.benchmark.contenders import OURS, Mapping, Request, both_of, portmap_of
from conformance.benchmark.figures import PER_SECOND, Figure, Figures, Key, Samples, sum_with_extra, summarise
from conformance.benchmark.filling import copy, mentions, rules_of, tokens
from conformance.benchmark.plot import draw, height_of
from conformance.benchmark.report import MARKS, comparison, drift_of_peers, put_into, regressions, tables
from conformance.benchmark.resources import read_trace
from conformance.benchmark.summary import ROWS, summary
from conformance.benchmark.targets import targets_of
from conformance.benchmark.waterfall import draw_waterfall

DOCS = Path(__file__).parents[3] / "docs"
SAMPLE = Request("abc", "10.88.0.2", (Mapping(8080),), Path("/run/netns/c"))
OTHER = Request("def", "10.88.1.7", (Mapping(10007),), Path("/run/netns/c"))


def key(verb: str, contender: str = OURS, containers: int = 0, ports: str = "1 port", unit: str = "ms") -> Key:
    return Key(calls.SECTION, verb, contender, containers, ports, unit)


def figure(of: Key, median: float) -> Figure:
    return Figure(of, median, median, median, 1)


def figures(*entries: tuple[Key, float]) -> Figures:
    return Figures(figure(of, median) for of, median in entries)


def test_a_figure_is_the_median_with_its_quartiles() -> None:
    assert summarise(key("ADD"), [5, 1, 3, 2, 4])[1:] == (3, 2, 4, 5)


def test_a_single_run_is_its_own_median() -> None:
    assert summarise(key("ADD"), [7])[1:] == (7, 7, 7, 1)


def test_a_figure_survives_json() -> None:
    before = summarise(key("ADD"), [1.25, 2.5, 3])
    assert Figure.from_json(before.as_json()) == before


def test_the_cost_of_masquerading_is_the_difference_it_makes_to_bridge() -> None:
    assert sum_with_extra([30, 32], [25, 26], [15, 17]) == [40, 41]


def test_the_best_is_the_shortest_time_or_the_highest_rate() -> None:
    rate = key("rate", "one", unit=PER_SECOND)
    found = figures((key("ADD", "one"), 3), (key("ADD", "two"), 2), (rate, 100), (rate._replace(contender="two"), 50))
    assert (best := found.best([key("ADD", "one"), key("ADD", "two")])) is not None
    assert best.median == 2
    assert (best := found.best([rate, rate._replace(contender="two")])) is not None
    assert best.median == 100


def test_a_target_comes_from_the_better_backend_and_tells_the_miss() -> None:
    found = figures((key("ADD"), 12), (key("ADD", both_of("iptables")), 40), (key("ADD", both_of("nftables")), 30))
    (target,) = targets_of(found)
    assert "portmap + ipMasq (nftables)" in target.what
    assert target.value == pytest.approx(0.4)
    assert not target.is_met


def test_an_unmeasured_figure_gives_no_target() -> None:
    assert targets_of(figures((key("ADD"), 12))) == []
    assert targets_of(figures((key("CHECK", portmap_of("iptables")), 12))) == []


def test_growth_is_relative_to_our_own_figure_on_an_empty_host() -> None:
    found = figures((key("DEL"), 10), (key("DEL", containers=10_000), 12))
    (target,) = targets_of(found)
    assert target.value == pytest.approx(1.2)
    assert (target.limit, target.is_met) == (1.1, False)


def test_the_first_add_is_compared_with_any_add_of_the_peers() -> None:
    first = key(calls.FIRST)
    found = figures((first, 30), (key("ADD", both_of("iptables")), 40), (key(calls.FIRST, both_of("iptables")), 20))
    (target,) = targets_of(found)
    assert target.value == pytest.approx(0.75)


def test_more_connections_per_second_is_better() -> None:
    inbound = Key("packets", "connections through a published port", OURS, 0, "", PER_SECOND)
    (kept,) = targets_of(figures((inbound, 1000), (inbound._replace(containers=28_000), 980)))
    (lost,) = targets_of(figures((inbound, 1000), (inbound._replace(containers=28_000), 900)))
    assert (kept.is_met, lost.is_met) == (True, False)


def test_a_regression_is_a_tenth_for_the_worse() -> None:
    rate = key("rate", unit=PER_SECOND)
    before = figures((key("ADD"), 10), (key("DEL"), 10), (key("CHECK"), 10), (rate, 100))
    now = figures((key("ADD"), 11), (key("DEL"), 10.9), (key("CHECK"), 5), (rate, 90))
    assert [(new.key.what, round(part, 2)) for _, new, part in regressions(before, now)] == [
        ("ADD", 0.1),
        ("rate", 0.11),
    ]


def test_a_slower_peer_is_not_a_regression() -> None:
    peer = key("ADD", "portmap (iptables)")
    before, now = figures((peer, 10), (key("ADD"), 10)), figures((peer, 15), (key("ADD"), 10))
    assert regressions(before, now) == []
    assert drift_of_peers(before, now) == pytest.approx(0.5)
    assert any("+50%" in line for line in comparison(before, now))


def test_a_table_has_a_row_per_contender_and_a_column_per_number_of_containers() -> None:
    lines = list(tables(figures((key("ADD"), 10), (key("ADD", containers=1000), 11.04), (key("ADD", "portmap"), 1234))))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["", "0 there", "1,000 there"]
    assert rows[2:] == [["quantum-nat, 1 port", "10.0", "11.0"], ["portmap, 1 port", "1,234", ""]]


def test_tables_replace_the_text_between_the_marks() -> None:
    document = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    assert put_into(document, ["new"]) == f"before\n{MARKS[0]}\n\nnew\n\n{MARKS[1]}\nafter\n"
    with pytest.raises(ValueError, match="substring"):
        put_into("no marks", ["new"])


def test_copies_have_their_own_name_address_and_port() -> None:
    chain = "CNI-DN-2b448a2da35a47f60ce7e"  # as portmap v1.9.1 named it for container abc of network bench
    pattern = [
        f":{chain} - [0:0]",
        f'-A CNI-HOSTPORT-DNAT -m comment --comment "dnat name: \\"bench\\" id: \\"abc\\"" --dports 8080 -j {chain}',
        f"-A {chain} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.88.0.2:80",
        'ip saddr 10.88.0.2 masquerade comment "67b55d4772273bb4-e65086f8a75535c6, net: bench, if: eth0, id: abc"',
    ]
    (text,) = copy(pattern, SAMPLE, [OTHER])
    assert not mentions(text, SAMPLE)
    assert "--to-destination 10.88.1.7:80" in text
    assert "--dport 10007" in text
    assert f"CNI-DN-{tokens(OTHER)[4]}" in text
    assert f"67b55d4772273bb4-{tokens(OTHER)[5]}, net: bench, if: eth0, id: def" in text


def test_an_address_is_not_found_inside_a_longer_one() -> None:
    assert mentions("dnat to 10.88.0.2:80", SAMPLE)
    assert not mentions("dnat to 10.88.0.22:80", SAMPLE)
    assert not mentions("dnat to 110.88.0.2:18080", SAMPLE)


def test_a_listing_is_converted_to_commands_that_add_its_rules() -> None:
    listing = """table ip nat {
	comment "whose it is"
	chain inner {
		tcp dport 8080 dnat to 10.88.0.2:80 comment "abc"
	}

	chain outer {
		type nat hook prerouting priority dstnat; policy accept;
		jump inner
	}
}
"""
    assert list(rules_of(listing)) == [
        'add rule ip nat inner tcp dport 8080 dnat to 10.88.0.2:80 comment "abc"',
        "add rule ip nat outer jump inner",
    ]


def test_a_trace_counts_programs_processes_and_system_calls_but_not_threads() -> None:
    trace = read_trace(
        [
            '10 execve("/portmap", ["portmap"], 0x7ffd /* 8 vars */) = 0',
            "10 clone(child_stack=0xc0, flags=CLONE_VM|CLONE_FS|CLONE_THREAD) = 11",
            "10 clone(child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD <unfinished ...>",
            '12 execve("/sbin/iptables", ["iptables"], 0xc0 /* 8 vars */ <unfinished ...>',
            "12 <... execve resumed>) = 0",
            '12 execve("/usr/bin/iptables", ["iptables"], 0xc0) = -1 ENOENT (No such file or directory)',
            "10 <... clone resumed>) = 12",
            "12 +++ exited with 0 +++",
        ]
    )
    assert trace == (2, 2, 5)


def test_system_calls_separate_the_phases_of_a_call() -> None:
    lines = [
        '10.000 execve("/q", ["q"], 0x7f) = 0',
        "10.001 rt_sigaction(SIGPIPE, {sa_handler=SIG_IGN}, {sa_handler=SIG_DFL}, 8) = 0",
        "10.007 gettid() = 10",
        "10.008 flock(3, LOCK_EX|LOCK_NB) = 0",
        "10.0085 sendto(4, [{nlmsg_len=36, nlmsg_type=RTM_GETROUTE}], 36, 0, NULL, 0) = 36",
        '10.011 rename("/run/pending", "/run/net:eth0.json") = 0',
        "10.012 sendto(4, [{nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETRULE}], 32, 0, NULL, 0) = 32",
        "10.0125 sendto(4, [[{nlmsg_len=20, nlmsg_type=NFNL_MSG_BATCH_BEGIN}]], 556, 0, NULL, 0) = 556",
        '10.014 write(1, "{}", 2) = 2',
        "10.015 exit_group(0) = ?",
        "10.017 +++ exited with 0 +++",
    ]
    assert [round(took, 3) for took in costs.phases(lines).values()] == [1, 6, 1, 3, 1.5, 1.5, 1, 2]
    with pytest.raises(ValueError, match="exit_group"):
        costs.phases(lines[:-2])


def test_the_time_of_an_import_excludes_nested_imports() -> None:
    lines = ["import time: self [us] | cumulative | imported package", "import time:       270 |       900 |   _json"]
    assert costs.import_times(lines) == {"_json": 0.27}


def test_the_chart_is_valid_and_has_a_point_for_each_figure() -> None:
    found = figures((key("ADD"), 10), (key("ADD", containers=10_000), 11), (key("ADD", both_of("iptables")), 60))
    root = ET.fromstring(draw(found))  # noqa: S314 - it is our own
    assert len(root.findall("{*}circle")) == 3
    named = {text.text for text in root.findall("{*}text")}
    assert {OURS, both_of("iptables")} <= named
    assert both_of("nftables") not in named  # nothing was measured of it


def test_the_waterfall_has_a_bar_for_each_phase_that_begins_where_the_one_before_ends() -> None:
    phases = [Key(costs.SECTION, costs.PHASES, name) for name in ("1. one", "2. two", "3. three")]
    root = ET.fromstring(draw_waterfall(figures(*zip(phases, (1, 2, 1), strict=True), (key("ADD"), 9))))  # noqa: S314 - it is our own
    bars = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in root.findall("{*}rect")]
    assert len(bars) == 3
    for before, after in pairwise(bars):
        assert sum(before) == pytest.approx(after[0])
    assert bars[1][1] == pytest.approx(2 * bars[0][1])


def test_slower_is_higher_and_all_points_are_inside_the_chart() -> None:
    assert height_of(1) == height_of(2) > height_of(50) > height_of(5000) == height_of(90_000)


def test_samples_keep_the_order_of_the_rounds() -> None:
    samples = Samples()
    for value in (3.0, 1.0, 2.0):
        samples.add(key("ADD"), value)
    assert samples.values(key("ADD")) == [3.0, 1.0, 2.0]


def test_the_summary_has_a_row_for_each_quantity_and_a_dash_for_what_was_not_measured() -> None:
    measured = figures((key("ADD", containers=10_000), 9.46), (key("ADD", both_of("iptables"), 10_000), 920.4))
    lines = list(summary(measured))
    assert len(lines) == 2 + len(ROWS) == 13
    assert "| ADD, 10,000 other containers, ms | 9.5 | 920 | - |" in lines


def test_the_page_for_users_has_the_rows_that_the_figures_make() -> None:
    content = json.loads((DOCS / "development" / "performance.json").read_text())["figures"]
    lines = list(summary(Figures(Figure.from_json(entry) for entry in content)))
    assert "\n".join(lines) in (DOCS / "performance.md").read_text()
