"""`quantum-nat publish CONTAINER HOST:CONTAINER`: publishes ports of a running container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..nat.live import mapping_of
from .completion import networks
from .live_ports import (
    add_container,
    add_host_ip,
    add_json,
    attachment_of,
    host_and_container_ports,
    manager_of,
    print_mappings,
)
from .parser import ALL_STATES, add_command

if TYPE_CHECKING:
    import argparse

    from .parser import Commands


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "publish",
        run,
        summary="publish ports of a running container",
        description="Publish ports of a running container, until the container stops or `unpublish` takes them back. A host port that "
        "is in use is refused, as when a container starts, and then nothing has changed.",
        examples=(
            "publish 4f1c09 8080:80",
            "publish 4f1c09 53:53/udp --host-ip 192.0.2.1",
            "publish 4f1c09 8080-8090:80-90",
        ),
        scope=ALL_STATES,
    )
    add_container(parser)
    parser.add_argument(
        "ports",
        metavar="HOST:CONTAINER",
        type=host_and_container_ports,
        help="host port and container port, such as 8080:80 or 53:53/udp, or ranges of the same size",
    )
    add_host_ip(parser, "publish on this address of the host only")
    network = parser.add_argument(
        "--network", metavar="NAME", help="the network that the ports lead to, if the container is on several"
    )
    network.completer = networks  # type: ignore[attr-defined]  # argcomplete reads it
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Publish the ports."""
    from ..cni.configuration import settings_on_record  # pydantic, which no other command should load

    one = attachment_of(arguments)
    protocol, host_ports, container_ports = arguments.ports
    with manager_of(one) as manager:
        record = one.attachment
        mappings = [
            mapping_of(record, protocol, host_port, container_port, arguments.host_ip)
            for host_port, container_port in zip(host_ports, container_ports, strict=True)
        ]
        settings = settings_on_record(manager.state, record.id.network)
        published = manager.publish(record.id, mappings, settings)
    print_mappings(arguments, "published", published, record.id.container_id)
    return 0
