"""podman 4.3 from Debian 12, with its CNI backend. There is no daemon: each command is its own process."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tests.kernel.topology import wait_until

from .mounts import unmount_below
from .processes import runs
from .runtime import FRONT, HANDS_PORTS_ON, SERVED_PORTS, Network, NotRun, Port, Running, Runtime, addresses_in, shell

if TYPE_CHECKING:
    from typing import Any

_CONFIGURATION = """[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{cni_bin}"]
network_config_dir = "{cni_conf}"
default_network = "{network}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class Podman(Runtime):
    """podman, as root, with private directories."""

    name = "podman"
    conflist_to_copy = "podman"
    cni_version = "0.4.0"  # the newest that podman 4.3 supports
    lacks: ClassVar[dict[str, str]] = {
        "daemon": "it has no daemon",
        "verbs": "it calls only ADD and DEL",
        "status": "it does not call STATUS",
        "own host ports": HANDS_PORTS_ON,
    }

    @classmethod
    def install(cls) -> None:
        shell("apt_install", "podman", "conmon", "runc")
        shell("container_root")

    def version(self) -> str:
        return self.command("podman", "--version").split()[-1]

    def start(self) -> None:
        self._configuration = self.directory / "containers.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(cni_bin=self.cni_bin, cni_conf=self.cni_conf, network=FRONT.name)
        )
        self._podman("import", shell("container_root"), "server")

    def stop(self) -> None:
        self._podman("rm", "--all", "--force", "--time", "0")
        unmount_below(self.directory)
        self.cgroup.remove()

    def run(self, name: str, *ports: Port, networks: tuple[Network, ...] = (FRONT,)) -> Running:
        options = [f"--publish={published(port)}" for port in ports]
        options += [f"--network={network.name}" for network in networks]
        command = ("server", name, *map(str, SERVED_PORTS))
        try:
            self._podman(
                "run",
                "--detach",
                f"--name={name}",
                f"--cgroup-parent=/{self.cgroup.name}",
                *options,
                "server",
                *command,
            )
        except NotRun:
            self._podman("rm", "--force", "--ignore", "--time", "0", name)
            raise
        return self._running(name, ports, networks)

    def remove(self, container: Running) -> None:
        self._podman("stop", "--time", "0", container.name)
        self._podman("rm", container.name)

    def restart(self, container: Running) -> Running:
        self._podman("restart", "--time", "0", container.name)
        return self._running(container.name, container.ports, container.networks)

    def kill_hard(self, container: Running) -> None:
        """Kill conmon first: it makes podman clean up when a container ends."""
        state = self._inspect(container.name)["State"]
        for process in (state["ConmonPid"], state["Pid"]):
            os.kill(process, signal.SIGKILL)
            wait_until(lambda process=process: not runs(process), f"process {process} ends")  # type: ignore[misc]

    def clean_up(self, container: Running) -> None:
        """Remove the container. At the first attempt, podman 4.3 notices that it is dead, and refuses; the second works."""
        with suppress(NotRun):
            self._podman("rm", "--force", "--time", "0", container.name)
        self._podman("rm", "--force", "--ignore", "--time", "0", container.name)

    def reload_network(self, container: Running) -> None:
        self._podman("network", "reload", container.name)

    def _running(self, name: str, ports: tuple[Port, ...], networks: tuple[Network, ...]) -> Running:
        found = self._inspect(name)
        netns = Path(found["NetworkSettings"]["SandboxKey"])
        return Running(found["Id"], name, netns, ports, networks, addresses_in(netns))

    def _inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._podman("inspect", "--type=container", name))[0]
        return found

    def _podman(self, *arguments: str) -> str:
        return self.command(
            "env",
            f"CONTAINERS_CONF={self._configuration}",
            "podman",
            f"--root={self.directory}/root",
            f"--runroot={self.directory}/runroot",
            f"--tmpdir={self.directory}/tmp",
            "--storage-driver=vfs",
            f"--network-config-dir={self.cni_conf}",
            *arguments,
        )


def published(port: Port) -> str:
    """Write a port as --publish takes it."""
    host_ip = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    host = f"{host_ip}:{port.host_port}" if host_ip else str(port.host_port)
    return f"{host}:{port.container_port}/{port.protocol}"
