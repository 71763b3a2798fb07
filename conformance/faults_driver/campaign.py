"""Run all injections of a scene, one after the other on one host, with checks after each."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.conftest import programs_of
from tests.kernel.plugin import Plugin, PluginError
from tests.kernel.topology import Host

from .audit import disagreements, remains, strangers
from .injection import KILL, Point, injector, points_of, tracer, was_injected
from .scenes import SCENES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .scenes import Scene

_DEFECT = 199
_SHOWN = 400


class Case(NamedTuple):
    """One injection."""

    scene: str
    point: Point
    fault: str

    def __str__(self) -> str:
        return f"{self.scene}: {self.fault} at {self.point}"


class Count(NamedTuple):
    """The number of injections, of those that the call survived, and the problems."""

    injected: int
    survived: int
    not_reached: int
    problems: list[str]


class Selection(NamedTuple):
    """The faults to inject: every `every`th, optionally only at system calls with these names."""

    every: int = 1
    kills_only: bool = False
    calls: frozenset[str] = frozenset()

    def of(self, cases: list[Case]) -> list[Case]:
        """Return the selected ones."""
        meant = [case for case in cases if case.fault == KILL or not self.kills_only]
        return [case for case in meant if not self.calls or case.point.name in self.calls][:: self.every]


def run_scene(name: str, backend: str, directory: Path, selection: Selection) -> Count:
    """Inject the selected faults, and check the result after each."""
    with ExitStack() as stack:
        host = Host(stack)
        host.backend = backend
        directory.mkdir(parents=True)
        plugin = Plugin(host, directory / "state", programs_of(backend, directory / "programs"))
        campaign = Campaign(SCENES[name](plugin, stack), directory / "trace")
        return campaign.run(selection)


class Campaign:
    """The injections of one scene."""

    def __init__(self, scene: Scene, trace: Path) -> None:
        self._scene = scene
        self._trace = trace

    def run(self, selection: Selection) -> Count:
        injected = survived = not_reached = 0
        problems: list[str] = []
        for case in selection.of(self._cases()):
            was_reached, ended_well, found = self._inject(case)
            injected += was_reached
            not_reached += not was_reached
            survived += was_reached and ended_well
            for problem in found:
                problems.append(f"{case}: {problem}"[:_SHOWN])
                print(f"  {problems[-1]}", file=sys.stderr, flush=True)
        return Count(injected, survived, not_reached, problems)

    def _cases(self) -> list[Case]:
        """Trace the undisturbed call twice, since the first one does more."""
        for _ in range(2):
            self._scene.prepare()
            _finish(self._scene, tracer(self._trace))
            self._scene.go_on()
            self._scene.leave()
        return [Case(self._scene.name, point, fault) for point in points_of(self._trace) for fault in point.faults]

    def _inject(self, case: Case) -> tuple[bool, bool, list[str]]:
        scene = self._scene
        scene.prepare()
        answer = _finish(scene, injector(self._trace, case.point, case.fault))
        found = list(self._problems_after(case, answer))
        scene.leave()
        found += [f"at last, {problem}" for problem in (*disagreements(scene.plugin), *remains(scene.plugin))]
        return was_injected(self._trace), answer == "", found

    def _problems_after(self, case: Case, answer: str) -> Iterator[str]:
        scene = self._scene
        if case.fault != KILL and answer:
            yield from _wrong_answer(answer)
        try:
            scene.flow.say()
            scene.go_on()
        except (PluginError, OSError) as error:
            yield f"{type(error).__name__}: {error}"
        try:
            yield from scene.problems()
            scene.flow.say()
        except Exception as error:  # noqa: BLE001 - refused, timed out, or whatever a client meets
            yield f"traffic: {type(error).__name__}: {error}"
        yield from disagreements(scene.plugin)
        yield from strangers(scene.plugin)


def _finish(scene: Scene, before: tuple[str, ...]) -> str:
    """Run the call, and return its error output; empty if it succeeded."""
    process = scene.start(before)
    output, complaints = process.communicate(timeout=90)
    return (output + complaints or f"status {process.returncode}") if process.returncode else ""


def _wrong_answer(answer: str) -> Iterator[str]:
    """Check the error of a call that failed without being killed."""
    if "Traceback" in answer:
        yield f"a traceback: {answer}"
        return
    try:
        error = json.loads(answer.split("\n", maxsplit=1)[0])
    except ValueError:
        return  # an operator's command prints text
    if error.get("code") == _DEFECT:
        yield f"an internal error: {error}"
