"""Run the plugin as a runtime does: environment, configuration on stdin, result on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from .topology import Container, Host


class PluginError(Exception):
    """A CNI error object that the plugin returned."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer))
        self.code: int = answer["code"]
        self.message: str = answer["msg"]
        self.details: str = answer.get("details", "")


def publish(host_port: int, container_port: int = 80, **more: Any) -> dict[str, Any]:
    """Return an entry of portMappings."""
    return {"hostPort": host_port, "containerPort": container_port, **more}


@dataclass
class Attachment:
    """An attachment as a runtime keeps it, to call CHECK and DEL with the same arguments."""

    plugin: Plugin
    container: Container
    configuration: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The comment on its elements."""
        return f"{self.configuration['name']}/{self.container.id}/{self.container.interface}"

    def add(self) -> Attachment:
        self.result = self.plugin.call("ADD", self.configuration, self.container)
        return self

    def check(self) -> None:
        self.plugin.call("CHECK", self.configuration, self.container)

    def delete(self) -> None:
        self.plugin.call("DEL", self.configuration, self.container)

    def delete_again_like_containerd(self) -> None:
        """Call DEL without a namespace and without prevResult."""
        bare = {key: value for key, value in self.configuration.items() if key != "prevResult"}
        self.plugin.call("DEL", bare, self.container, CNI_NETNS="")


class Plugin:
    """The plugin in the host's namespace, with its own state directory."""

    def __init__(self, host: Host, state_directory: Path, programs: Path | None = None) -> None:
        """Set up the plugin. `programs` goes first in PATH: the iptables variant to use as the backend, if any."""
        self.host = host
        self.programs = programs
        self.state_directory = state_directory
        binary = os.environ.get("QUANTUM_NAT_PLUGIN")
        self.command = [binary] if binary else [sys.executable, "-I", "-m", "cni_quantum_nat"]

    def configuration(self, network: str = "net", **keys: Any) -> dict[str, Any]:
        base = {"cniVersion": "1.1.0", "name": network, "type": "quantum-nat", "stateDir": str(self.state_directory)}
        if self.programs is not None:
            base["backend"] = "iptables"
        return {**base, **keys}

    def add(self, container: Container, *ports: dict[str, Any], network: str = "net", **keys: Any) -> Attachment:
        """Attach a container with the given port mappings and configuration keys."""
        return self.attachment(container, *ports, network=network, **keys).add()

    def attachment(self, container: Container, *ports: dict[str, Any], network: str = "net", **keys: Any) -> Attachment:
        """Prepare an attachment without calling the plugin."""
        configuration = self.configuration(network, prevResult=container.previous_result(), **keys)
        if ports:
            configuration["runtimeConfig"] = {"portMappings": list(ports)}
        return Attachment(self, container, configuration)

    def gc(self, keys: dict[str, Any] | None = None) -> None:
        """Call GC; `keys` are added to the configuration."""
        self.call("GC", self.configuration() | (keys or {}))

    def status(self, *before: str) -> None:
        """Call STATUS; `before` is a command that starts the plugin, such as setpriv(1)."""
        self.call("STATUS", self.configuration(), before=before)

    def call(
        self,
        command: str,
        configuration: dict[str, Any],
        container: Container | None = None,
        *,
        before: tuple[str, ...] = (),
        **environment: str,
    ) -> dict[str, Any]:
        """Call the plugin, and return its result; raise PluginError if it fails."""
        process = self.start(command, configuration, container, before=before, **environment)
        return self.finish(process)

    def start(
        self,
        command: str,
        configuration: dict[str, Any],
        container: Container | None = None,
        *,
        before: tuple[str, ...] = (),
        **environment: str,
    ) -> subprocess.Popen[str]:
        """Start a call; `finish` waits for it."""
        variables = {**self.environ, "CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
        if container is not None:
            variables["CNI_CONTAINERID"] = container.id
            variables["CNI_NETNS"] = str(container.path)
            variables["CNI_IFNAME"] = container.interface
        process = self._start([*before, *self.command], variables | environment)
        assert process.stdin is not None
        process.stdin.write(json.dumps(configuration))
        process.stdin.close()
        process.stdin = None
        return process

    def _start(self, command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
        line = ["nsenter", f"--net={self.host.path}", "--", *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env=variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def start_operation(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start an operator's command; `before` is a command that starts it."""
        return self._start([*before, *self.command, *self._options, *arguments], self.environ)

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an operator's command on the host."""
        return self.operate_as([*self.command, *self._options, *arguments])

    def operate_as(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run any command on the host."""
        line = ["nsenter", f"--net={self.host.path}", "--", *command]
        return subprocess.run(line, env=self.environ, capture_output=True, text=True, check=False, timeout=90)

    def operator_line(self, *arguments: str) -> list[str]:
        """Return the command line that runs an operator's command on the host."""
        return ["nsenter", f"--net={self.host.path}", "--", *self.command, *self._options, *arguments]

    @property
    def _options(self) -> list[str]:
        return ["--state-dir", str(self.state_directory)]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of every process of the plugin."""
        path = f"{self.programs}:{os.environ['PATH']}" if self.programs else os.environ["PATH"]
        return {"PATH": path}

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        output, complaints = process.communicate(timeout=90)
        answer: dict[str, Any] = json.loads(output) if output.strip() else {}
        if process.returncode:
            assert "code" in answer, f"no error object: {output}{complaints}"
            raise PluginError(answer)
        return answer
