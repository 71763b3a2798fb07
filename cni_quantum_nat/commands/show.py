"""`quantum-nat show CONTAINER`: all details of one container."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ..model.errors import CniError
from ..nat.decision import IN_FORCE, UNCERTAIN
from ..nat.records import here_of, standing
from .completion import containers
from .find import attachments_of
from .kernel import kernel_rules
from .parser import ALL_STATES, add_command
from .tables import age

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..backends.nftables.rules import Element
    from ..model.attachments import Attachment
    from ..state.directory import State
    from .parser import Commands

_LABEL_WIDTH = 13


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "show",
        run,
        summary="show all details of a container",
        description="Show each attachment of a container: addresses, published ports, outbound NAT, and its rules in the kernel.",
        examples=("show 4f1c09",),
        scope=ALL_STATES,
    )
    container = parser.add_argument("container", metavar="CONTAINER", help="container ID, or a unique prefix")
    container.completer = containers  # type: ignore[attr-defined]  # argcomplete reads it
    parser.add_argument("--json", action="store_true", help="print a JSON array with an object for each attachment")


def run(arguments: argparse.Namespace) -> int:
    """Print the container's attachments."""
    found = attachments_of(arguments, arguments.container)
    described = [_describe(attachment, state) for state, attachment in found]
    if arguments.json:
        print(json.dumps(described, indent=2))
    else:
        print("\n\n".join("\n".join(_lines(description)) for description in described))
    return 0


def _describe(attachment: Attachment, state: State) -> dict[str, Any]:
    """Return the record, and what is installed for it in the kernel."""
    description: dict[str, Any] = {
        **attachment.as_record(),
        "record": state.path(attachment.id),
        "alive": {IN_FORCE: True, UNCERTAIN: None}.get(standing(attachment, here_of(state)), False),
        "ageS": int(time.time() - attachment.created_at),
        "ports": [str(mapping) for mapping in attachment.port_mappings],
        "livePorts": [str(mapping) for mapping in attachment.port_mappings if mapping.live],
        "withdrawnPorts": [str(mapping) for mapping in attachment.withdrawn],
        "filters": [
            [str(mapping), interfaces, [str(subnet) for subnet in sources]]
            for mapping in attachment.port_mappings
            for interfaces, sources in (attachment.inbound.filters_of(mapping),)
            if interfaces or sources
        ],
        "refused": None,
        "tracked": _count_tracked(attachment),
        "connections": None,
        "elements": [],
        "rules": [],
        "differences": [],
        "unreadable": "",
    }
    try:
        installed = kernel_rules(attachment, state)
    except CniError as error:
        return description | {"unreadable": f"{error.message}. {error.details}".strip()}
    return description | {
        "connections": installed.flows,
        "refused": installed.refused,
        "elements": [_element(element) for element in installed.elements],
        "rules": installed.rules,
        "differences": installed.differences,
    }


def _count_tracked(attachment: Attachment) -> int | None:
    from .connections import connections_of

    try:
        return sum(1 for _ in connections_of([attachment]))
    except CniError:
        return None  # not root, or no conntrack; the rest is still useful


def _element(element: Element) -> dict[str, Any]:
    from ..backends.nftables.text import element_text

    text = element_text(element).partition(f" {element.set_name} ")[2]
    if element.is_counted:
        text = text.replace(' comment "', f' counter packets {element.flows} comment "', 1)
    return {
        "set": element.set_name,
        "key": [field if isinstance(field, int) else str(field) for field in element.key],
        "data": [field if isinstance(field, int) else str(field) for field in element.data],
        "comment": element.owner,
        "packets": element.flows if element.is_counted else None,
        "text": f"{element.set_name} {text}",
    }


def _lines(described: dict[str, Any]) -> Iterator[str]:
    created = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(described["createdAt"]))
    alive = "alive" if described["alive"] else "gone"
    yield _line("Container", described["containerId"])
    yield _line("Network", described["network"])
    yield _line("Interface", described["interface"])
    yield _line("Namespace", f"{described['netns']} ({alive})" if described["netns"] else "none")
    yield _line("Created", f"{created} ({age(described['ageS'])} ago)")
    yield _line("Backend", described["backend"])
    yield _line("Record", described["record"])
    for endpoint in described["endpoints"]:
        via = f" via {endpoint['hostInterface']}" if endpoint["hostInterface"] else ""
        yield _line("Address", endpoint["address"] + via)
    for port in described["ports"]:
        yield _line("Port", f"{port}, published on the running container" if port in described["livePorts"] else port)
    for port in described["withdrawnPorts"]:
        yield _line("Withdrawn", port)
    yield from _outbound_lines(described["outbound"])
    yield _line("Idle time-out", f"{described['establishedTimeoutS']} s")
    if "udpTimeoutsS" in described:
        unreplied_s, stream_s = described["udpTimeoutsS"]
        yield _line("UDP time-outs", f"{unreplied_s} s, {stream_s} s as streams")
    for port, interfaces, sources in described["filters"]:
        yield from (_line("Published on", f"{', '.join(interfaces)} ({port})") for _ in interfaces[:1])
        yield from (_line("Allowed from", f"{', '.join(sources)} ({port})") for _ in sources[:1])
    if described["refused"] is not None:
        yield _line("Refused", f"{described['refused']} packets")
    for family, words in described["inbound"]["conditions"].items():
        yield _line("Condition", f"IPv{family}: {' '.join(words)}")
    yield from _kernel_lines(described)


def _outbound_lines(outbound: dict[str, Any]) -> Iterator[str]:
    for family in outbound["masquerade"]:
        source = outbound["snatAddresses"].get(str(family))
        interfaces = ", ".join(outbound["externalInterfaces"].get(str(family), ())) or "any interface"
        kind = f"SNAT to {source}" if source else "masquerade"
        yield _line("Outbound NAT", f"IPv{family} {kind}, via {interfaces}")
    if not outbound["masquerade"]:
        yield _line("Outbound NAT", "none")


def _kernel_lines(described: dict[str, Any]) -> Iterator[str]:
    yield _line("Connections", f"{_number(described['connections'])} so far, {_number(described['tracked'])} now")
    if described["unreadable"]:
        yield _line("In the kernel", f"cannot be read: {described['unreadable']}")
        return
    yield _line("In the kernel", "matches the record" if not described["differences"] else "differs from the record")
    for difference in described["differences"]:
        yield f"  ! {difference}"
    for entry in [*(element["text"] for element in described["elements"]), *described["rules"]]:
        yield f"  {entry}"


def _number(count: int | None) -> str:
    return "-" if count is None else str(count)


def _line(label: str, value: str) -> str:
    return f"{label + ':':<{_LABEL_WIDTH + 1}} {value}".rstrip()
