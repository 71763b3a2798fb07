"""Tests with real runtimes, as a user of their commands sees them."""

from .cnitool import Cnitool
from .containerd import Containerd16, Containerd23
from .crio import Crio
from .nerdctl import Nerdctl
from .podman import Podman
from .runtime import Runtime

RUNTIMES: dict[str, type[Runtime]] = {
    runtime.name: runtime for runtime in (Cnitool, Podman, Containerd16, Containerd23, Crio, Nerdctl)
}
