"""nerdctl 1.7.7, the newest that Go's module proxy has, with the containerd of Debian 12."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kernel.topology import wait_until

from .containerd import Containerd16
from .images import SERVER
from .mounts import unmount_below
from .podman import published
from .processes import parent_of, runs
from .runtime import CACHE, FRONT, HANDS_PORTS_ON, SERVED_PORTS, Network, NotRun, Port, Running, addresses_in, shell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.topology import Host

_NERDCTL = ("nerdctl", "github.com/containerd/nerdctl/cmd/nerdctl", "v1.7.7")
_FIREWALL = "firewall"  # a plugin: the network that nerdctl makes by itself names it
_NAMESPACE = "default"


class Nerdctl(Containerd16):
    """nerdctl, as root. It calls the plugin itself, from hooks of runc, and names the container NAMESPACE-ID there."""

    name = "nerdctl"
    lacks: ClassVar[dict[str, str]] = {
        "verbs": "it calls ADD and DEL alone",
        "status": "it does not call STATUS",
        "reload": "it has no command for it; see the row of quantum-nat reconcile",
        "own host ports": HANDS_PORTS_ON,
    }

    @classmethod
    def install(cls) -> None:
        super().install()
        shell("apt_install", "iptables")
        shell("go_program", *_NERDCTL)
        shell("cni_plugins", str(CACHE / "cni"), _FIREWALL)

    def __init__(self, directory: Path, plugin: Path, host: Host) -> None:
        """Put the plugin in portmap's place too: the network that nerdctl makes by itself names portmap."""
        super().__init__(directory, plugin, host)
        shell("cni_plugins", str(self.cni_bin), _FIREWALL)
        (self.cni_bin / "portmap").symlink_to(plugin)
        self._processes: dict[str, int] = {}

    def version(self) -> str:
        return f"{self.nerdctl('--version').split()[-1]} with containerd {super().version()}"

    def import_image(self, name: str, archive: Path) -> None:
        if name == SERVER:
            self.nerdctl("load", f"--input={archive}")

    def stop(self) -> None:
        if self._daemon.runs:
            for container in self.nerdctl("ps", "--all", "--quiet").split():
                self.nerdctl("rm", "--force", container)
        self.end_daemon()
        self.cgroup.kill()
        unmount_below(self.directory)
        self.cgroup.remove()

    def run(self, name: str, *ports: Port, networks: tuple[Network, ...] = (FRONT,)) -> Running:
        return self.run_published(name, [published(port) for port in ports], ports, networks)

    def run_published(
        self, name: str, publish: list[str], ports: tuple[Port, ...] = (), networks: tuple[Network, ...] = (FRONT,)
    ) -> Running:
        """Run a container with options to publish as they are typed; NotRun when that fails."""
        try:
            self.nerdctl("run", "--detach", *self._options(name, publish, networks))
        except NotRun:
            self.remove_if_there(name)
            raise
        return self.running(name, ports, networks)

    def create(self, name: str, *publish: str) -> str:
        """Create a container without starting it, and return its ID."""
        return self.nerdctl("create", *self._options(name, list(publish), (FRONT,))).strip()

    def start_created(self, name: str) -> Running:
        """Start a container that is there; NotRun when that fails."""
        self.nerdctl("start", name)
        return self.running(name)

    def _options(self, name: str, publish: list[str], networks: tuple[Network, ...]) -> list[str]:
        return [
            "--pull=never",
            f"--name={name}",
            f"--cgroup-parent=/{self.cgroup.name}",
            "--security-opt=apparmor=unconfined",
            *(f"--publish={option}" for option in publish),
            *(f"--network={network.name}" for network in networks),
            SERVER,
            name,
            *map(str, SERVED_PORTS),
        ]

    def remove(self, container: Running) -> None:
        self.nerdctl("stop", "--time=0", container.name)
        self.nerdctl("rm", container.name)

    def remove_by_force(self, container: Running) -> None:
        """Remove it while it runs."""
        self.nerdctl("rm", "--force", container.name)

    def restart(self, container: Running) -> Running:
        self.nerdctl("restart", "--time=0", container.name)
        return self.running(container.name, container.ports, container.networks)

    def stop_and_start(self, container: Running) -> Running:
        """Stop it, and start it again."""
        self.nerdctl("stop", "--time=0", container.name)
        self.nerdctl("start", container.name)
        return self.running(container.name, container.ports, container.networks)

    def kill_process(self, container: Running) -> None:
        """Kill what runs in the container: the shim has nerdctl clean up."""
        self._kill(self._processes[container.name])

    def kill_hard(self, container: Running) -> None:
        """Kill the shim first: it is the shim that has runc call the hook that says DEL."""
        process = self._processes[container.name]
        self._kill(parent_of(process))
        with suppress(ProcessLookupError):  # a shim takes its container with it where it can
            self._kill(process)

    def clean_up(self, container: Running) -> None:
        self.remove_if_there(container.name)

    def running(self, name: str, ports: tuple[Port, ...] = (), networks: tuple[Network, ...] = (FRONT,)) -> Running:
        """Describe a container that runs."""
        found = self._inspect(name)
        self._processes[name] = int(found["State"]["Pid"])
        netns = self.directory / f"netns-{name}"
        netns.unlink(missing_ok=True)
        netns.symlink_to(f"/proc/{self._processes[name]}/ns/net")
        return Running(f"{_NAMESPACE}-{found['Id']}", name, netns, ports, networks, addresses_in(netns))

    def nerdctl(self, *arguments: str) -> str:
        """Run a command of nerdctl."""
        return self._run_with_programs(
            shell("go_program", *_NERDCTL),
            f"--address={self.socket}",
            f"--namespace={_NAMESPACE}",
            f"--data-root={self.directory}/nerdctl",
            f"--cni-path={self.cni_bin}",
            f"--cni-netconfpath={self.cni_conf}",
            "--cgroup-manager=cgroupfs",
            "--snapshotter=native",
            *arguments,
        )

    def _inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.nerdctl("inspect", "--type=container", name))[0]
        return found

    def remove_if_there(self, name: str) -> None:
        """Remove it by force; nothing happens where there is none."""
        if name in self.nerdctl("ps", "--all", "--format={{.Names}}").split():
            self.nerdctl("rm", "--force", name)

    def _kill(self, process: int) -> None:
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not runs(process), f"process {process} ends")
