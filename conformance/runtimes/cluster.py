"""A runtime, its containers, and their clients."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

from tests.kernel.peer import Answer, Refused, TimedOut, ask
from tests.kernel.topology import wait_until

from .runtime import FRONT, Network, Port, Running, Runtime

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_numbers = count(1)
PATIENCE_S = 10
"""How long to wait for a server to start, and for a runtime's background work."""


class Cluster:
    """A runtime on its host, with a client outside."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.host = runtime.host
        self.client = runtime.host.client
        self._containers: dict[str, Running] = {}

    def run(self, *ports: Port, networks: tuple[Network, ...] = (FRONT,)) -> Running:
        """Run a container with a new name, and wait until its server answers."""
        container = self.runtime.run(f"c{next(_numbers)}", *ports, networks=networks)
        self._containers[container.name] = container
        address = container.addresses[networks[0].name][4]
        wait_until(lambda: self.answer(self.host.path, address, 80) is not None, "its server listens", PATIENCE_S)
        return container

    def run_all(self, mappings: Iterable[Port]) -> list[Running]:
        """Run a container for each port, in parallel."""
        with ThreadPoolExecutor(50) as pool:
            return list(pool.map(self.run, mappings))

    def restart(self, container: Running) -> Running:
        self._containers[container.name] = restarted = self.runtime.restart(container)
        return restarted

    def remove(self, container: Running) -> None:
        self.runtime.remove(self._containers.pop(container.name))

    def remove_at_once(self, containers: Iterable[Running]) -> None:
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(self.remove, containers))

    def forget(self, container: Running) -> None:
        """Take note that somebody else removed it."""
        del self._containers[container.name]

    def wait_for_listener(self, port: int) -> None:
        """Wait until a process of the host listens on a TCP port."""
        shown = ("ss", "--no-header", "--listening", "--tcp", "--numeric", f"sport = :{port}")
        wait_until(lambda: self.host.run(*shown) != "", f"somebody listens on port {port}", PATIENCE_S)

    def remove_all(self) -> None:
        for container in list(self._containers.values()):
            self.remove(container)

    def kill_hard(self, container: Running) -> None:
        del self._containers[container.name]
        self.runtime.kill_hard(container)

    def answer(self, netns: Path, address: str, port: int, protocol: str = "tcp") -> Answer | None:
        """Send a request from a namespace; return None if there is no reply, or a refusal."""
        try:
            return ask(netns, protocol, address, port, timeout=1)
        except (Refused, TimedOut, OSError):
            return None

    def serves(self, container: Running, netns: Path, address: str, port: int, protocol: str = "tcp") -> Answer:
        """Return this container's answer; fail if there is none in time."""
        wait_until(
            lambda: self.answer(netns, address, port, protocol) is not None,
            f"{address} port {port}/{protocol} answers",
            PATIENCE_S,
        )
        found = self.answer(netns, address, port, protocol)
        assert found is not None
        assert found.server == container.name
        return found

    def operate(self, *arguments: str) -> str:
        """Run an operator's command with this runtime's plugin."""
        plugin = self.runtime.cni_bin / "quantum-nat"
        return self.runtime.command(str(plugin), f"--state-dir={self.runtime.state_directory}", *arguments)

    def ports_of(self, container: Running) -> set[tuple[str, int]]:
        """Return protocol and host port of each port that the plugin has published for a container."""
        records: list[dict[str, Any]] = json.loads(self.operate("list", "--json"))
        mappings = [record["portMappings"] for record in records if record["containerId"] == container.id]
        assert mappings, "it must be on record"
        return {(port["protocol"], port["hostPort"]) for listed in mappings for port in listed}

    def left_over(self) -> list[str]:
        """Return the plugin's elements and records; there must be none without containers."""
        records = [str(path) for path in self.runtime.state_directory.glob("attachments/**/*") if path.is_file()]
        return [*self.host.installed(), *records]

    def wait_until_nothing_is_left(self) -> None:
        wait_until(lambda: not self.left_over(), "elements and records are removed", PATIENCE_S)
