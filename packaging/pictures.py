"""Draws docs/pictures/*.svg: what a person sees of commands on a terminal of 110 columns."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cni_quantum_nat.state.directory import DEFAULT_DIRECTORY
from conformance.faults_driver.flow import ECHO_PORT, Echo, Flow
from tests.kernel.plugin import Plugin, publish
from tests.kernel.terminal import on_terminal
from tests.kernel.topology import CLIENT, HOST, Container, Host

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
_COLUMNS = 110
_ERASE_LINE = "\x1b[2K"
_DOCKER = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
# rich's own format, without the fonts that it would have a browser fetch.
_FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """Make the containers, let clients connect, and draw."""
    with ExitStack() as stack:
        host = Host(stack)
        plugin = Plugin(host, Path(DEFAULT_DIRECTORY))  # /run is private here
        _make_containers(stack, host, plugin)
        _draw(plugin, "list")
        _draw(plugin, "connections")
        host.run("iptables-restore", stdin=_DOCKER)
        _draw(plugin, "doctor")


def _make_containers(stack: ExitStack, host: Host, plugin: Plugin) -> None:
    names = ("web-1", "web-2", "resolver", "job")
    web, second, resolver, job = (_container(host, name) for name in names)
    for number, container in enumerate((web, second)):
        plugin.add(
            container, publish(8080, ECHO_PORT), publish(8443 + number, 443), network="front", sharedPorts=[8080]
        )
        stack.callback(Echo(container).close)
        stack.enter_context(Flow(host.client, HOST[4], 8080)).say()
    plugin.add(resolver, publish(5353, 53, protocol="udp", hostIP=HOST[4]), network="back")
    resolver.serve("resolver", 53)
    host.client.ask(HOST[4], 5353, "udp")
    plugin.add(job, network="back")
    host.client.serve("outside", 80)
    job.ask(CLIENT[6], 80)


def _container(host: Host, name: str) -> Container:
    container = host.container()
    container.id = name
    return container


def _draw(plugin: Plugin, command: str) -> None:
    _, shown = on_terminal(plugin, command, environment={"TERM": "xterm-256color"}, columns=_COLUMNS)
    shown = shown.rpartition(_ERASE_LINE)[2].lstrip("\n")  # before it is progress, of which nothing stays
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"# quantum-nat {command}\n{shown}"), end="")
    PICTURES.mkdir(exist_ok=True)
    drawn = console.export_svg(title=f"quantum-nat {command}", unique_id=command, code_format=_FORMAT)
    (PICTURES / f"{command}.svg").write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n")


if __name__ == "__main__":
    main()
