"""Many concurrent calls, some killed, with flushes, comparisons and a full disk; a model predicts the results."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conformance.faults_driver.audit import disagreements, remains, strangers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from .plugin import Attachment, Plugin, PluginError, publish
from .topology import HOST, Container, Host, Namespace, run, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CALLS, ATTACHMENTS, PROCESSES = 500, 60, 16
FIRST_PORT = 8100
FULL_DISK, NO_LOCK = 5, 11


class Stormy:
    """An attachment, used by one thread at a time as CNI requires. is_there: None after a killed call."""

    def __init__(self, plugin: Plugin, container: Container, number: int) -> None:
        self.port = FIRST_PORT + number
        self.plugin = plugin
        self.attachment = plugin.attachment(container, publish(self.port), publish(self.port, protocol="udp"))
        self.attachment.configuration["name"] = f"net{number}"
        container.ip(f"address add 10.88.0.{100 + number}/24 dev eth0")
        address = {"interface": 1, "address": f"10.88.0.{100 + number}/24"}
        self.attachment.configuration["prevResult"]["ips"] = [address]
        self.is_there: bool | None = False

    def call(self, verb: str, kill_after_s: float | None = None) -> None:
        """Run a call, and update the model; raise PluginError for an unexpected error."""
        process = self.plugin.start(verb, self.attachment.configuration, self.attachment.container)
        if kill_after_s is not None:
            try:
                process.wait(kill_after_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                self.is_there = None if verb in ("ADD", "DEL") else self.is_there
                return
        self._learn(verb, process)

    def _learn(self, verb: str, process: subprocess.Popen[str]) -> None:
        try:
            self.plugin.finish(process)
        except PluginError as error:
            if error.code == FULL_DISK:
                self.is_there = None if verb == "DEL" else self.is_there
            elif verb != "CHECK":
                raise
            return
        if verb in ("ADD", "DEL"):
            self.is_there = verb == "ADD"


@pytest.fixture
def storm(plugin: Plugin, container: Container) -> list[Stormy]:
    return [Stormy(plugin, container, number) for number in range(ATTACHMENTS)]


def _blow(storm: list[Stormy], seed: int) -> None:
    """Run the calls from 16 threads, each with its own attachments; a fifth of the calls is killed."""

    def work(number: int) -> None:
        chance = random.Random(seed + number)  # noqa: S311 - to be the same each time
        for _ in range(-(-CALLS // PROCESSES)):
            stormy = chance.choice(storm[number::PROCESSES])
            kill_after_s = chance.uniform(0, 0.5) if chance.random() < 0.2 else None
            stormy.call(chance.choice(("ADD", "ADD", "DEL", "CHECK")), kill_after_s)

    with ThreadPoolExecutor(PROCESSES) as threads:
        list(threads.map(work, range(PROCESSES)))


def _settle(storm: list[Stormy]) -> None:
    """Do what runtimes do: retry or give up."""
    for number, stormy in enumerate(storm):
        if stormy.is_there is None:
            stormy.call("DEL" if number % 2 else "ADD")


def _assert_all_is_as_the_model_says(plugin: Plugin, client: Namespace, storm: list[Stormy]) -> None:
    there = {stormy.attachment.owner for stormy in storm if stormy.is_there}
    recorded = json.loads(plugin.operate("list", "--json").stdout)
    assert {f"{r['network']}/{r['containerId']}/{r['interface']}" for r in recorded} == there
    for stormy in storm:
        if stormy.is_there:
            assert client.ask(HOST[4], stormy.port).server == "web"
            stormy.call("CHECK")
        else:
            assert client.is_refused(HOST[4], stormy.port)
    assert [*disagreements(plugin), *strangers(plugin), *remains(plugin)] == []


@contextmanager
def _meanwhile(trouble: Callable[[], object]) -> Iterator[None]:
    """Repeat a disturbance while the block runs."""
    done = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not done.wait(0.2):
                trouble()
        except BaseException as error:  # noqa: BLE001 - it is told in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert failures == []


@pytest.mark.frozen
def test_500_calls_for_60_attachments_from_16_threads_with_kills(
    client: Namespace, plugin: Plugin, storm: list[Stormy]
) -> None:
    _blow(storm, seed=1)
    _settle(storm)
    _assert_all_is_as_the_model_says(plugin, client, storm)


def test_the_same_with_flushes_and_comparisons(
    host: Host, client: Namespace, plugin: Plugin, storm: list[Stormy]
) -> None:
    def trouble() -> None:
        host.run("nft", "flush ruleset")
        assert plugin.operate("reconcile").returncode == 0

    with _meanwhile(trouble):
        _blow(storm, seed=2)
    assert plugin.operate("reconcile").returncode == 0
    _settle(storm)
    _assert_all_is_as_the_model_says(plugin, client, storm)


def test_the_same_with_a_disk_that_is_sometimes_full(
    client: Namespace, plugin: Plugin, storm: list[Stormy], small_disk: Path
) -> None:
    ballast = small_disk / "ballast"

    def trouble() -> None:
        ballast.unlink() if ballast.exists() else _fill(ballast)

    with _meanwhile(trouble):
        _blow(storm, seed=3)
    ballast.unlink(missing_ok=True)
    _settle(storm)
    _assert_all_is_as_the_model_says(plugin, client, storm)


@pytest.fixture
def small_disk(plugin: Plugin) -> Iterator[Path]:
    """Mount a file system of 1 MiB on the state directory."""
    disk = plugin.state_directory
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(disk))
    try:
        yield disk
    finally:
        run("umount", str(disk))


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return  # it is full


def test_on_a_full_disk_an_add_changes_nothing_and_a_del_works(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin, small_disk: Path
) -> None:
    web = plugin.add(container, publish(8080))
    _fill(small_disk / "ballast")
    with pytest.raises(PluginError, match="No space left") as caught:
        plugin.add(other_container, publish(8081))
    assert caught.value.code == FULL_DISK
    assert client.is_refused(HOST[4], 8081)
    with pytest.raises(PluginError, match="No space left"):
        plugin.add(container, publish(8082))
    assert client.ask(HOST[4], 8080).server == "web", "earlier attachments are unchanged"
    assert client.is_refused(HOST[4], 8082)
    assert list(strangers(plugin)) == []
    web.delete()
    assert client.is_refused(HOST[4], 8080)
    assert list(strangers(plugin)) == []


@pytest.mark.frozen
def test_an_add_that_times_out_names_the_holder_of_the_lock(container: Container, plugin: Plugin) -> None:
    plugin.state_directory.mkdir(mode=0o700)
    lock = plugin.state_directory / "lock"
    holder = subprocess.Popen(["flock", lock, "sleep", "300"], start_new_session=True)
    try:
        wait_until(lambda: _lines_about(lock) != [], "the lock is held")
        waiting = plugin.start("ADD", plugin.attachment(container, publish(8080)).configuration, container)
        wait_until(lambda: any("->" in line for line in _lines_about(lock)), "the ADD waits")
        os.kill(waiting.pid, 14)  # SIGALRM: its deadline, a minute early
        with pytest.raises(PluginError, match=rf"flock \(process {holder.pid}\) has held") as caught:
            plugin.finish(waiting)
    finally:
        os.killpg(holder.pid, 9)
        holder.wait()
    assert caught.value.code == NO_LOCK
    plugin.add(container, publish(8080)).check()


def _lines_about(lock: Path) -> list[str]:
    if not lock.exists():
        return []
    inode = f":{lock.stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]


class Runtime(RuleBasedStateMachine):
    """Containers with colliding ports: the answer of each call, and the state after it."""

    plugin: Plugin
    containers: list[Container]

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[int, int] = {}  # by container
        self.is_flushed = False
        self.is_unnoted = (
            False  # the call that made the table was killed before it had noted how: the next ADD makes it again
        )

    numbers = st.integers(0, 2)
    ports = st.integers(8100, 8102)

    def _attachment(self, number: int, port: int) -> Attachment:
        return self.plugin.attachment(self.containers[number], publish(port))

    @rule(number=numbers, port=ports)
    def add(self, number: int, port: int) -> None:
        is_taken = any(held == port and holder != number for holder, held in self.published.items())
        if is_taken:
            with pytest.raises(PluginError) as caught:
                self._attachment(number, port).add()
            assert caught.value.code == 100
        else:
            self._attachment(number, port).add().check()
            self.published[number] = port
        self.is_flushed = self.is_unnoted = False  # a refused ADD repairs too
        self._compare()

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        self._attachment(number, 8100).delete()
        self.published.pop(number, None)
        self._compare()

    @rule(number=numbers, port=ports, after_s=st.floats(0, 0.15))
    def is_killed(self, number: int, port: int, after_s: float) -> None:
        """An ADD is killed, and the runtime gives up."""
        attachment = self._attachment(number, port)
        process = self.plugin.start("ADD", attachment.configuration, attachment.container)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            self.is_unnoted = True
        process.communicate()
        self.delete(number)

    @rule(kept=st.sets(numbers))
    def collect_garbage(self, kept: set[int]) -> None:
        valid = [{"containerID": self.containers[number].id, "ifname": "eth0"} for number in kept]
        self.plugin.gc({"cni.dev/valid-attachments": valid})
        self.published = {number: port for number, port in self.published.items() if number in kept}
        self._compare()

    @precondition(lambda self: not self.is_flushed)
    @rule()
    def is_flushed_by_others(self) -> None:
        self.plugin.host.run("nft", "flush ruleset")
        self.is_flushed = True

    @rule()
    def reconcile(self) -> None:
        if (self.plugin.state_directory / "lock").exists():
            assert self.plugin.operate("reconcile").returncode == 0
            self.is_flushed = self.is_unnoted = False
            self._compare()

    def _compare(self) -> None:
        recorded = json.loads(self.plugin.operate("list", "--json").stdout)
        held = {record["containerId"]: record["portMappings"][0]["hostPort"] for record in recorded}
        assert held == {self.containers[number].id: port for number, port in self.published.items()}
        if not self.is_flushed:
            found = [*disagreements(self.plugin), *strangers(self.plugin), *remains(self.plugin)]
            assert [one for one in found if not (self.is_unnoted and one.startswith("reconcile would rebuild"))] == []

    def teardown(self) -> None:
        for number in range(len(self.containers)):
            self.delete(number)


def test_a_model_predicts_any_sequence_of_calls(host: Host, plugin: Plugin) -> None:
    class OnThisHost(Runtime):
        pass

    OnThisHost.plugin = plugin
    OnThisHost.containers = [host.container() for _ in range(3)]
    run_state_machine_as_test(
        OnThisHost,
        settings=settings(max_examples=6, stateful_step_count=12, deadline=None, print_blob=True),
    )
