"""CRI-O 1.36, from Go's module proxy. It publishes host ports itself, and uses the plugin for outbound NAT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .cri import CriRuntime
from .images import PAUSE
from .runtime import FRONT, NotRun, Running, shell

if TYPE_CHECKING:
    from tests.kernel.topology import Host

_CACHE = Path("/var/lib/cni/results")
_PINNS = Path(__file__).with_name("pinns")
_TAGS = "containers_image_openpgp containers_image_ostree_stub exclude_graphdriver_btrfs libsqlite3 seccomp"
_REFUSED, _NOT_CALLED = "Network plugin returns error", "plugin status uninitialized"
_CONFIGURATION = """[crio]
root = "{directory}/root"
runroot = "{directory}/runroot"
storage_driver = "vfs"
log_dir = "{directory}/log"
version_file = "{directory}/version"
clean_shutdown_file = "{directory}/clean.shutdown"
[crio.api]
listen = "{socket}"
[crio.runtime]
apparmor_profile = "unconfined"
cgroup_manager = "cgroupfs"
container_exits_dir = "{directory}/exits"
container_attach_socket_dir = "{directory}/attach"
namespaces_dir = "{directory}/namespaces"
pinns_path = "{pinns}"
hooks_dir = []
cdi_spec_dirs = []
enable_criu_support = false
irqbalance_config_file = ""
irqbalance_config_restore_file = ""
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_root = "{directory}/runc"
monitor_cgroup = "pod"
[crio.image]
pause_image = "{pause}"
signature_policy = "{policy}"
signature_policy_dir = "{directory}/policies"
namespaced_auth_dir = "{directory}/auth"
[crio.network]
network_dir = "{cni_conf}"
plugin_dirs = ["{cni_bin}"]
cni_default_network = "{network}"
[crio.nri]
enable_nri = false
"""


class Crio(CriRuntime):
    """CRI-O with private directories, and Debian's runc and conmon."""

    name = "cri-o-1.36"
    conflist_to_copy = "crio"
    cni_version = "1.1.0"
    lacks: ClassVar[dict[str, str]] = {**CriRuntime.lacks, "ports": "it publishes host ports itself"}

    @classmethod
    def install(cls) -> None:
        super().install()
        shell("apt_install", "conmon", "skopeo")
        shell("apt_install", "gcc", "libc6-dev", "libseccomp-dev", "libsqlite3-dev", "pkg-config")
        _program()

    def __init__(self, directory: Path, plugin: Path, host: Host) -> None:
        super().__init__(directory, plugin, host)
        self._program = _program()

    def version(self) -> str:
        return self.command(self._program, "--version").split()[2]

    def configure(self) -> None:
        policy = self.directory / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._configuration = self.directory / "crio.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(
                directory=self.directory,
                socket=self.socket,
                pinns=_PINNS,
                pause=PAUSE,
                policy=policy,
                cni_bin=self.cni_bin,
                cni_conf=self.cni_conf,
                network=FRONT.name,
            )
        )

    def command_line(self) -> list[str]:
        return self._crio

    def import_image(self, name: str, archive: Path) -> None:
        storage = f"containers-storage:[vfs@{self.directory}/root+{self.directory}/runroot]{name}"
        self.command("skopeo", "--insecure-policy", "copy", f"oci-archive:{archive}", storage)

    def check(self, container: Running) -> None:
        """Restart CRI-O, which then calls CHECK for every pod, and only logs the result."""
        said = self._said_while_restarting()
        assert f"Checking pod default_{container.name} " in said, said
        failures = [line for line in said.splitlines() if "Error checking network" in line and container.id in line]
        if failures:
            raise NotRun("\n".join(failures))

    def status(self, container: Running) -> None:  # noqa: ARG002 - it is the network that has one, not the container
        """Restart CRI-O, which calls STATUS until it succeeds, and is not ready before that."""
        self.end_daemon()
        self.launch(self._has_called_status)
        if why := self.why_not_ready():
            raise NotRun(why)

    def _has_called_status(self) -> bool:
        why = self.why_not_ready()
        return not why or (_REFUSED in why and _NOT_CALLED not in why)

    def collect_garbage(self, container: Running) -> None:
        """Delete CRI-O's records of all pods: at its next start it calls GC without any pods.

        libcni's cache of the container is removed too: otherwise it would call DEL before GC.
        """
        self.end_daemon()
        self.command(*self._crio, "wipe", "--force")
        for cached in _CACHE.glob(f"*-{container.id}-*"):
            cached.unlink()
        self.start_daemon()
        self.import_images()
        self.cgroup.remove(self.group(container.name))

    def _said_while_restarting(self) -> str:
        before = self.log.stat().st_size
        self.restart_daemon()
        return self.log.read_bytes()[before:].decode()

    @property
    def _crio(self) -> list[str]:
        return [self._program, f"--config={self._configuration}", "--config-dir="]


def _program() -> str:
    return shell("go_program", "crio", "github.com/cri-o/cri-o/cmd/crio", "v1.36.3", "-tags", _TAGS)
