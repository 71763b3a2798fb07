"""A hundred parallel ADDs, as when a node starts: the time until the last has ended, and the slowest call."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from tests.kernel.peer import inside
from tests.kernel.topology import Namespace

from .contenders import (
    BACKENDS,
    NETAVARKS,
    OURS_PIP,
    PLAIN_BRIDGE,
    CallFailed,
    Invocation,
    Mapping,
    Request,
    both_of,
    masquerade_of,
    portmap_of,
)
from .figures import Key, Samples, sum_with_extra
from .hosts import FIRST_PORT, Host, name_of

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from .contenders import Programs

SECTION = "parallel"
COUNT = 100
ALL, SLOWEST = f"{COUNT} ADDs, all", f"{COUNT} ADDs, the slowest"
_SLOW = (OURS_PIP, *NETAVARKS)


def measure(programs: Programs, rounds: int, stack: ExitStack, directory: Path) -> Samples:
    """Let each contender attach a hundred containers in parallel, one contender after the other."""
    samples = Samples()
    contenders = [c for c in programs.contenders().values() if c.name not in _SLOW]
    hosts = [Host(stack, contender, directory) for contender in contenders]
    requests = [_request(number, stack) for number in range(COUNT)]
    for host in hosts:
        host.call("ADD", host.timed(1))  # the first builds the table, and stays
    for _ in range(rounds):
        for host in hosts:
            total, slowest = call_in_parallel(host, "ADD", requests)
            samples.add(Key(SECTION, ALL, host.contender.name), total)
            samples.add(Key(SECTION, SLOWEST, host.contender.name), slowest)
            call_in_parallel(host, "DEL", requests)
    _combine(samples)
    return samples


def _combine(samples: Samples) -> None:
    for backend in BACKENDS:
        names = (portmap_of(backend), masquerade_of(backend), PLAIN_BRIDGE)
        for value in sum_with_extra(*(samples.values(Key(SECTION, ALL, name)) for name in names)):
            samples.add(Key(SECTION, ALL, both_of(backend)), value)


def _request(number: int, stack: ExitStack) -> Request:
    mappings = (Mapping(FIRST_PORT + 10 + number),)
    container = Namespace("container", stack)
    return Request(name_of(f"parallel {number}"), f"10.88.0.{10 + number}", mappings, container.path)


def call_in_parallel(host: Host, verb: str, requests: list[Request]) -> tuple[float, float]:
    """Start all calls; return the milliseconds until the last has ended, and those of the slowest call."""
    started: dict[int, float] = {}
    took = []
    with inside(host.namespace.path), tempfile.TemporaryFile() as answers:
        begin = time.perf_counter()
        processes = [
            _start(host.contender.invocation(verb, request, host.private), answers.fileno(), started)
            for request in requests
        ]
        statuses = []
        for _ in processes:
            pid, status = os.wait()
            took.append(time.perf_counter() - started[pid])
            statuses.append(status)
        total = time.perf_counter() - begin
        for process, status in zip(processes, statuses, strict=True):
            process.returncode = status  # already waited for
        answers.seek(0)
        if any(statuses):
            raise CallFailed(f"{host.contender.name}: {verb} in parallel: {answers.read().decode()[-2000:]}")
    return total * 1000, max(took) * 1000


def _start(invocation: Invocation, answers: int, started: dict[int, float]) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as stdin:
        stdin.write(invocation.stdin.encode())
        stdin.seek(0)
        at = time.perf_counter()
        process = subprocess.Popen(
            invocation.command, stdin=stdin, stdout=answers, stderr=answers, env=invocation.environment
        )
        started[process.pid] = at
    return process
