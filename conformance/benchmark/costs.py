"""Where the time of one of our ADDs goes: its phases, from strace(1), and its imports, from CPython.

Only the system calls between phases are traced; the others run at full speed (`--seccomp-bpf`). Imports are timed from files,
as installed by pip; the frozen program has them in its snapshot, where none takes any time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .contenders import OURS, OURS_PIP, Invocation, run_in
from .figures import Key, Samples
from .hosts import Host

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from .contenders import Programs

SECTION = "costs"
# The start of each phase in strace's output, and the name of the phase.
_LANDMARKS = (
    ("execve(", "1. the kernel loads the program"),
    ("rt_sigaction(SIGPIPE", "2. CPython goes on from its snapshot"),
    ("gettid(", "3. the request is read and checked"),
    ("flock(", "4. settings, routes, listeners, the decision"),
    ("rename(", "5. the table is compared with the one that was made"),
    ("NFNL_MSG_BATCH_BEGIN", "6. the transaction, sysctls, sockets"),
    ("write(1, ", "7. counters, after the answer"),
    ("exit_group(", "8. the kernel takes the process down"),
    ("+++ exited", ""),
)
PHASES = "phases of ADD"
_TRACED = "execve,rt_sigaction,gettid,flock,rename,sendto,write,exit_group"
_LINE = re.compile(r"^(?:\d+ +)?(\d+\.\d+) (.*)$")
_IMPORT = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$")
_MODULES_SHOWN = 12
_ALLOWED = Path(__file__).parents[2] / "packaging/hot-modules.txt"  # other modules belong to pip's script


def measure(programs: Programs, rounds: int, stack: ExitStack, directory: Path) -> Samples:
    """Trace ADDs of the frozen program, and time the imports of ADDs from files."""
    samples = Samples()
    frozen, source = (Host(stack, programs.contenders()[name], directory) for name in (OURS, OURS_PIP))
    for host in (frozen, source):
        host.call("ADD", host.timed(1))
        host.call("DEL", host.timed(1))
    imports: dict[str, list[float]] = {}
    for _ in range(rounds):
        for phase, took_ms in _trace(frozen).items():
            samples.add(Key(SECTION, PHASES, phase), took_ms)
        for module, took_ms in _imports(source).items():
            imports.setdefault(module, []).append(took_ms)
    dearest = sorted(imports, key=lambda module: sorted(imports[module])[len(imports[module]) // 2], reverse=True)
    for module in dearest[:_MODULES_SHOWN]:
        for took_ms in imports[module]:
            samples.add(Key(SECTION, "dearest imports of ADD, from files", module), took_ms)
    return samples


def _run(host: Host, *tool: str) -> None:
    command, stdin, environment = host.contender.invocation("ADD", host.timed(1), host.private)
    run_in(host.namespace.path, Invocation((*tool, *command), stdin, environment))
    host.call("DEL", host.timed(1))


def _trace(host: Host) -> dict[str, float]:
    output = host.private / "strace"
    _run(host, "strace", "-f", "--seccomp-bpf", "-ttt", "-e", f"trace={_TRACED}", "-o", str(output))
    return phases(output.read_text().splitlines())


def phases(lines: Iterable[str]) -> dict[str, float]:
    """Return the milliseconds of each phase, from the output of `strace -f -ttt`; raise ValueError if one is missing."""
    moments: list[float] = []
    for line in lines:
        found = _LINE.match(line)
        if found and len(moments) < len(_LANDMARKS) and _LANDMARKS[len(moments)][0] in found[2]:
            moments.append(float(found[1]))
    if len(moments) < len(_LANDMARKS):
        raise ValueError(f"strace saw no {_LANDMARKS[len(moments)][0]}")
    names = [name for _, name in _LANDMARKS[:-1]]
    return {name: (moments[at + 1] - moments[at]) * 1000 for at, name in enumerate(names)}


def _imports(host: Host) -> dict[str, float]:
    output = host.private / "importtime"
    python = Path(host.contender.program).parent / "python"
    script = f"exec {python} -I -X importtime {host.contender.program} 2>{output}"
    _, stdin, environment = host.contender.invocation("ADD", host.timed(1), host.private)
    run_in(host.namespace.path, Invocation(("sh", "-c", script), stdin, environment))
    host.call("DEL", host.timed(1))
    ours = {*_ALLOWED.read_text().split()}
    times = import_times(output.read_text().splitlines())
    return {module: took for module, took in times.items() if module in ours or module.startswith("cni_quantum_nat")}


def import_times(lines: Iterable[str]) -> dict[str, float]:
    """Return each module's own milliseconds, from the output of `python -X importtime`."""
    found = (match for match in map(_IMPORT.match, lines) if match)
    return {match[2]: int(match[1]) / 1000 for match in found}
