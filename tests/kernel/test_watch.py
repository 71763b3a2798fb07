"""`quantum-nat reconcile --watch`: flushed rules are repaired at once, and connections continue."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

import pytest

from .conftest import programs_of
from .peer import Refused, TimedOut, open_socket
from .plugin import Plugin, publish
from .test_reconcile import flush, nft
from .topology import CLIENT, HOST, Container, Host, Namespace, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack


class Watch:
    """The process, after its first comparison."""

    def __init__(self, plugin: Plugin, directory: Path, *arguments: str, before: tuple[str, ...] = ()) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(directory / "ready"))
            notify.settimeout(20)
            # Appending: reading moves the file offset that the process shares.
            self._output = (directory / "watch").open("a+")
            self._errors = (directory / "watch-errors").open("a+")
            self.process = subprocess.Popen(
                [*before, *plugin.operator_line("reconcile", "--watch", "--json", *arguments)],
                env={**plugin.environ, "NOTIFY_SOCKET": str(directory / "ready")},
                stdout=self._output,
                stderr=self._errors,
            )
            try:
                assert notify.recv(64) == b"READY=1"
            except TimeoutError:
                self.process.kill()
                raise AssertionError(self.complaints()) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        self._output.close()
        self._errors.close()

    def repairs(self) -> list[dict[str, Any]]:
        """Return the logged repairs."""
        self._output.seek(0)
        return [entry for line in self._output if "differences" in (entry := json.loads(line))]

    def complaints(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def wait_for_repair(self, count: int = 1) -> None:
        wait_until(lambda: len(self.repairs()) >= count, f"{count} repairs; {self.complaints()}")


class Conversation:
    """A TCP connection with constant requests and replies. worst_s: the longest time until a reply."""

    def __init__(self, stack: ExitStack, client: Namespace, server: Namespace, address: str, port: int) -> None:
        family = 6 if ":" in address else 4
        listening = stack.enter_context(open_socket(server.path, "tcp", family))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("::" if family == 6 else "0.0.0.0", port))
        listening.listen()
        self._asking = stack.enter_context(open_socket(client.path, "tcp", family))
        self._asking.settimeout(5)
        self._asking.connect((address, 8080))
        self._answering = stack.enter_context(listening.accept()[0])
        self.answers, self.worst_s, self.failure = 0, 0.0, ""
        self._ends = False
        self._threads = [Thread(target=self._answer), Thread(target=self._ask)]
        for thread in self._threads:
            thread.start()
        stack.callback(self.end)

    def end(self) -> None:
        self._ends = True
        answer, ask = self._threads
        ask.join(10)
        # Both ends: over a broken connection, neither learns that the other has closed it.
        for side in (self._asking, self._answering):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        answer.join(10)
        assert not answer.is_alive()

    def _ask(self) -> None:
        try:
            while not self._ends:
                asked = time.monotonic()
                self._asking.sendall(b"?")
                assert self._asking.recv(1) == b"!", "the connection was closed"
                self.answers += 1
                self.worst_s = max(self.worst_s, time.monotonic() - asked)
        except (OSError, AssertionError) as error:
            self.failure = repr(error)

    def _answer(self) -> None:
        with suppress(OSError):
            while self._answering.recv(1):
                self._answering.sendall(b"!")


@pytest.fixture
def watch(plugin: Plugin, tmp_path: Path) -> Iterator[Watch]:
    with Watch(plugin, tmp_path) as running:
        yield running


def first_answer_s(client: Namespace, address: str, port: int) -> float:
    """Send requests until there is an answer, and return the time that took, in seconds."""
    started = time.monotonic()
    while True:
        try:
            client.ask(address, port, timeout=0.5)
        except (Refused, TimedOut):
            assert time.monotonic() < started + 10, "the rules were not repaired"
            continue
        return time.monotonic() - started


@pytest.mark.frozen
@pytest.mark.parametrize("family", [4, 6])
def test_a_flush_under_traffic_breaks_no_connection_and_new_ones_are_translated(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, tmp_path: Path, family: int
) -> None:
    client.serve("outside", 80)
    plugin.add(container, publish(8080, 81), publish(8081))
    with Watch(plugin, tmp_path) as watch:
        talk = Conversation(stack, client, container, HOST[family], 81)
        for times in range(1, 4):
            flush(host)
            outage_s = first_answer_s(client, HOST[family], 8081)
            watch.wait_for_repair(times)
            print(f"outage for new connections: {outage_s * 1000:.0f} ms")  # noqa: T201 - a figure for the reader
        assert container.ask(CLIENT[family], 80).source == HOST[family]
        before = talk.answers
        wait_until(lambda: talk.answers > before + 10 or bool(talk.failure), "the connection continues")
        talk.end()
        assert talk.failure == ""


@pytest.mark.parametrize("family", [4, 6])
def test_five_flushes_refuse_no_new_connection(
    host: Host, client: Namespace, container: Container, plugin: Plugin, tmp_path: Path, family: int
) -> None:
    plugin.add(container, publish(8080))
    plugin.add(host.container(), publish(8081), conntrackTimeout=60, conditionsV4=["ip", "saddr", "!=", "192.0.2.1"])
    with Watch(plugin, tmp_path) as watch:
        for times in range(1, 6):
            flush(host)
            while len(watch.repairs()) < times:
                assert client.ask(HOST[family], 8080).server == "web"
        released = plugin.add(host.container(), publish(8082))
        released.delete()
        wait_until(
            lambda: "8082" not in host.run("nft", "list", "table", "inet", "quantum_cover"), "it is released there"
        )
    assert "quantum_cover" not in host.run("nft", "list", "tables")


def test_without_the_watch_the_same_flush_breaks_the_connection(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """Shows that the test above can fail."""
    plugin.add(container, publish(8080, 81))
    talk = Conversation(stack, client, container, HOST[4], 81)
    flush(host)
    wait_until(lambda: bool(talk.failure), "the connection breaks")


@pytest.mark.parametrize(
    "damage",
    [
        "flush table inet quantum",
        "flush chain inet quantum host_ports",
        "flush map inet quantum endpoints4",
        "delete element inet quantum endpoints4 { tcp . 8080 }",
        "insert rule inet quantum prerouting tcp dport 8080 accept",
    ],
)
def test_smaller_damage_is_repaired_too(
    host: Host, client: Namespace, container: Container, plugin: Plugin, watch: Watch, damage: str
) -> None:
    plugin.add(container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "web"
    nft(host, damage)
    watch.wait_for_repair()
    assert client.ask(HOST[4], 8080).server == "web"


def test_adds_and_dels_cause_no_repair(host: Host, plugin: Plugin, watch: Watch) -> None:
    for _ in range(3):
        container = host.container()
        attachment = plugin.add(container, publish(8080))
        attachment.add()
        attachment.delete()
    stays = plugin.add(host.container(), publish(8080))
    nft(host, "delete element inet quantum endpoints4 { tcp . 8080 }")
    watch.wait_for_repair()
    stays.check()
    assert [d["change"] for repair in watch.repairs() for d in repair["differences"]] == ["add"]


def test_iptables_rules_are_watched_too(host: Host, client: Namespace, container: Container, tmp_path: Path) -> None:
    host.backend = "iptables-nft"
    plugin = Plugin(host, tmp_path / "state", programs_of("iptables-nft", tmp_path / "programs"))
    plugin.add(container, publish(8080))
    with Watch(plugin, tmp_path) as watch:
        for times, damage in enumerate((("nft", "flush", "ruleset"), ("iptables-nft", "-t", "nat", "-F")), 1):
            host.run(*damage)
            watch.wait_for_repair(times)
            assert client.ask(HOST[4], 8080).server == "web"


def test_damage_without_a_notification_is_found_by_the_regular_comparison(
    host: Host, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.add(container, publish(8080))
    with Watch(plugin, tmp_path, "--interval", "0.2") as watch:
        nft(host, "add element inet quantum masqueraded4 { 10.99.0.1 }")
        watch.wait_for_repair()
        assert "10.99.0.1" not in host.ruleset()


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "often"])
@pytest.mark.parametrize("command", [("reconcile", "--watch"), ("gc",)])
def test_an_interval_that_is_none_is_refused(plugin: Plugin, command: tuple[str, ...], interval: str) -> None:
    """At 1.0.0 (defect 51) 0 took a quarter of a core."""
    done = plugin.operate(*command, f"--interval={interval}")
    assert done.returncode == 2
    assert f"{interval!r} is not a number of seconds above 0" in done.stderr


@pytest.mark.frozen
def test_the_service_has_sufficient_privileges(
    host: Host, client: Namespace, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    """See packaging/systemd: two capabilities; only nsenter, for the test's host namespace, needs one more."""
    bounds = [f"+{c.removeprefix('CAP_').lower()}" for c in service_settings()["CapabilityBoundingSet"].split()]
    confined = ("setpriv", "--no-new-privs", "--bounding-set", ",".join(("-all", "+sys_admin", *bounds)))
    plugin.add(container, publish(8080))
    with Watch(plugin, tmp_path, before=confined) as watch:
        flush(host)
        watch.wait_for_repair()
        assert client.ask(HOST[4], 8080).server == "web"


def service_settings() -> dict[str, str]:
    """Read the settings of the service."""
    unit = Path(__file__).parents[2] / "packaging" / "systemd" / "quantum-nat-reconcile.service"
    return dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0] != "#")


def test_it_waits_if_nothing_was_ever_added_and_stops_on_a_signal(
    host: Host, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    with Watch(plugin, tmp_path) as watch:
        plugin.add(container, publish(8080))
        host.run("nft", "flush", "ruleset")
        watch.wait_for_repair()
        watch.process.send_signal(signal.SIGINT)
        assert watch.process.wait(10) == 0
        assert watch.complaints() == ""
    assert "quantum_cover" not in host.run("nft", "list", "tables")


def test_it_waits_for_the_lock(
    host: Host, client: Namespace, container: Container, plugin: Plugin, watch: Watch
) -> None:
    plugin.add(container, publish(8080))
    holder = subprocess.Popen(
        ["flock", plugin.state_directory / "lock", "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        flush(host)
        assert client.ask(HOST[4], 8080).server == "web", "the cover translates for as long as the lock is held"
        assert watch.repairs() == []
        holder.stdin.write(b"\n")
    watch.wait_for_repair()
    assert client.ask(HOST[4], 8080).server == "web"
