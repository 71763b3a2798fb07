"""`conformance/pairs`: stops one call behind each of its system calls, runs another, and prints how many pairs ended how."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conformance.faults_driver.injection import Point, points_of, tracer
from tests.kernel.plugin import Plugin
from tests.kernel.topology import Host

from .scene import BEFORE, CALLS, Scene
from .stops import Stopped, stopper, wait_until_ended_or, waits_for_lock

if TYPE_CHECKING:
    import subprocess

_SHOWN = 500


class Count(NamedTuple):
    """How many times a call was stopped, how often the other one waited for it, and what was wrong."""

    stopped: int
    waited: int
    problems: list[str]


def main() -> int:
    """Try the pairs that are asked for; 1 when one did not end well."""
    parser = argparse.ArgumentParser(prog="conformance/pairs", description=__doc__)
    parser.add_argument("--first", action="append", choices=list(CALLS), help="stop only this one (may be repeated)")
    parser.add_argument("--second", action="append", choices=list(CALLS), help="run only this one (may be repeated)")
    parser.add_argument("--before", action="append", choices=BEFORE, help="only behind this (may be repeated)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="stop behind every Nth system call only")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the first N")
    arguments = parser.parse_args()
    print(
        f"{'STOPPED':14}{'MEANWHILE':14}{'BEFORE':40}{'STOPS':>6}{'WAITED':>8}{'NOT WELL':>10}{'SECONDS':>9}",
        flush=True,
    )
    total, problems = 0, 0
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        plugin = Plugin(Host(stack), Path(directory, "state"))
        scene = Scene(plugin, stack)
        pairs = product(arguments.before or BEFORE, arguments.first or CALLS, arguments.second or CALLS)
        for before, first, second in pairs:
            started = time.monotonic()
            points = _points(scene, before, first, Path(directory))[arguments.offset :: arguments.every]
            count = _try_all(scene, (before, first, second), points, Path(directory))
            took_s = time.monotonic() - started
            shown = f"{count.stopped:6}{count.waited:8}{len(count.problems):10}{took_s:9.0f}"
            print(f"{first:14}{second:14}{before:40}{shown}", flush=True)
            total += count.stopped
            problems += len(count.problems)
    print(f"{total} pairs of calls; {problems or 'none'} did not end well")
    return 1 if problems else 0


def _points(scene: Scene, before: str, call: str, directory: Path) -> list[Point]:
    """Trace a call alone, and return the system calls from the first that looks at the state directory."""
    trace = directory / "trace"
    scene.prepare(before)
    _answer(scene.start(call, tracer(trace)))
    for problem in scene.settle():
        raise RuntimeError(f"{call} alone: {problem}")
    return points_of(trace, mark=str(scene.plugin.state_directory))


def _try_all(scene: Scene, pair: tuple[str, str, str], points: list[Point], directory: Path) -> Count:
    stopped = waited = 0
    problems: list[str] = []
    for point in points:
        was_stopped, has_waited, found = _try(scene, pair, point, directory / "stop")
        stopped += was_stopped
        waited += has_waited
        for problem in found:
            problems.append(f"{pair[1]} stopped behind {point}, {pair[2]} meanwhile; {pair[0]}: {problem}"[:_SHOWN])
            print(f"  {problems[-1]}", file=sys.stderr, flush=True)
    return Count(stopped, waited, problems)


def _try(scene: Scene, pair: tuple[str, str, str], point: Point, trace: Path) -> tuple[bool, bool, list[str]]:
    """Make both calls; return whether the first was stopped, whether the second waited for it, and what is wrong then."""
    before, first, second = pair
    trace.unlink(missing_ok=True)
    scene.prepare(before)
    found: list[str] = []
    with Stopped(scene.start(first, stopper(trace, point)), trace) as stopped:
        meanwhile = scene.start(second)
        wait_until_ended_or(meanwhile, lambda: waits_for_lock(meanwhile))
        has_waited = meanwhile.poll() is None
    answers = {f"{first}, stopped": _answer(stopped.process), second: _answer(meanwhile)}
    found += scene.problems(answers, before)
    found += scene.settle()
    return stopped.was_stopped, has_waited, found


def _answer(process: subprocess.Popen[str]) -> str:
    """Return what a call complained of, empty when it succeeded."""
    output, complaints = process.communicate(timeout=90)
    return (output + complaints or f"status {process.returncode}") if process.returncode else ""


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    sys.exit(main())
