"""The lock, in a program that uses the Python API: it leaves the program's signals alone, and a child does not keep it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .peer import inside
from .plugin import Plugin, publish
from .topology import HOST, Container, Host, Namespace, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plugin import Attachment

# A program with a timer of its own, which waits for the lock; prints what is left of the timer.
WITH_A_TIMER = """
import signal, sys, threading
from cni_quantum_nat import NatConfig, NatManager
fired = []
signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
signal.setitimer(signal.ITIMER_REAL, 1000)
manager = NatManager(NatConfig(state_dir=sys.argv[1]))
manager.create_port_mapping("api", sys.argv[2], 80, 8081)
print(signal.getitimer(signal.ITIMER_REAL)[0] > 900, len(fired), flush=True)
"""
# Forks while a thread holds the lock; the child sleeps, the parent releases the lock and ends.
WITH_A_CHILD = """
import os, sys, time
from cni_quantum_nat.state.directory import State
from cni_quantum_nat.state.program_lock import ProgramLock
state = State(sys.argv[1], ProgramLock)
state.lock()
if os.fork() == 0:
    os.close(1)
    time.sleep(30)
    os._exit(0)
print("ready", flush=True)
os._exit(0)  # without a release, as a program that is killed
"""


@pytest.fixture
def held(plugin: Plugin, container: Container) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the lock."""
    plugin.add(container, publish(8080))
    holder = subprocess.Popen(["flock", plugin.state_directory / "lock", "sleep", "300"], start_new_session=True)
    wait_until(lambda: _lines_about(plugin) != [], "the lock is held")
    yield holder
    release(holder)


def release(holder: subprocess.Popen[bytes]) -> None:
    if holder.poll() is None:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def _lines_about(plugin: Plugin) -> list[str]:
    inode = f":{(plugin.state_directory / 'lock').stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]


def is_waiting(plugin: Plugin) -> bool:
    return any("->" in line for line in _lines_about(plugin))


def test_a_program_keeps_its_timer_while_it_waits(
    host: Host, client: Namespace, container: Container, plugin: Plugin, held: subprocess.Popen[bytes]
) -> None:
    """At 1.0.0 (defect 32) the wait replaced the program's own timer, and left none."""
    line = [sys.executable, "-I", "-c", WITH_A_TIMER, str(plugin.state_directory), container.address[4]]
    with inside(host.path):
        program = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=plugin.environ)
    time.sleep(1.5)
    assert program.poll() is None, "it waits"
    release(held)
    output, _ = program.communicate(timeout=60)
    assert output == "True 0\n"
    assert client.ask(HOST[4], 8081).server == "web"


def test_a_child_does_not_keep_the_lock(container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 32) a child that was forked meanwhile kept it for as long as it lived."""
    plugin.add(container, publish(8080))
    line = [sys.executable, "-I", "-c", WITH_A_CHILD, str(plugin.state_directory)]
    program = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.wait(timeout=30)
        started = time.monotonic()
        plugin.add(container, publish(8080))
        assert time.monotonic() - started < 15
    finally:
        os.killpg(program.pid, signal.SIGKILL)


@pytest.fixture
def waiting(
    plugin: Plugin, container: Container, held: subprocess.Popen[bytes]
) -> Iterator[tuple[Attachment, subprocess.Popen[str]]]:
    """A call that waits for the lock, started by a parent that has blocked SIGALRM."""
    assert held.poll() is None
    attachment = plugin.attachment(container, publish(8082))
    blocking = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); os.execvp(sys.argv[1], sys.argv[1:])"
    process = plugin.start("ADD", attachment.configuration, container, before=(sys.executable, "-c", blocking))
    wait_until(lambda: is_waiting(plugin), "the ADD waits")
    yield attachment, process
    process.kill()
    process.communicate()


def test_a_parent_that_blocks_the_alarm_does_not_make_it_wait_forever(
    waiting: tuple[Attachment, subprocess.Popen[str]],
) -> None:
    """At 1.0.0 (defect 32) the time-out never came."""
    _, process = waiting
    os.kill(process.pid, signal.SIGALRM)  # the time-out, a minute early
    output, _ = process.communicate(timeout=20)
    assert '"code": 11' in output or '"code":11' in output
    assert "has held" in output


def test_a_directory_that_was_removed_while_a_call_waited_is_made_anew(
    client: Namespace, plugin: Plugin, held: subprocess.Popen[bytes], waiting: tuple[Attachment, subprocess.Popen[str]]
) -> None:
    """At 1.0.0 (defect 32) the call went on with the lock of a file that was there no more, beside whoever locked the new one."""
    attachment, process = waiting
    shutil.rmtree(plugin.state_directory)
    release(held)
    plugin.finish(process)
    assert (plugin.state_directory / "attachments" / attachment.container.id).exists()
    assert client.ask(HOST[4], 8082).server == "web"
    attachment.check()
