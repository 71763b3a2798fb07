"""The duration of `quantum-nat reconcile` with many containers: with nothing to do, and with everything to rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .contenders import OURS, OURS_PIP
from .figures import Key, Samples
from .filling import fill, reconcile
from .hosts import Host

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from .contenders import Programs

SECTION = "reconcile"
NOTHING_TO_DO, FLUSHED = "nothing to do", "after nft flush ruleset"


def measure(programs: Programs, levels: list[int], rounds: int, stack: ExitStack, directory: Path) -> Samples:
    """Time both, in turn."""
    samples = Samples()
    hosts = [
        Host(stack, programs.contenders()[name], directory, containers)
        for name in (OURS, OURS_PIP)
        for containers in levels
    ]
    for host in hosts:
        fill(host)
    for _ in range(rounds):
        for host in hosts:
            samples.add(Key(SECTION, NOTHING_TO_DO, host.contender.name, host.containers), reconcile(host))
            host.namespace.run("nft", "flush", "ruleset")
            samples.add(Key(SECTION, FLUSHED, host.contender.name, host.containers), reconcile(host))
    return samples
