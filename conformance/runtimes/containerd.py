"""containerd with its CRI plugin: 1.6 from Debian 12, and 2.3 from Go's module proxy."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from .cri import CriRuntime
from .images import PAUSE
from .runtime import HANDS_PORTS_ON, NotRun, Running, shell

_COMMON = """version = {version}
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
"""
_VERSION_2 = """[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_bin}"
conf_dir = "{cni_conf}"
max_conf_num = 1
"""
_VERSION_3 = """[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni_bin}"]
conf_dir = "{cni_conf}"
max_conf_num = 1
[plugins."io.containerd.nri.v1.nri"]
disable = true
"""


class Containerd(CriRuntime):
    """containerd with private directories; its shims always put their sockets into /run/containerd."""

    lacks: ClassVar[dict[str, str]] = {
        **CriRuntime.lacks,
        "own host ports": HANDS_PORTS_ON,
        "verbs": "it calls neither CHECK nor GC",
    }
    configuration_version: ClassVar[int]

    @classmethod
    @abstractmethod
    def programs(cls) -> list[Path]:
        """Return the directories with its programs."""

    def version(self) -> str:
        return self._run_with_programs("containerd", "--version").split()[2].removeprefix("v").removesuffix("+unknown")

    def configure(self) -> None:
        self._configuration = self.directory / "containerd.toml"
        template = _COMMON + {2: _VERSION_2, 3: _VERSION_3}[self.configuration_version]
        self._configuration.write_text(
            template.format(
                version=self.configuration_version,
                directory=self.directory,
                socket=self.socket,
                pause=PAUSE,
                cni_bin=self.cni_bin,
                cni_conf=self.cni_conf,
            )
        )

    def command_line(self) -> list[str]:
        return [*self._with_programs(), "containerd", f"--config={self._configuration}"]

    def import_image(self, name: str, archive: Path) -> None:  # noqa: ARG002 - the archive has the name too
        self._run_with_programs(
            "ctr", f"--address={self.socket}", "--namespace=k8s.io", "images", "import", str(archive)
        )

    def _run_with_programs(self, *command: str) -> str:
        return self.command(*self._with_programs(), *command)

    def _with_programs(self) -> list[str]:
        """Return a command prefix that puts its programs first in PATH, where the daemon looks for its shim."""
        path = ":".join([*map(str, self.programs()), os.environ["PATH"]])
        return ["env", f"PATH={path}"]


class Containerd16(Containerd):
    """Debian's package, unpacked rather than installed, since it would start a service."""

    name = "containerd-1.6"
    lacks: ClassVar[dict[str, str]] = {**Containerd.lacks, "status": "it does not call STATUS"}
    configuration_version = 2

    @classmethod
    def install(cls) -> None:
        super().install()
        cls.programs()

    @classmethod
    def programs(cls) -> list[Path]:
        return [Path(shell("unpacked", "containerd")) / "usr/bin"]


class Containerd23(Containerd):
    """The newest release available from Go's module proxy."""

    name = "containerd-2.3"
    cni_version = "1.1.0"
    configuration_version = 3

    @classmethod
    def install(cls) -> None:
        super().install()
        cls.programs()

    def status(self, container: Running) -> None:  # noqa: ARG002 - it is the network that has one, not the container
        """Request containerd's own status, for which it calls STATUS."""
        if why := self.why_not_ready():
            raise NotRun(why)

    @classmethod
    def programs(cls) -> list[Path]:
        commands = "github.com/containerd/containerd/v2/cmd"
        names = ("containerd", "containerd-shim-runc-v2", "ctr")
        return [Path(shell("go_program", name, f"{commands}/{name}", "v2.3.4")).parent for name in names]
