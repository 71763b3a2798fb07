"""The resources of a call besides time: peak memory, started programs, system calls."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .contenders import BACKENDS, OURS, OURS_PIP, Invocation, masquerade_of, portmap_of, run_in
from .figures import Key, Samples
from .hosts import Host

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from .contenders import Programs

SECTION = "resources"
MEBIBYTES, COUNT = "MiB", "number"
MEMORY, LARGEST = "peak memory, all its processes", "peak memory, the largest process"
PROGRAMS, PROCESSES, CALLS = "programs started", "processes", "system calls"
_DELAY_US = 20_000  # delay of each exit, to read the memory of live processes
_BETWEEN_LOOKS_S = 0.002
_CALL = re.compile(r"^\d+ +(\w+)\(")
_RESUMED_EXECVE = re.compile(r"^\d+ +<\.\.\. execve resumed>.* = 0$")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_NEW_PROCESS = ("clone", "clone3", "fork", "vfork")


class Memory(NamedTuple):
    """Peak resident memory in MiB, of all processes alive at the same time, and of the largest one."""

    all: float
    largest: float


class Trace(NamedTuple):
    """The counts from strace."""

    programs: int
    processes: int
    calls: int


def measure(programs: Programs, rounds: int, stack: ExitStack, directory: Path) -> Samples:
    """Measure the memory of each call of each contender in each round, and its system calls once."""
    samples = Samples()
    chosen = (OURS, OURS_PIP, *map(portmap_of, BACKENDS), *map(masquerade_of, BACKENDS))
    hosts = [Host(stack, programs.contenders()[name], directory) for name in chosen]
    for host in hosts:
        host.call("ADD", host.timed(1))  # the first builds the table
        host.call("DEL", host.timed(1))
    for _ in range(rounds):
        for host in hosts:
            for verb in host.contender.verbs:
                memory = peak_memory(host, verb)
                samples.add(_key(host, verb, MEMORY, MEBIBYTES), memory.all)
                samples.add(_key(host, verb, LARGEST, MEBIBYTES), memory.largest)
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


def peak_memory(host: Host, verb: str) -> Memory:
    """Return the memory of a call and the processes that it starts. strace(1), which is not counted, delays each exit."""
    hold = f"--inject=exit_group:delay_enter={_DELAY_US}"
    peak = Memory(0, 0)
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(_under, host, verb, "strace", "-f", "-qq", "-o", "/dev/null", "--trace=exit_group", hold)
        while not call.done():
            sizes = [size for name, size in _resident_below(os.getpid()) if name != "strace"]
            peak = Memory(max(peak.all, sum(sizes)), max(peak.largest, *sizes, 0))
            time.sleep(_BETWEEN_LOOKS_S)
        call.result()
    return peak


def _resident_below(parent: int) -> Iterator[tuple[str, float]]:
    """Yield the program and the peak resident memory in MiB of the living descendants of a process.

    Processes between vfork(2) and execve(2) are left out: they share their parent's memory.
    """
    for child in _children(parent):
        try:
            image = Path(f"/proc/{child}/exe").readlink()
            if image != Path(f"/proc/{parent}/exe").readlink():
                status = Path(f"/proc/{child}/status").read_text()
                if found := _PEAK.search(status):
                    yield image.name, int(found[1]) / 1024
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        yield from _resident_below(child)


def _children(process: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _trace(host: Host, verb: str) -> Trace:
    output = host.private / "strace"
    _under(host, verb, "strace", "-f", "-qq", "-o", str(output))
    return read_trace(output.read_text().splitlines())


def read_trace(lines: Iterable[str]) -> Trace:
    """Count executed programs, processes (not threads) and system calls in the output of `strace -f`."""
    programs, processes, calls = 0, 1, 0
    for line in lines:
        if found := _CALL.match(line):
            calls += 1
            name = found[1]
            programs += name == "execve" and line.endswith("= 0")
            processes += name in _NEW_PROCESS and "CLONE_THREAD" not in line
        programs += bool(_RESUMED_EXECVE.match(line))
    return Trace(programs, processes, calls)
