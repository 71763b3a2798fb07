"""A runtime that makes calls while a package changes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.plugin import Plugin, PluginError
from tests.kernel.topology import Container, Host, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def reaches_web(host: Host) -> bool:
    return host.client.ask("198.51.100.1", 8080).server == "web"


class Load(threading.Thread):
    """A runtime that adds and deletes a container, each time on a new network, which needs the program's libraries."""

    def __init__(self, plugin: Plugin, container: Container) -> None:
        super().__init__()
        self.plugin, self.container = plugin, container
        self.calls = 0
        self.failures: list[Exception] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                attachment = self.plugin.add(self.container, network=f"net{self.calls}")
                self.plugin.call("VERSION", {"cniVersion": "1.1.0"})
                attachment.delete()
            except (PluginError, AssertionError, OSError) as error:
                self.failures.append(error)
            self.calls += 1


@contextmanager
def under_load(plugin: Plugin, container: Container) -> Iterator[Load]:
    """Call the plugin continuously, before, while and after the block runs."""
    load = Load(plugin, container)
    load.start()
    try:
        wait_until(lambda: load.calls >= 2, "calls before")
        yield load
        before = load.calls
        wait_until(lambda: load.calls >= before + 2, "calls after")
    finally:
        load.ended.set()
        load.join()


def waits_for_lock(program: Path) -> bool:
    """Return whether a process of this program has the lock file open, so that it has started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "exe").samefile(program):
                return any(link.readlink().name == "lock" for link in (process / "fd").iterdir())
        except OSError:
            continue
    return False
