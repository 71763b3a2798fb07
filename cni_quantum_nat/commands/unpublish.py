"""`quantum-nat unpublish CONTAINER PORT`: takes back a published port of a running container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .completion import host_ports
from .find import attachments_of
from .live_ports import add_container, add_drain, add_host_ip, add_json, host_port, manager_of, print_mappings
from .parser import ALL_STATES, add_command

if TYPE_CHECKING:
    import argparse

    from .parser import Commands


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "unpublish",
        run,
        summary="take back a published port of a running container",
        description="Take back a published port of a running container, whether `publish` or its runtime has published it. `publish` "
        "publishes it again. Without --drain, open connections are cut.",
        examples=("unpublish 4f1c09 8080", "unpublish 4f1c09 53/udp --drain"),
        scope=ALL_STATES,
    )
    add_container(parser)
    port = parser.add_argument(
        "port", metavar="PORT", type=host_port, help="host port or range, such as 8080, 53/udp or 8080-8090"
    )
    port.completer = host_ports  # type: ignore[attr-defined]  # argcomplete reads it
    add_host_ip(parser, "only on this address of the host")
    add_drain(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Take the port back."""
    one = attachments_of(arguments, arguments.container)[0]
    arguments.port.host_ip = arguments.host_ip
    container_id = one.attachment.id.container_id
    with manager_of(one) as manager:
        taken = manager.unpublish(container_id, arguments.port, drain=arguments.drain)
    print_mappings(arguments, "unpublished", taken, container_id)
    return 0
