"""A virtual machine: Debian's kernel, a small init, and a file system with this checkout at the place where it is here.

The processor is emulated, so it takes no KVM, and about ten times as long. A disk has the file system, because unpacking an
archive of that size into memory would take the machine longer than to boot. Results leave it through a second serial line.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.packages.sources import PROJECT, copy_sources

_MODULES_TO_BOOT = ("virtio_pci", "virtio_blk", "ext4")
_SPARE_BYTES = 400 << 20
_SHOWN = 40  # lines of the console, when something is wrong
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
while read module; do /bin/busybox insmod /modules/$module; done </modules/order
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /bin/sh /start
"""
_START = """export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir /run/netns
ip link set lo up
modprobe -a {modules}
cd '{directory}'
{command}
echo "exit status $?"
stty raw -F /dev/ttyS1
cat /run/result >/dev/ttyS1
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class Failed(Exception):
    """The machine did not do what it was started for."""


@dataclass(frozen=True)
class Machine:
    """What a virtual machine is made of.

    root: a Debian root directory with what the command needs. kernel: where a kernel's package is unpacked. modules: those that nothing else loads.
    """

    root: Path
    kernel: Path
    modules: tuple[str, ...]

    @property
    def version(self) -> str:
        """The kernel's version, as uname(1) shows it."""
        (directory,) = (self.kernel / "usr/lib/modules").iterdir()
        return directory.name

    def run(self, command: str, place: Path, timeout_s: float) -> str:
        """Boot, run a shell command in the checkout, and return what it wrote to /run/result; the console's output goes to PLACE/console."""
        initrd, disk, console, result = (place / name for name in ("initrd", "disk", "console", "result"))
        self._make_initrd(place / "boot", initrd)
        self._make_disk(place / "tree", disk, command)
        line = (
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"),
            *("-kernel", str(self.kernel / f"boot/vmlinuz-{self.version}"), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off audit=0 no_timer_check net.ifnames=0"),
            *("-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"),
            *("-display", "none", "-nic", "none", "-monitor", "none", "-no-reboot"),
            *("-serial", f"file:{console}", "-serial", f"file:{result}"),
        )
        begin = time.monotonic()
        try:
            subprocess.run(line, stdin=subprocess.DEVNULL, check=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"Linux {self.version} is not ready after {timeout_s:.0f} s\n{_end_of(console)}") from None
        text = result.read_text()
        if not text:
            raise Failed(f"Linux {self.version} ended after {time.monotonic() - begin:.0f} s\n{_end_of(console)}")
        return text

    def _make_initrd(self, tree: Path, archive: Path) -> None:
        """Make what the kernel starts with: busybox, and the modules that reach the disk."""
        for name in ("bin", "dev", "modules", "root"):
            (tree / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin/busybox")
        (tree / "init").write_text(_INIT)
        (tree / "init").chmod(0o755)
        names = dict.fromkeys(path for module in _MODULES_TO_BOOT for path in self._with_dependencies(module))
        for path in names:
            content = path.read_bytes()
            unpacked = lzma.decompress(content) if path.suffix == ".xz" else content
            (tree / "modules" / path.name.removesuffix(".xz")).write_bytes(unpacked)
        order = "".join(path.name.removesuffix(".xz") + "\n" for path in names)
        (tree / "modules/order").write_text(order)
        with archive.open("wb") as file:
            files = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True).stdout
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=files, stdout=file, check=True)

    def _with_dependencies(self, module: str) -> list[Path]:
        """Return the files of a module, in the order in which they are loaded; none if it is built in."""
        line = ("modprobe", "--show-depends", "--set-version", self.version, "--dirname", str(self.kernel), module)
        shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        return [Path(words[1]) for words in map(str.split, shown.splitlines()) if words[0] == "insmod"]

    def _make_disk(self, tree: Path, disk: Path, command: str) -> None:
        """Make the file system, of links to files where possible."""
        link = ("cp", "--archive", "--link")
        subprocess.run([*link, self.root, tree], check=True)
        subprocess.run([*link, self.kernel / "usr/lib/modules", tree / "usr/lib"], check=True)
        checkout = tree / PROJECT.relative_to("/")
        copy_sources(checkout)
        (checkout / "dist").mkdir()
        subprocess.run([*link, PROJECT / ".venv", checkout], check=True)
        subprocess.run([*link, PROJECT / "dist/quantum-nat", checkout / "dist"], check=True)
        start = _START.format(modules=" ".join(self.modules), directory=PROJECT, command=command)
        (tree / "start").write_text(start)
        used = int(subprocess.run(["du", "-sk", tree], capture_output=True, check=True).stdout.split()[0]) << 10
        with disk.open("wb") as file:
            os.truncate(file.fileno(), used + used // 4 + _SPARE_BYTES)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, disk], check=True)


def _end_of(console: Path) -> str:
    return "\n".join(console.read_text(errors="replace").splitlines()[-_SHOWN:])
