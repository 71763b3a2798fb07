"""Boot kernels and run the tests: python -m conformance.virtual_machine [SUITE...] [--table FILE]. conformance/kernels prepares it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from .features import FEATURES, Feature
from .machine import Failed, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITES = ("bullseye", "bookworm", "trixie")
PASSED, FAILED, NOT_TRIED = "pass", "FAIL", "-"
_TIMEOUT_S = 3600
_MODULES = ("br_netfilter", "sctp")  # the others are loaded by who needs them
_TESTS = "tests/kernel"


def main() -> int:
    """Run, print the table, and return whether a test failed."""
    parser = argparse.ArgumentParser(prog="conformance/kernels", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"whose kernel: {', '.join(SUITES)}; all of them without"
    )
    parser.add_argument("--table", metavar="FILE", help="write the table into this Markdown file too")
    parser.add_argument("-k", dest="expression", default="", help="as pytest's: only these tests")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}. There are {', '.join(SUITES)}.")
    outcomes = {}
    for suite in arguments.suites or SUITES:
        version, outcomes_of_one = _run(suite, arguments.expression)
        outcomes[version] = outcomes_of_one
    lines = list(_table(outcomes))
    print("\n".join(lines))
    if arguments.table:
        Path(arguments.table).write_text("\n".join(lines) + "\n")
    return int(any(FAILED in found.values() for found in outcomes.values()))


def _run(suite: str, expression: str) -> tuple[tuple[int, int], dict[str, str]]:
    """Run the tests with one kernel, and return its version, and each test's outcome."""
    place = Path(os.environ["MACHINE"])
    machine = Machine(place / "root", place / "kernels" / suite, _MODULES)
    major, minor = map(int, machine.version.split(".")[:2])
    features = [feature for feature in FEATURES if feature.since <= (major, minor)]
    tests = " ".join(shlex.quote(f"{_TESTS}/{test}") for feature in features for test in feature.tests)
    command = (
        f"QUANTUM_NAT_PLUGIN=$PWD/dist/quantum-nat/quantum-nat .venv/bin/python -m pytest -p no:cacheprovider --basetemp=/tmp/pytest "
        f"--junit-xml=/run/result -o junit_family=xunit1 --color=no -q --durations=10 -k {shlex.quote(expression)} {tests}"
    )
    begin = time.monotonic()
    print(f"Linux {machine.version} ...", flush=True)
    with tempfile.TemporaryDirectory(dir=place) as directory:
        try:
            result = machine.run(command, Path(directory), _TIMEOUT_S)
        except Failed as failure:
            sys.exit(str(failure))
        outcomes = _outcomes(ET.fromstring(result))  # noqa: S314 - our own pytest wrote it
        console = (Path(directory) / "console").read_text(errors="replace")
    print(f"Linux {machine.version}: {len(outcomes)} tests in {time.monotonic() - begin:.0f} s")
    if FAILED in outcomes.values() or not outcomes:
        print(console)
    return (major, minor), outcomes


def _outcomes(report: ET.Element) -> dict[str, str]:
    """Return each test's outcome, "pass", "FAIL" or "-: why it was left out", the worst where a test has several cases."""
    found: dict[str, str] = {}
    for case in report.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name', '')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = FAILED
        elif skipped is not None:
            outcome = f"{NOT_TRIED}: {skipped.get('message', '').removeprefix('Skipped: ')}"
        else:
            outcome = PASSED
        found[name] = max(found.get(name, PASSED), outcome, key=_badness)
    return found


def _badness(outcome: str) -> int:
    return (PASSED, NOT_TRIED, FAILED).index(outcome.partition(":")[0])


def _table(outcomes: dict[tuple[int, int], dict[str, str]]) -> Iterator[str]:
    """Yield the table of features and kernels in Markdown, and its notes."""
    notes: list[str] = []
    grid = [["feature", "needs Linux", *(_dotted(version) for version in outcomes)]]
    for feature in FEATURES:
        cells = [_cell(feature, version, found, notes) for version, found in outcomes.items()]
        grid.append([feature.name, _dotted(feature.since), *cells])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    for number, row in enumerate(grid):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    for number, note in enumerate(notes, 1):
        yield ""
        yield f"[{number}] {note}"


def _cell(feature: Feature, version: tuple[int, int], outcomes: dict[str, str], notes: list[str]) -> str:
    if version < feature.since:
        return f"{NOT_TRIED} {_mark(feature.below, notes)}"
    tried = [outcome for name, outcome in outcomes.items() if name.startswith(feature.tests)]
    if not tried:
        return ""
    outcome, _, why = max(tried, key=_badness).partition(": ")
    return f"{outcome} {_mark(why, notes)}" if why else outcome


def _mark(note: str, notes: list[str]) -> str:
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main())
