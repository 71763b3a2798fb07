"""The calls to interrupt. Each time, the call is prepared, interrupted once, and then the runtime continues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kernel.plugin import PluginError, publish
from tests.kernel.topology import HOST

from .flow import ECHO_PORT, Echo, Flow

if TYPE_CHECKING:
    import subprocess
    from contextlib import ExitStack

    from tests.kernel.plugin import Attachment, Plugin
    from tests.kernel.topology import Host

PORT, OTHER_PORT, ECHO_HOST_PORT = 8080, 8090, 8007


class Scene:
    """A call, on a host with another container that has an open connection.

    prepare: set up the state before. start: start the call. go_on: do what a runtime does after a failure; it must succeed.
    """

    name: str

    def __init__(self, plugin: Plugin, stack: ExitStack) -> None:
        self.plugin = plugin
        self.host: Host = plugin.host
        self.web, self.bystander = self.host.container(), self.host.container()
        self.web.serve("web", 80)
        self.bystander.serve("bystander", 80)
        echo = Echo(self.bystander)
        stack.callback(echo.close)
        plugin.add(self.bystander, publish(ECHO_HOST_PORT, ECHO_PORT), publish(8081))
        self.flow = stack.enter_context(Flow(self.host.client, HOST[4], ECHO_HOST_PORT))
        self.attachment = self._attachment(PORT)

    def _attachment(self, port: int) -> Attachment:
        return self.plugin.attachment(
            self.web, publish(port), publish(port, 80, protocol="udp"), publish(port + 1, 80, hostIP="127.0.0.1")
        )

    def prepare(self) -> None:
        raise NotImplementedError

    def start(self, before: tuple[str, ...]) -> subprocess.Popen[str]:
        """Start the call under a tracer."""
        raise NotImplementedError

    def go_on(self) -> None:
        raise NotImplementedError

    def problems(self) -> list[str]:
        """Return problems with the traffic after the runtime has continued."""
        return [*self._unreachable("web", PORT)]

    def leave(self) -> None:
        """Delete all attachments, as the runtime finally does; it must succeed."""
        self.attachment.delete()
        self.attachment.delete_again_like_containerd()

    def _call(self, verb: str, before: tuple[str, ...]) -> subprocess.Popen[str]:
        return self.plugin.start(verb, self.attachment.configuration, self.web, before=before)

    def _unreachable(self, name: str, port: int) -> list[str]:
        found = []
        for family in (4, 6):
            server = self.host.client.ask(HOST[family], port).server
            if server != name:
                found.append(f"port {port} leads to {server}")
        return found

    def is_closed(self, port: int) -> bool:
        return self.host.client.is_refused(HOST[4], port)


class Add(Scene):
    """ADD of a container with three ports; then ADD again."""

    name = "ADD"

    def prepare(self) -> None:
        return None

    def start(self, before: tuple[str, ...]) -> subprocess.Popen[str]:
        return self._call("ADD", before)

    def go_on(self) -> None:
        self.attachment.add()
        self.attachment.check()


class AddThenDel(Add):
    """ADD; then the runtime gives up, and calls DEL."""

    name = "ADD, then DEL"

    def go_on(self) -> None:
        self.attachment.delete()

    def problems(self) -> list[str]:
        return [] if self.is_closed(PORT) else [f"port {PORT} is still open"]


class Replace(Add):
    """ADD again, with other ports; then ADD again."""

    name = "ADD again"

    def prepare(self) -> None:
        self._attachment(OTHER_PORT).add()

    def problems(self) -> list[str]:
        return super().problems() + ([] if self.is_closed(OTHER_PORT) else [f"port {OTHER_PORT} is still open"])


class Heal(Add):
    """ADD after a chain was flushed, so that it rebuilds the table; then ADD again."""

    name = "ADD that repairs"

    def prepare(self) -> None:
        if self.host.backend == "nftables":
            self.host.run("nft", "flush chain inet quantum prerouting")
        else:
            self.host.run(self.host.backend, "-t", "nat", "-F", "QUANTUM-PREROUTING")


class Delete(Scene):
    """DEL; then DEL again."""

    name = "DEL"

    def prepare(self) -> None:
        self.attachment.add()

    def start(self, before: tuple[str, ...]) -> subprocess.Popen[str]:
        return self._call("DEL", before)

    def go_on(self) -> None:
        self.attachment.delete()

    def problems(self) -> list[str]:
        return [] if self.is_closed(PORT) else [f"port {PORT} is still open"]


class CollectGarbage(Delete):
    """GC of all but the bystander; then GC again."""

    name = "GC"

    def start(self, before: tuple[str, ...]) -> subprocess.Popen[str]:
        return self.plugin.start("GC", self.plugin.configuration() | self._valid, before=before)

    def go_on(self) -> None:
        self.plugin.gc(self._valid)

    @property
    def _valid(self) -> dict[str, object]:
        return {"cni.dev/valid-attachments": [{"containerID": self.bystander.id, "ifname": "eth0"}]}


class Reconcile(Scene):
    """quantum-nat reconcile after an element was removed by hand; then reconcile again."""

    name = "reconcile"

    def prepare(self) -> None:
        self.attachment.add()
        if self.host.backend == "nftables":
            self.host.run("nft", f"delete element inet quantum endpoints4 {{ tcp . {PORT} }}")
            self.host.run("nft", "add element inet quantum masqueraded4 { 10.88.0.200 }")
        else:
            self.host.run(self.host.backend, "-t", "nat", "-F", "QUANTUM-ANY-IP")

    def start(self, before: tuple[str, ...]) -> subprocess.Popen[str]:
        return self.plugin.start_operation("reconcile", "--json", before=before)

    def go_on(self) -> None:
        done = self.plugin.operate("reconcile")
        if done.returncode:
            raise PluginError({"code": done.returncode, "msg": done.stderr})


SCENES = {scene.name: scene for scene in (Add, AddThenDel, Replace, Heal, Delete, CollectGarbage, Reconcile)}
