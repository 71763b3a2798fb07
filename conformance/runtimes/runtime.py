"""What every runtime can do for the behaviours: start, run containers, and be restarted. One subclass a runtime.

All of it happens in one network namespace and one mount namespace, which the caller made: that is the host. A runtime keeps
everything that it writes below its own directory, and every process that it starts is gone after `stop`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Port:
    """A port that is to be published. host_ip "": all addresses."""

    host_port: int
    container_port: int = 80
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass
class Running:
    """A container that runs `httpd` on port 80 and a UDP echo on port 53.

    id: what the runtime calls it towards CNI. addresses: by family, on its first network. netns: a path or /proc/PID/ns/net.
    """

    id: str
    name: str
    addresses: dict[int, str] = field(default_factory=dict)
    netns: str = ""


class NotPassed(Exception):
    """The runtime refused or failed to run the container; its own words, as the person who typed the command sees them."""


class Runtime:
    """A runtime that is configured for the plugin. `networks` are conflists in its configuration directory, the first is the default.

    passes_ports: whether it hands port mappings to CNI plugins. has_gc: whether it calls GC by itself.
    """

    name: str
    passes_ports = True
    several_networks = False

    def __init__(self, directory: Path, plugin: Path, state_directory: Path) -> None:
        self.directory = directory
        self.plugin = plugin
        self.state_directory = state_directory

    @classmethod
    def install(cls, cache: Path) -> None:
        """Install what it needs: Debian's packages, or builds in the cache; does nothing when it is there."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def start(self) -> None:
        """Write its configuration, start its daemon if it has one, make the image."""
        raise NotImplementedError

    def stop(self) -> None:
        """End every process of it, containers too, by process id, and unmount what it mounted."""
        raise NotImplementedError

    def restart_daemon(self) -> None:
        """End the daemon and start it again, while containers run; nothing where there is none."""

    def run(self, name: str, *ports: Port, networks: tuple[str, ...] = ()) -> Running:
        """Run a container; NotPassed with its message when that fails."""
        raise NotImplementedError

    def remove(self, container: Running) -> None:
        """Stop and remove it, as a person would."""
        raise NotImplementedError

    def restart(self, container: Running) -> Running:
        """Stop it and start it again with the same ports."""
        raise NotImplementedError

    def kill_hard(self, container: Running) -> None:
        """Kill it and its namespace behind the runtime's back, so that no DEL comes by itself."""
        raise NotImplementedError

    def clean_up(self, container: Running) -> None:
        """Do what the runtime does about a container that died behind its back: its own clean-up, or GC."""
        raise NotImplementedError

    def reload_network(self, container: Running) -> None:
        """Have the rules of a running container made again; NotImplementedError where the runtime has nothing for it."""
        raise NotImplementedError
