"""Pods through the CRI, as a kubelet requests them; crictl v1.36.0 is the client."""

from __future__ import annotations

import json
import signal
import subprocess
from abc import abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kernel.topology import wait_until

from .daemon import Daemon
from .images import SERVER, write_images
from .mounts import unmount_below
from .runtime import FRONT, SERVED_PORTS, Network, NotRun, Port, Running, Runtime, addresses_in, shell

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.topology import Host

_CRICTL = ("crictl", "sigs.k8s.io/cri-tools/cmd/crictl", "v1.36.0")
_PROTOCOLS = {"tcp": 0, "udp": 1, "sctp": 2}
# Each container has its own PID namespace: CRI-O makes none for the whole pod without an infra container.
_SECURITY_CONTEXT = {"namespace_options": {"pid": 1}}
_WANTED = {"RuntimeReady", "NetworkReady"}
_REMOVAL_S = 30
_TIMEOUT = "60s"  # fifty pods that start at once take their time


class CriRuntime(Runtime):
    """A daemon that runs pods. Each pod has one container, with the server, and a cgroup, as a kubelet makes it."""

    lacks: ClassVar[dict[str, str]] = {
        "several networks": "the daemon's configuration, not the pod's, says which networks a pod has",
        "reload": "it has no such command; see the row of quantum-nat reconcile",
    }

    @classmethod
    def install(cls) -> None:
        shell("go_program", *_CRICTL)
        shell("apt_install", "runc")
        shell("container_root")

    def __init__(self, directory: Path, plugin: Path, host: Host) -> None:
        super().__init__(directory, plugin, host)
        self.socket = directory / "cri.sock"
        self.log = directory / "daemon.log"
        self._client = shell("go_program", *_CRICTL)
        self._daemon = Daemon(self.log)
        self._attempts: dict[str, int] = {}

    @abstractmethod
    def command_line(self) -> list[str]:
        """Return the command line of the daemon."""

    @abstractmethod
    def configure(self) -> None:
        """Write the daemon's configuration."""

    @abstractmethod
    def import_image(self, name: str, archive: Path) -> None:
        """Import an image into the daemon, instead of pulling it from a registry."""

    def start(self) -> None:
        self.configure()
        self.start_daemon()
        self._archives = write_images(Path(shell("container_root")), self.directory)
        self.import_images()

    def stop(self) -> None:
        with ExitStack() as undo:
            undo.callback(self.cgroup.remove)
            undo.callback(unmount_below, self.directory)
            undo.callback(self.cgroup.kill)
            undo.callback(self.end_daemon)
            if self._daemon.runs:
                self.crictl("rmp", "--all", "--force")

    def import_images(self) -> None:
        for name, archive in self._archives.items():
            self.import_image(name, archive)

    def start_daemon(self) -> None:
        self.launch(lambda: self.why_not_ready() == "")

    def launch(self, answers: Callable[[], bool]) -> None:
        """Start the daemon, and wait until `answers` is true."""
        line = ["nsenter", f"--net={self.host.path}", "--", *self.command_line()]
        self._daemon.start(self.cgroup.entering("daemon", *line), answers)

    def end_daemon(self, by: signal.Signals = signal.SIGTERM) -> None:
        self._daemon.end(by)

    def run(self, name: str, *ports: Port, networks: tuple[Network, ...] = (FRONT,)) -> Running:
        self._attempts[name] = self._attempts.get(name, -1) + 1
        pod = self._write(f"{name}-pod.json", self._pod(name, ports))
        try:
            pod_id = self.crictl("runp", f"--cancel-timeout={_TIMEOUT}", pod).strip()
            server = self._write(f"{name}-server.json", self._server(name))
            self.crictl("start", self.crictl("create", pod_id, server, pod).strip())
        except NotRun:
            self._remove_listed(name)
            raise
        netns = self._netns(pod_id)
        return Running(pod_id, name, netns, ports, networks, addresses_in(netns))

    def remove(self, container: Running) -> None:
        self.crictl("stopp", container.id)
        self.crictl("rmp", container.id)
        self.cgroup.remove(self.group(container.name))

    def restart(self, container: Running) -> Running:
        """Do what a kubelet does: start a new pod, and remove the old one later."""
        self.crictl("stopp", container.id)
        started = self.run(container.name, *container.ports, networks=container.networks)
        self.crictl("rmp", container.id)
        return started

    def kill_hard(self, container: Running) -> None:
        self.cgroup.kill(self.group(container.name))
        subprocess.run(["umount", "--lazy", container.netns], check=True)  # CRI-O holds it open
        container.netns.unlink()

    def clean_up(self, container: Running) -> None:
        self._remove_listed(container.name)

    def crictl(self, *arguments: str) -> str:
        endpoints = [f"--{kind}-endpoint=unix://{self.socket}" for kind in ("runtime", "image")]
        return self.command(self._client, *endpoints, f"--timeout={_TIMEOUT}", *arguments)

    def why_not_ready(self) -> str:
        """Return the daemon's reason why it or its network is not ready; "" if both are."""
        if not self.socket.exists():
            return "no socket"
        try:
            conditions = json.loads(self.crictl("info"))["status"]["conditions"]
        except NotRun as error:
            return str(error)
        return " ".join(c["message"] for c in conditions if c["type"] in _WANTED and not c["status"])

    def _remove_listed(self, name: str) -> None:
        """Do what a kubelet does with unwanted pods, dead or never started: remove those that are listed."""
        for pod_id in self.crictl("pods", "--quiet", f"--name=^{name}$").split():
            self._remove_in_the_end(pod_id)
        self.cgroup.remove(self.group(name))

    def _remove_in_the_end(self, pod_id: str) -> None:
        """Retry as a kubelet does: containerd refuses until it notices that the container has died."""
        failures: list[str] = []

        def attempt() -> bool:
            try:
                self.crictl("stopp", pod_id)
                self.crictl("rmp", pod_id)
            except NotRun as error:
                failures.append(str(error))
                return False
            return True

        try:
            wait_until(attempt, "the runtime removes the pod", _REMOVAL_S)
        except AssertionError as error:
            raise NotRun(failures[-1]) from error

    def _netns(self, pod_id: str) -> Path:
        inspected = json.loads(self.crictl("inspectp", pod_id))
        namespaces = inspected["info"]["runtimeSpec"]["linux"]["namespaces"]
        return next(Path(namespace["path"]) for namespace in namespaces if namespace["type"] == "network")

    def group(self, name: str) -> str:
        """Return the cgroup of a pod, below the runtime's own."""
        return f"pods/{name}"

    def _pod(self, name: str, ports: tuple[Port, ...]) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "uid": name, "namespace": "default", "attempt": self._attempts[name]},
            "log_directory": str(self.directory),
            "port_mappings": [_mapping(port) for port in ports],
            "linux": {
                "cgroup_parent": f"/{self.cgroup.name}/{self.group(name)}",
                "security_context": _SECURITY_CONTEXT,
            },
        }

    def _server(self, name: str) -> dict[str, Any]:
        return {
            "metadata": {"name": "server", "attempt": self._attempts[name]},
            "image": {"image": SERVER},
            "args": [name, *map(str, SERVED_PORTS)],
            "log_path": f"{name}.log",
            "linux": {"security_context": _SECURITY_CONTEXT},
        }

    def _write(self, name: str, content: dict[str, Any]) -> str:
        path = self.directory / name
        path.write_text(json.dumps(content))
        return str(path)


def _mapping(port: Port) -> dict[str, str | int]:
    return {
        "protocol": _PROTOCOLS[port.protocol],
        "container_port": port.container_port,
        "host_port": port.host_port,
        "host_ip": port.host_ip,
    }
