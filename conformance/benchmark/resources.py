"""What a call takes beside time: memory at its peak, programs that it starts, system calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .contenders import BACKENDS, OURS, OURS_PIP, Invocation, masquerade_of, portmap_of, run_in
from .figures import Key, Samples
from .hosts import Host

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack
    from pathlib import Path

    from .contenders import Programs

SECTION = "resources"
MEBIBYTES, COUNT = "MiB", "number"
MEMORY, PROGRAMS, PROCESSES, CALLS = "peak memory", "programs started", "processes", "system calls"
_CALL = re.compile(r"^\d+ +(\w+)\(")
_RESUMED_EXECVE = re.compile(r"^\d+ +<\.\.\. execve resumed>.* = 0$")
_NEW_PROCESS = ("clone", "clone3", "fork", "vfork")


class Trace(NamedTuple):
    """What strace saw."""

    programs: int
    processes: int
    calls: int


def measure(programs: Programs, rounds: int, stack: ExitStack, directory: Path) -> Samples:
    """Run each call of each contender under time(1), and once under strace(1)."""
    samples = Samples()
    chosen = (OURS, OURS_PIP, *map(portmap_of, BACKENDS), *map(masquerade_of, BACKENDS))
    hosts = [Host(stack, programs.contenders()[name], directory) for name in chosen]
    for host in hosts:
        host.call("ADD", host.timed(1))  # the first builds the table
        host.call("DEL", host.timed(1))
    for _ in range(rounds):
        for host in hosts:
            for verb in host.contender.verbs:
                samples.add(_key(host, verb, MEMORY, MEBIBYTES), peak_memory(host, verb))
    for host in hosts:
        for verb in host.contender.verbs:
            trace = _trace(host, verb)
            samples.add(_key(host, verb, PROGRAMS, COUNT), trace.programs)
            samples.add(_key(host, verb, PROCESSES, COUNT), trace.processes)
            samples.add(_key(host, verb, CALLS, COUNT), trace.calls)
    return samples


def _key(host: Host, verb: str, what: str, unit: str) -> Key:
    return Key(SECTION, f"{what}, {verb}", host.contender.name, 0, "", unit)


def _under(host: Host, verb: str, *tool: str) -> None:
    command, stdin, environment = host.contender.invocation(verb, host.timed(1), host.private)
    run_in(host.namespace.path, Invocation((*tool, *command), stdin, environment))


def peak_memory(host: Host, verb: str) -> float:
    """Return the peak resident memory of the largest of the processes that a call consists of, MiB.

    time(1) forks, so that what this interpreter has is not counted: Linux keeps the peak across execve(2).
    """
    output = host.private / "time"
    _under(host, verb, "/usr/bin/time", "-f", "%M", "-o", str(output))
    return int(output.read_text().split()[-1]) / 1024


def _trace(host: Host, verb: str) -> Trace:
    output = host.private / "strace"
    _under(host, verb, "strace", "-f", "-qq", "-o", str(output))
    return read_trace(output.read_text().splitlines())


def read_trace(lines: Iterable[str]) -> Trace:
    """Count what is in the output of `strace -f`: programs executed, processes (not threads), system calls."""
    programs, processes, calls = 0, 1, 0
    for line in lines:
        if found := _CALL.match(line):
            calls += 1
            name = found[1]
            programs += name == "execve" and line.endswith("= 0")
            processes += name in _NEW_PROCESS and "CLONE_THREAD" not in line
        programs += bool(_RESUMED_EXECVE.match(line))
    return Trace(programs, processes, calls)
