"""Calls that are made at the same time, and what must be true of the host behind them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from conformance.faults_driver.audit import disagreements, remains, strangers
from conformance.faults_driver.flow import ECHO_PORT, Echo, Flow
from tests.kernel.plugin import PluginError, publish
from tests.kernel.topology import HOST

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from tests.kernel.plugin import Attachment, Plugin

PORT, ECHO_HOST_PORT = 8080, 8007
CONFLICT, TRY_AGAIN, CHECK_FAILED = 100, 11, 103
NONE, ATTACHED, HURT = "nobody is attached", "web is attached", "web is attached, an element is missing"
BEFORE = (NONE, ATTACHED, HURT)
_MAY_FAIL_WITH = (CONFLICT, TRY_AGAIN)


class Scene:
    """A host with a bystander whose connection goes on, and containers that want the same port, address and network.

    web: the container in question. rival: wants web's port. successor: has web's address and port, in another namespace.
    """

    def __init__(self, plugin: Plugin, stack: ExitStack) -> None:
        self.plugin = plugin
        self.host = plugin.host
        web, rival, successor, bystander = (self.host.container() for _ in range(4))
        for container, name in ((web, "web"), (rival, "rival"), (bystander, "bystander")):
            container.serve(name, 80)
        echo = Echo(bystander)
        stack.callback(echo.close)
        self._bystander = plugin.add(bystander, publish(ECHO_HOST_PORT, ECHO_PORT))
        self.flow = stack.enter_context(Flow(self.host.client, HOST[4], ECHO_HOST_PORT))
        self.web, self.rival, self.successor = (self._attachment(container) for container in (web, rival, successor))
        self.successor.configuration["prevResult"]["ips"] = self.web.configuration["prevResult"]["ips"]

    def _attachment(self, container: Any) -> Attachment:
        return self.plugin.attachment(container, publish(PORT), publish(PORT, 80, protocol="udp"))

    def prepare(self, before: str) -> None:
        """Bring about what there is before both calls."""
        if before != NONE:
            self.web.add()
        if before == HURT:
            self.host.run("nft", f"delete element inet quantum endpoints4 {{ tcp . {PORT} }}")

    def start(self, call: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start one of CALLS, under a tracer or not."""
        return CALLS[call](self, before)

    def settle(self) -> Iterator[str]:
        """Delete everything, as runtimes do in the end; it must succeed, and leave nothing."""
        for attachment in (self.web, self.rival, self.successor):
            try:
                attachment.delete()
                attachment.delete_again_like_containerd()
            except PluginError as error:
                yield f"at last, DEL fails: {error}"
        yield from (f"at last, {problem}" for problem in (*disagreements(self.plugin), *remains(self.plugin)))

    def problems(self, answers: dict[str, str], before: str) -> Iterator[str]:
        """Say what is wrong behind both calls, whose answers are empty where they succeeded."""
        yield from (f"{call}: {answer}" for call, answer in answers.items() if answer and not _is_clear(answer))
        if before != HURT or any("reconcile" in call for call in answers):
            yield from disagreements(self.plugin)
            yield from strangers(self.plugin)
        owners = self._owners()
        if len(owners) > 1:
            yield f"port {PORT} is on record for {owners}"
        if before == NONE and all("ADD" in call for call in answers) and len(owners) != 1:
            yield f"of two that wanted port {PORT}, {len(owners)} have it: {answers}"
        try:
            self.flow.say()
            if before != HURT:
                yield from self._wrong_server(owners)
        except Exception as error:  # noqa: BLE001 - refused, timed out, or whatever a client meets
            yield f"traffic: {type(error).__name__}: {error}"

    def _owners(self) -> list[str]:
        """Return the container IDs that have the port on record."""
        records = [json.loads(path.read_text()) for path in self.plugin.state_directory.glob("attachments/*/*.json")]
        return [r["containerId"] for r in records if any(m["hostPort"] == PORT for m in r["portMappings"])]

    def _wrong_server(self, owners: list[str]) -> Iterator[str]:
        servers = {self.web.container.id: "web", self.rival.container.id: "rival", self.successor.container.id: "web"}
        if not owners:
            if not self.host.client.is_refused(HOST[4], PORT):
                yield f"port {PORT} is nobody's, and is not refused"
            return
        server = self.host.client.ask(HOST[4], PORT).server
        if server != servers[owners[0]]:
            yield f"port {PORT} is {owners[0]}'s, and leads to {server}"

    def collect(self, before: tuple[str, ...], *kept: Attachment) -> subprocess.Popen[str]:
        """Start a GC that keeps the bystander and these."""
        valid = [{"containerID": a.container.id, "ifname": "eth0"} for a in (self._bystander, *kept)]
        keys = {"cni.dev/valid-attachments": valid}
        return self.plugin.start("GC", self.plugin.configuration() | keys, before=before)


def _verb(verb: str, who: str) -> Callable[[Scene, tuple[str, ...]], subprocess.Popen[str]]:
    def start(scene: Scene, before: tuple[str, ...]) -> subprocess.Popen[str]:
        attachment: Attachment = getattr(scene, who)
        return scene.plugin.start(verb, attachment.configuration, attachment.container, before=before)

    return start


CALLS: dict[str, Callable[[Scene, tuple[str, ...]], subprocess.Popen[str]]] = {
    "ADD web": _verb("ADD", "web"),
    "ADD rival": _verb("ADD", "rival"),
    "ADD successor": _verb("ADD", "successor"),
    "DEL web": _verb("DEL", "web"),
    "GC": lambda scene, before: scene.collect(before),
    "GC, web kept": lambda scene, before: scene.collect(before, scene.web),
    "reconcile": lambda scene, before: scene.plugin.start_operation("reconcile", "--json", before=before),
}


def _is_clear(answer: str) -> bool:
    """Whether it is an error that such a call may end with: the port is the other's, or it should try again."""
    try:
        return json.loads(answer.split("\n", maxsplit=1)[0])["code"] in _MAY_FAIL_WITH
    except (ValueError, KeyError, TypeError):
        return False
