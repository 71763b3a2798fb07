"""`quantum-nat metrics` with promtool, node_exporter's textfile directory and a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .peer import inside
from .plugin import Plugin, PluginError, publish
from .test_metrics import Exposition, command, run_metrics, scrape
from .topology import HOST, Container, Host, Namespace, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# tests/run puts them there: Debian 13 has promtool in a package of its own.
PROGRAMS = [ROOT / ".cache" / "debian" / package / "usr" / "bin" for package in ("prometheus", "promtool")]
SCRAPE_TIMEOUT_S = 30


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], input=stdin, capture_output=True, text=True, check=False)


def program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join(map(str, PROGRAMS)))
    assert found, f"tests/run puts Debian's {name} into one of {PROGRAMS}"
    return found


def have_some_of_everything(
    plugin: Plugin, client: Namespace, container: Container, other_container: Container
) -> None:
    """Make traffic and calls so that every metric has a sample."""
    plugin.add(container, publish(8080))
    with pytest.raises(PluginError):
        plugin.add(other_container, publish(8080))
    client.ask(HOST[4], 8080)


@contextmanager
def exporter(plugin: Plugin, address: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve metrics on a port chosen by the kernel; yield the process and the port."""
    process = subprocess.Popen(command(plugin, "--listen", address), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.fullmatch(r"quantum-nat: serving http://.*:(\d+)/metrics\n", said)
        assert found, said
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def get(
    namespace: Namespace, address: str, port: int, path: str, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Send an HTTP request; return status and body."""
    with inside(namespace.path):
        connection = HTTPConnection(address, port, timeout=20)
        connection.connect()
    with closing(connection):
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.frozen
@pytest.mark.behaviour
def test_promtool_accepts_the_metrics(
    plugin: Plugin, client: Namespace, container: Container, other_container: Container
) -> None:
    have_some_of_everything(plugin, client, container, other_container)
    exposition = run_metrics(plugin).stdout
    checked = promtool("check", "metrics", stdin=exposition)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    wrong = promtool("check", "metrics", stdin=exposition.replace("nat_rules_total untyped", "nat_rules_total gauge"))
    assert "nat_rules_total" in wrong.stdout + wrong.stderr


@pytest.mark.frozen
def test_a_text_file_is_written_atomically_and_readable_by_all(
    plugin: Plugin, container: Container, tmp_path: Path
) -> None:
    plugin.add(container, publish(8080))
    directory = tmp_path / "textfiles"
    directory.mkdir()
    path = directory / "quantum-nat.prom"
    path.write_text("old\n")
    with path.open() as reader:  # a reader with the old file open still reads the old content
        line = ["sh", "-c", 'umask 077; exec "$0" "$@"', *command(plugin, "--textfile", str(path))]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert reader.read() == "old\n"
    assert Exposition(path.read_text()).sum("nat_port_mappings_total") == 1
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(directory.iterdir()) == [path]


def test_a_text_file_that_cannot_be_written_is_an_error(container: Container, plugin: Plugin, tmp_path: Path) -> None:
    plugin.add(container)
    done = run_metrics(plugin, "--textfile", str(tmp_path / "nowhere" / "x.prom"))
    assert done.returncode == 1
    assert done.stderr == f"quantum-nat: cannot write {tmp_path}/nowhere/x.prom: No such file or directory\n"


@pytest.mark.frozen
@pytest.mark.parametrize(("address", "host_address"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_the_served_metrics_match_the_printed_ones(
    plugin: Plugin, host: Host, container: Container, address: str, host_address: str
) -> None:
    plugin.add(container, publish(8080))
    with exporter(plugin, address) as (_, port):
        status, served = get(host, host_address, port, "/metrics")
        assert status == 200
        assert scrape(plugin).families.keys() <= Exposition(served).families.keys()
        assert Exposition(served).has("process_resident_memory_bytes")
        status, text = get(host, host_address, port, "/")
        assert status == 200
        assert "the metrics are at /metrics" in text
        assert get(host, host_address, port, "/favicon.ico")[0] == 404


@pytest.mark.frozen
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_status_0(plugin: Plugin, host: Host, number: signal.Signals) -> None:
    with exporter(plugin) as (process, port):
        assert get(host, "127.0.0.1", port, "/metrics")[0] == 200
        process.send_signal(number)
        _, complaints = process.communicate(timeout=20)
        assert (process.returncode, complaints) == (0, "")


def test_a_silent_client_does_not_block_others(plugin: Plugin, host: Host) -> None:
    with exporter(plugin) as (_, port):
        with inside(host.path):
            silent = socket.create_connection(("127.0.0.1", port))
        with silent:
            assert get(host, "127.0.0.1", port, "/metrics")[0] == 200


def test_a_scrape_that_fails_is_an_error_without_a_traceback(plugin: Plugin, host: Host, container: Container) -> None:
    plugin.add(container)
    with exporter(plugin) as (process, port):
        moved = plugin.state_directory.rename(plugin.state_directory.with_name("moved"))
        plugin.state_directory.write_text("no directory")
        status, answer = get(host, "127.0.0.1", port, "/metrics")
        assert (status, "Traceback" in answer) == (500, False)
        assert str(plugin.state_directory) in answer
        plugin.state_directory.unlink()
        moved.rename(plugin.state_directory)
        assert get(host, "127.0.0.1", port, "/metrics")[0] == 200
        process.terminate()
        assert "Traceback" not in process.communicate(timeout=20)[1]


@pytest.mark.frozen
def test_an_address_in_use_is_an_error(plugin: Plugin) -> None:
    with exporter(plugin) as (_, port):
        done = run_metrics(plugin, "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"quantum-nat: cannot listen on 127.0.0.1 port {port}: Address already in use\n")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_address_of_either_family_may_have_brackets(plugin: Plugin, address: str) -> None:
    """As the DaemonSet writes it, which does not know the node's (defect 71)."""
    with pytest.raises(subprocess.TimeoutExpired) as running:
        subprocess.run(command(plugin, "--listen", f"[{address}]:0"), capture_output=True, timeout=5, check=False)
    assert b"serving http://" in (running.value.stderr or b"")


@pytest.mark.parametrize(
    "address", ["9477", "::1:9477", "[::1]", "127.0.0.1:http", "127.0.0.1:65536", ":1", "[::1:1", "127.0.0.1]:1"]
)
def test_an_invalid_address_is_refused(plugin: Plugin, address: str) -> None:
    done = run_metrics(plugin, "--listen", address)
    assert done.returncode == 2
    assert f"{address!r} is not ADDRESS:PORT" in done.stderr


class Prometheus:
    """A Prometheus that scrapes one exporter every second, in the host's namespace."""

    def __init__(self, host: Host, port: int) -> None:
        self._host, self._port = host, port

    def query(self, expression: str) -> list[float]:
        """Return the values of an expression; none before the first scrape."""
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        answer: dict[str, Any] = json.loads(get(self._host, "127.0.0.1", self._port, path)[1])
        return [float(result["value"][1]) for result in answer["data"]["result"]]

    def is_ready(self) -> bool:
        try:
            return get(self._host, "127.0.0.1", self._port, "/-/ready")[0] == 200
        except OSError:
            return False

    def wait_for(self, expression: str, value: float) -> None:
        wait_until(lambda: self.query(expression) == [value], f"{expression} is {value}", SCRAPE_TIMEOUT_S)


@contextmanager
def prometheus(host: Host, directory: Path, scraped_port: int) -> Iterator[Prometheus]:
    """Run Debian's Prometheus with the alert rules of the documentation."""
    directory.mkdir()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DOCS / "alerts.yml")],
        "scrape_configs": [{"job_name": "quantum-nat", "static_configs": [{"targets": [f"127.0.0.1:{scraped_port}"]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    line = [
        "nsenter",
        f"--net={host.path}",
        "--",
        program("prometheus"),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        "--web.listen-address=127.0.0.1:9090",
    ]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        running = Prometheus(host, 9090)
        wait_until(running.is_ready, f"Prometheus is ready, see {directory}/log", SCRAPE_TIMEOUT_S)
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.mark.frozen
def test_a_real_prometheus_scrapes_the_right_values(
    plugin: Plugin, host: Host, client: Namespace, container: Container, other_container: Container, tmp_path: Path
) -> None:
    have_some_of_everything(plugin, client, container, other_container)
    with exporter(plugin) as (_, port), prometheus(host, tmp_path / "prometheus", port) as running:
        running.wait_for("up", 1)
        running.wait_for('nat_connections_total{type="dnat",network="net"}', 1)
        running.wait_for("nat_port_mappings_total", 1)
        running.wait_for('sum(nat_operation_errors_total{code="100",operation="ADD"})', 1)
        running.wait_for('nat_operation_duration_seconds_count{operation="ADD"}', 2)
        client.ask(HOST[4], 8080)
        running.wait_for('nat_connections_total{type="dnat"}', 2)
        (plugin.state_directory / "attachments" / container.id / "net:eth0.json").write_text("{")
        running.wait_for('count(ALERTS{alertname="QuantumNatRecordDamaged"})', 1)


def test_prometheus_accepts_the_alert_rules() -> None:
    checked = promtool("check", "rules", str(DOCS / "alerts.yml"))
    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


METRIC = re.compile(r"\b(?:nat|process)_[a-z_]+\b")


@pytest.fixture
def exposed(plugin: Plugin, client: Namespace, container: Container, other_container: Container) -> set[str]:
    """The names of all possible samples."""
    have_some_of_everything(plugin, client, container, other_container)
    return {sample.name for sample in scrape(plugin).samples}


def dashboard_queries() -> list[str]:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    panels = [panel for row in dashboard["panels"] for panel in (row, *row.get("panels", []))]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return queries + [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]


def alert_queries() -> list[str]:
    return [line for line in (DOCS / "alerts.yml").read_text().splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("queries", [dashboard_queries, alert_queries])
def test_every_queried_metric_exists(exposed: set[str], queries: Callable[[], list[str]]) -> None:
    asked = {name for query in queries() for name in METRIC.findall(query)}
    assert len(asked) >= 5
    assert asked <= exposed


def test_every_metric_is_documented(exposed: set[str]) -> None:
    documented = (DOCS / "metrics.md").read_text()
    names = {re.sub(r"_(bucket|count|sum)$", "", name) if "duration" in name else name for name in exposed}
    assert not [name for name in names if f"`{name}`" not in documented]
