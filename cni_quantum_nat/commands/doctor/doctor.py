"""`quantum-nat doctor`: find problems on this host, and print what to do. It changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from ...model.errors import IO_FAILURE, CniError
from ...state.directory import State
from ..parser import add_command
from ..progress import tracked
from .finding import Finding, Remark

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from ..parser import Commands
    from .snapshot import Snapshot

OK, PROBLEM, UNKNOWN = "ok", "problem", "unknown"
_COLOURS = {OK: "green", PROBLEM: "red", UNKNOWN: "yellow"}


class Report(NamedTuple):
    """The result of one check. status: "ok", "problem", or "unknown" if it failed. reason: why that is so, or a remark."""

    check: str
    status: str
    findings: list[Finding]
    reason: str = ""


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "doctor",
        run,
        summary="find what blocks traffic to and from containers",
        description="Check everything that may block traffic to or from containers: the rules and their records, the host's sysctls, "
        "filters and NAT of other programs. Nothing is changed. The exit status is 1 if there is a problem.",
        examples=("doctor", "doctor --packet tcp:192.0.2.9:8080 --from 198.51.100.7"),
    )
    parser.add_argument(
        "--packet", metavar="PROTOCOL:ADDRESS:PORT", help="trace one packet, for example tcp:192.0.2.9:8080"
    )
    parser.add_argument("--from", dest="source", metavar="ADDRESS", help="with --packet, its source address")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(arguments: argparse.Namespace) -> int:
    """Print the result of every check; return 1 if one found a problem or failed."""
    if arguments.packet is not None:
        from .packet import follow

        return follow(arguments)
    from ..records import require_directory
    from .snapshot import Snapshot  # libnftables, pyroute2

    try:
        require_directory(State(arguments.state_dir))
    except CniError as error:
        if error.code != IO_FAILURE:  # what is wrong with a directory that is there is a finding like others
            raise

    host, checks = Snapshot(State(arguments.state_dir)), _checks()
    reports = [_do(name, check, host) for name, check in tracked(checks, "Checking the host", len(checks))]
    if arguments.json:
        print(json.dumps([entry for report in reports for entry in _as_json(report)], indent=2))
    else:
        _print(reports)
    return 0 if all(report.status == OK for report in reports) else 1


def _checks() -> list[tuple[str, Callable[[Snapshot], Iterable[Finding | Remark]]]]:
    """Return the checks: first our own rules, then the host's sysctls, then other programs."""
    from . import filters, others, reachability, rules, settings, uplinks

    return [
        ("kernel", rules.check_kernel),
        ("records", rules.check_records),
        ("namespaces", rules.check_namespaces),
        ("table", rules.check_table),
        ("elements", rules.check_elements),
        ("cover", rules.check_cover),
        ("forwarding", settings.check_forwarding),
        ("containers", reachability.check_containers),
        ("links", reachability.check_links),
        ("addresses", reachability.check_addresses),
        ("routes", reachability.check_routes),
        ("conntrack", settings.check_conntrack),
        ("route_localnet", settings.check_route_localnet),
        ("uplinks", uplinks.check_uplinks),
        ("rp_filter", settings.check_reverse_path),
        ("hairpin", settings.check_hairpin),
        ("external interface", settings.check_external_interfaces),
        ("filters", filters.check_filters),
        ("other plugins", others.check_translators),
        ("host services", others.check_services),
    ]


def _do(name: str, check: Callable[[Snapshot], Iterable[Finding | Remark]], host: Snapshot) -> Report:
    try:
        results = list(check(host))
    except CniError as error:
        return Report(name, UNKNOWN, [], f"{error.message}. {error.details}")
    except Exception as error:  # noqa: BLE001 - one check that fails must not keep the others from being made
        return Report(name, UNKNOWN, [], f"this check failed, which is a defect: {error!r}")
    findings = [result for result in results if isinstance(result, Finding)]
    remarks = " ".join(result.text for result in results if isinstance(result, Remark))
    if any(finding.certain for finding in findings):
        return Report(name, PROBLEM, findings, remarks)
    return Report(name, UNKNOWN if findings else OK, findings, remarks)


def _print(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for report in reports:
        reason = f"  {report.reason}" if report.reason else ""
        console.print(Text.assemble((f"{report.status:8}", _COLOURS[report.status]), f"{report.check}{reason}"))
        for finding in report.findings:
            console.print(Text.assemble("         ", (finding.where, "bold"), f": {finding.problem}"))
            console.print(Text.assemble("         -> ", (finding.remedy, "cyan")))
    wrong = sum(finding.certain for report in reports for finding in report.findings)
    undone = sum(report.status == UNKNOWN for report in reports)
    console.print(
        f"{wrong} problem{'' if wrong == 1 else 's'}"
        + (f", {undone} check{'' if undone == 1 else 's'} without a result" if undone else "")
    )


def _as_json(report: Report) -> list[dict[str, str]]:
    plain = {"check": report.check, "status": report.status}
    if not report.findings:
        said = "remark" if report.status == OK else "problem"
        return [plain | ({said: report.reason} if report.reason else {})]
    return [
        plain | {"where": finding.where, "problem": finding.problem, "remedy": finding.remedy}
        for finding in report.findings
    ]
