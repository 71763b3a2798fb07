"""Run the suites and compare: python -m conformance.peer_suites SOURCE BINARIES. conformance/portmap-suite prepares all that.

SOURCE is the source of containernetworking/plugins, BINARIES a directory with its test programs and, below `peers`, its plugins.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_EXPECTED = _HERE / "expected-failures.txt"
_UPLINK = (
    "link set lo up",
    "link add uplink type veth peer name outside",
    "address add 198.51.100.1/24 dev uplink",
    "link set outside up",
    "link set uplink up",
    "route add default via 198.51.100.2",
)
_STATES = ("/run/cni/quantum-nat", "/var/lib/cni")
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Run:
    """A suite with certain programs in its PATH. `ours` says how they come there."""

    name: str
    package: str
    focus: str
    chained: tuple[str, ...] = ()  # plugins that quantum-nat follows
    replaced: tuple[str, ...] = ()  # plugins in whose place it is
    answers_for_chain: bool = False


RUNS = (
    Run("portmap", "plugins/meta/portmap", "portmap integration tests", replaced=("portmap",)),
    Run(
        "portmap, chain answered for",
        "plugins/meta/portmap",
        "portmap integration tests",
        replaced=("portmap",),
        answers_for_chain=True,
    ),
    Run("firewall, peers alone", "plugins/meta/firewall", "firewall integration tests"),
    Run("firewall", "plugins/meta/firewall", "firewall integration tests", chained=("bridge",)),
    Run("integration, peers alone", "integration", ""),
    Run("integration", "integration", "", chained=("bridge", "ptp")),
)


class Failure(NamedTuple):
    """A test that failed, and where."""

    run: str
    place: str
    test: str

    def __str__(self) -> str:
        return f"{self.run} / {self.place} / {self.test}"


class Outcome(NamedTuple):
    """What a suite came to; `reasons` are by failure."""

    tests: list[str]
    reasons: dict[Failure, str]


def main() -> int:
    """Run all, print a table and the sum."""
    source, binaries = map(Path, sys.argv[1:])
    for command in _UPLINK:
        subprocess.run(["ip", *command.split()], check=True)
    outcomes = {run: _outcome(run, source, binaries) for run in RUNS}
    _print_table(outcomes)
    failures = {failure: reason for outcome in outcomes.values() for failure, reason in outcome.reasons.items()}
    problems = [
        *(f"{failure}\n  {reason}" for failure, reason in failures.items() if str(failure) not in _expected(outcomes)),
        *(f"{line}\n  is listed, but passes" for line in _listed() if line not in map(str, failures)),
    ]
    for failure, reason in failures.items():
        if "peers alone" in failure.run:
            print(f"\n{failure}\n  {reason}")
    print("\n" + "\n".join(problems))
    count = sum(len(outcome.tests) for outcome in outcomes.values())
    print(f"{len(failures)} of {count} fail; {len(_listed())} of those are listed in {_EXPECTED.name}")
    print(f"{count - len(failures)} passed, {len(problems)} failed")
    return 1 if problems else 0


def _expected(outcomes: dict[Run, Outcome]) -> set[str]:
    """Return what may fail: what is listed, what fails for the peers alone, and so with us among them."""
    alone = [failure for outcome in outcomes.values() for failure in outcome.reasons if "peers alone" in failure.run]
    with_us = [failure._replace(run=failure.run.removesuffix(", peers alone")) for failure in alone]
    return {*_listed(), *map(str, alone), *map(str, with_us)}


def _listed() -> list[str]:
    lines = _EXPECTED.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _outcome(run: Run, source: Path, binaries: Path) -> Outcome:
    """Run a suite on a host that no earlier run has left anything on."""
    for state in _STATES:
        if Path(state).exists():
            subprocess.run(["find", state, "-mindepth", "1", "-delete"], check=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        programs = Path(directory, "programs")
        environment = _programs(run, programs, binaries)
        if run.package == "integration":  # looks for plugins in ../bin
            shutil.copytree(source, Path(directory, "source"))
            source = Path(directory, "source")
            (source / "bin").symlink_to(programs)
        report = Path(directory, "report.json")
        test = binaries / f"{Path(run.package).name}.test"
        done = subprocess.run(
            [test, f"--ginkgo.focus={run.focus}", f"--ginkgo.json-report={report}"],
            cwd=source / run.package,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        if not report.exists():
            sys.exit(f"{run.name}: {done.stdout}")
        return _read(run, json.loads(report.read_text()))


def _programs(run: Run, directory: Path, binaries: Path) -> dict[str, str]:
    """Fill the directory that is first in the suite's PATH, and return the environment."""
    directory.mkdir()
    peers = binaries / "peers"
    for peer in peers.iterdir():
        (directory / peer.name).symlink_to(peer.resolve())
    plugin = os.environ["QUANTUM_NAT_PLUGIN"]
    (directory / "peers").symlink_to(peers)
    (directory / "quantum-nat").symlink_to(plugin)
    for target, names in ((plugin, run.replaced), (_HERE / "chained", run.chained)):
        for name in names:
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(target)
    environment = os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}
    if run.answers_for_chain:
        (directory / "iptables").symlink_to(_HERE / "iptables")
        environment["IPTABLES"] = str(shutil.which("iptables"))
    return environment


def _read(run: Run, report: list[dict[str, Any]]) -> Outcome:
    tests, reasons = [], {}
    for spec in _specs(report):
        name = " ".join([*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]])
        tests.append(name)
        if spec["State"] != "passed":
            failure = spec.get("Failure", {})
            place = failure.get("Location", {})
            where = f"{Path(place.get('FileName', '?')).name}:{place.get('LineNumber', 0)}"
            reasons[Failure(run.name, where, name)] = " ".join(str(failure.get("Message", spec["State"])).split())[:400]
    if not tests:
        sys.exit(f"{run.name}: no test was run")
    return Outcome(tests, reasons)


def _specs(report: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the tests that were chosen, and what failed around them."""
    for suite in report:
        for spec in suite["SpecReports"] or ():
            if spec["State"] in ("skipped", "pending"):
                continue
            if spec["LeafNodeType"] == "It" or spec["State"] != "passed":
                yield spec


def _print_table(outcomes: dict[Run, Outcome]) -> None:
    print(f"| {'run':30} | {'quantum-nat is':32} | tests | fail |")
    print(f"|{'-' * 32}|{'-' * 34}|-------|------|")
    for run, outcome in outcomes.items():
        role = f"behind {' and '.join(run.chained)}" if run.chained else "not there"
        role = f"in the place of {' and '.join(run.replaced)}" if run.replaced else role
        print(f"| {run.name:30} | {role:32} | {len(outcome.tests):5} | {len(outcome.reasons):4} |")


if __name__ == "__main__":
    sys.exit(main())
