"""A root directory of a Debian release to install packages in; changes are kept in an overlay, and discarded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.topology import run

if TYPE_CHECKING:
    from contextlib import ExitStack

ROOTS = Path(__file__).parents[2] / ".cache" / "roots"
# Without those that packaging/build works in.
SYSTEMS = sorted(
    path.name
    for path in ROOTS.glob("*")
    if path.is_dir() and path.suffix != ".new" and not path.name.startswith("build")
)
RELEASES = [name for name in SYSTEMS if name in {"bookworm", "trixie"}]  # that the packages are for
STATE = Path("/run/cni/quantum-nat")
LINKS = ("/opt/cni/bin/quantum-nat", "/usr/lib/cni/quantum-nat", "/usr/sbin/quantum-nat")
NEXT = "99.0-1"
PROGRAM = "usr/lib/quantum-nat/quantum-nat"
_ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


class Root:
    """The release's root directory, with this machine's processes, devices and network namespaces."""

    shared = ("proc", "dev", "run/netns")

    def __init__(self, suite: str, directory: Path, stack: ExitStack) -> None:
        layers = directory / "layers"
        self.path = directory / "root"
        self.changes = layers / "changes"
        for made in (layers, self.path):
            made.mkdir()
        self._mount(stack, layers, "-t", "tmpfs", "none")
        for made in (self.changes, layers / "work"):
            made.mkdir()
        options = f"lowerdir={ROOTS / suite},upperdir={self.changes},workdir={layers / 'work'}"
        self._mount(stack, self.path, "-t", "overlay", "-o", options, "overlay")
        self._mount(stack, self.path / "run", "-t", "tmpfs", "none")
        (self.path / "run/netns").mkdir()
        for name in self.shared:
            self._mount(stack, self.path / name, "--rbind", f"/{name}")

    def _mount(self, stack: ExitStack, target: Path, *what: str) -> None:
        run("mount", *what, str(target))
        stack.callback(run, "umount", "--lazy", "--recursive", str(target))

    def line(self, *command: str) -> list[str]:
        """Return the command line that runs a command inside."""
        return ["chroot", str(self.path), *command]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command inside."""
        return subprocess.Popen(
            self.line(*command), env=_ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def start_dpkg(self, *arguments: str) -> subprocess.Popen[str]:
        """Start dpkg inside."""
        return self.start("dpkg", "--force-unsafe-io", *arguments)

    def dpkg(self, *arguments: str) -> str:
        """Run dpkg inside, which must succeed, and return its output."""
        process = self.start_dpkg(*arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def install(self, package: Path) -> str:
        """Install a package file, over any other version."""
        return self.dpkg("--install", self.bring(package))

    def bring(self, package: Path) -> str:
        """Copy a file into the root directory, and return its path there."""
        target = self.path / "tmp" / package.name
        if not target.exists():
            target.write_bytes(package.read_bytes())
        return f"/tmp/{package.name}"

    def internals(self) -> list[Path]:
        """Return the installed directories with modules."""
        return sorted((self.path / PROGRAM).parent.glob("_internal-*"))


def derived_tree(package: Path, tree: Path, version: str, *, layout: int | None = None) -> Path:
    """Unpack another version of a package; its program finds its modules only in a directory with another name."""
    run("dpkg-deb", "--raw-extract", str(package), str(tree))
    library = tree / "usr/lib/quantum-nat"
    (internal,) = library.glob("_internal-*")
    other = f"_internal-{version.encode().hex():0>12.12}"
    assert len(other) == len(internal.name)
    program = tree / PROGRAM
    content = program.read_bytes()
    assert internal.name.encode() in content
    program.write_bytes(content.replace(internal.name.encode(), other.encode()))
    internal.rename(library / other)
    if layout is not None:
        (library / "layout").write_text(f"{layout}\n")
    return tree


def derived(package: Path, target: Path, version: str, *, layout: int | None = None) -> Path:
    """Make another version of a package, as derived_tree does."""
    tree = derived_tree(package, target / version, version, layout=layout)
    control = tree / "DEBIAN/control"
    lines = [
        f"Version: {version}" if line.startswith("Version:") else line for line in control.read_text().splitlines()
    ]
    control.write_text("\n".join(lines) + "\n")
    made = target / f"quantum-nat_{version}.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made))
    return made


def built() -> Path:
    """Return the newest package from packaging/deb."""
    return Path(os.environ["QUANTUM_NAT_DEB"])
