"""A checkout in a bare root directory of a Debian release, with the way that this machine has to Debian's mirror and to PyPI."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.topology import run, wait_until

from .root import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).parents[2]
CHECKOUT = Path("/srv/a checkout")
USER = 1000
# What tells pip, apt and Python's libraries how to get out of here, where that takes something.
_WAY_OUT = ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")
_AUTHORITIES = Path("/srv/authorities.crt")


def copy_sources(target: Path) -> None:
    """Copy what git names or would name, committed or not."""
    names = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout
    there = b"\0".join(name for name in names.split(b"\0") if name and os.path.lexists(PROJECT / os.fsdecode(name)))
    target.mkdir(parents=True)
    with subprocess.Popen(
        ["tar", "-C", str(PROJECT), "--null", "-T", "-", "-cf", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pack:
        unpack = subprocess.Popen(["tar", "-C", str(target), "-xf", "-"], stdin=pack.stdout)
        assert pack.stdin is not None
        pack.stdin.write(there)
        pack.stdin.close()
        assert unpack.wait() == 0
    assert pack.returncode == 0


class SourceRoot(Root):
    """A release's root directory with a checkout, in which scripts run as they would on a host of their own."""

    shared = ("proc", "dev", "sys")

    def line(self, *command: str) -> list[str]:
        """Return how a command is run in it, as the root of a mount namespace, which nsenter(1) returns to; a chroot is not."""
        pivot = 'cd "$0" && pivot_root . mnt && umount --lazy mnt && exec "$@"'
        return ["unshare", "--mount", "sh", "-euc", pivot, str(self.path), *command]

    def prepare(self) -> None:
        """Put the checkout there, and connect it to the network."""
        copy_sources(self.inside(CHECKOUT))
        (self.path / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
        if authorities := os.environ.get("PIP_CERT"):
            self.inside(_AUTHORITIES).write_bytes(Path(authorities).read_bytes())

    def inside(self, path: Path) -> Path:
        """Return where a path of the root directory is on this machine."""
        return self.path / path.relative_to("/")

    def launch(self, script: str, *, uid: int = 0, checkout: Path = CHECKOUT) -> subprocess.Popen[str]:
        """Start a shell script in the checkout, in a session of its own, as a terminal would."""
        home = "/root" if uid == 0 else f"/home/{uid}"
        environment = {
            "HOME": home,
            "PATH": "/usr/local/bin:/usr/bin:/bin" + (":/usr/sbin:/sbin" if uid == 0 else ""),
            "LC_ALL": "C.UTF-8",
            **({"PIP_CERT": str(_AUTHORITIES)} if "PIP_CERT" in os.environ else {}),
            **{name: os.environ[name] for name in _WAY_OUT if name in os.environ},
        }
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
        settings = ["env", "-i", "--default-signal=INT", *(f"{name}={value}" for name, value in environment.items())]
        line = self.line(*settings, *become, "sh", "-c", f'cd "$0" && {script}', str(checkout))
        return subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def succeed(self, script: str, *, uid: int = 0, checkout: Path = CHECKOUT, timeout_s: float = 1200) -> str:
        """Run a shell script in the checkout, which must succeed, and return what it printed."""
        process = self.launch(script, uid=uid, checkout=checkout)
        output, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, output[:2000] + "\n...\n" + output[-5000:]
        return output

    def add_user(self) -> None:
        """Give the checkout to a user who is not root."""
        home = self.path / f"home/{USER}"
        home.mkdir(parents=True)
        run("chown", "-R", f"{USER}:{USER}", str(home), str(self.inside(CHECKOUT)))

    def processes(self) -> Iterator[tuple[int, str]]:
        """Return the process ID and the name of each process that runs in the root directory."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "root").samefile(self.path):
                    yield int(process.name), (process / "comm").read_text().strip()
            except OSError:  # it has ended
                continue

    def runs(self, name: str) -> bool:
        """Return whether a program of this name runs."""
        return any(found == name for _, found in self.processes())

    def size(self) -> int:
        """Return how many bytes on disk all that was written since takes."""
        return int(run("du", "--summarize", "--block-size=1", str(self.changes)).split()[0])


def interrupt(process: subprocess.Popen[str], _: SourceRoot) -> None:
    """Press Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def cut_power(_: subprocess.Popen[str] | None, root: SourceRoot) -> None:
    """End everything at once, whatever it does."""
    while found := list(root.processes()):
        for pid, _name in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def stop_at(root: SourceRoot, script: str, reached: Callable[[], bool], stop: Callable[..., None]) -> int:
    """Start a script, stop it when a moment is reached, and return its exit status."""
    process = root.launch(f"exec {script} >/tmp/output 2>&1")
    wait_until(lambda: reached() or process.poll() is not None, "the moment", timeout_s=300)
    assert process.poll() is None, (root.path / "tmp/output").read_text()
    stop(process, root)
    process.communicate(timeout=300)
    return process.returncode
