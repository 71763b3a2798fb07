"""The path between the host's network stack and each container, as it is now: links, addresses and routes on both sides.

`Paths` gathers everything once. The checks compare it with the records, and give a cause that many containers share only once.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from ...kernel.routes import default_route_interfaces
from ...model.addresses import Address, Endpoint
from .child import ask_in_namespaces
from .network import LocalAddress, Routing, read_addresses, read_links

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...model.attachments import Attachment
    from .network import Link

OUTSIDE = {4: Address.parse("9.9.9.9"), 6: Address.parse("2620:fe::fe")}  # public: filters often drop reserved ones


class Inside(NamedTuple):
    """A container's namespace. gateways: by family, whether it has a route to the outside. error: why it cannot be read."""

    links: dict[str, Link]
    addresses: set[tuple[str, str]]  # interface, address
    leads_out: dict[int, bool]
    error: str


class Path(NamedTuple):
    """One attachment's path.

    veth: the host's end of its veth pair. home: the host interface with its gateway's address: the bridge, or the veth itself.
    Both are None if they cannot be determined, or if the recorded interface is gone.
    """

    attachment: Attachment
    inside: Inside | None
    veth: Link | None
    home: Link | None
    recorded_home: str

    @property
    def is_ready(self) -> bool:
        """Whether the interfaces are up on both sides, so that routes are worth a look."""
        own = self.inside.links.get(self.attachment.id.interface) if self.inside and not self.inside.error else None
        return bool(self.home and self.home.is_up and (not self.veth or self.veth.is_up) and (not own or own.is_up))

    @property
    def endpoints(self) -> list[Endpoint]:
        """The container's addresses that have rules."""
        return [e for e in self.attachment.endpoints if e.address.family in self.attachment.families]


class Paths:
    """The host's links and addresses, and the path of each attachment."""

    def __init__(self, attachments: Iterable[Attachment]) -> None:
        self._attachments = [attachment for attachment in attachments if not attachment.is_network]

    @cached_property
    def links(self) -> dict[int, Link]:
        """The host's interfaces by index."""
        return {link.number: link for link in read_links()}

    @cached_property
    def by_name(self) -> dict[str, Link]:
        """The host's interfaces by name."""
        return {link.name: link for link in self.links.values()}

    @cached_property
    def addresses(self) -> list[LocalAddress]:
        """The host's addresses."""
        return read_addresses()

    @cached_property
    def local(self) -> set[Address]:
        """The host's addresses, without interfaces."""
        return {one.address for one in self.addresses}

    @cached_property
    def external(self) -> dict[int, tuple[str, ...]]:
        """The interfaces of the default route, by family."""
        return {family: default_route_interfaces(family) for family in (4, 6)}

    @cached_property
    def all(self) -> list[Path]:
        """The path of each attachment."""
        namespaces = sorted({attachment.netns for attachment in self._attachments if attachment.netns})
        seen = {path: _inside(answer) for path, answer in ask_in_namespaces(namespaces, _look_inside).items()}
        return [self._path(attachment, seen.get(attachment.netns)) for attachment in self._attachments]

    def _path(self, attachment: Attachment, inside: Inside | None) -> Path:
        recorded = next((e.host_interface for e in attachment.endpoints if e.host_interface), "")
        own = inside.links.get(attachment.id.interface) if inside else None
        veth = self.links.get(own.peer) if own and own.kind == "veth" else None
        if veth is not None and veth.kind != "veth":
            veth = None
        if veth is None or (recorded and recorded != veth.name):
            return Path(attachment, inside, veth, self.by_name.get(recorded), recorded)
        home = self.links.get(veth.master, veth)
        return Path(attachment, inside, veth, home, home.name)

    def gateway(self, home: Link, endpoint: Endpoint) -> LocalAddress | None:
        """Return the host's address on an interface that is in a container's subnet, None if there is none."""
        return next((one for one in self._of_link.get(home.number, ()) if endpoint.network.contains(one.address)), None)

    @cached_property
    def _of_link(self) -> dict[int, list[LocalAddress]]:
        """The host's addresses, by the index of the interface."""
        found: dict[int, list[LocalAddress]] = {}
        for one in self.addresses:
            found.setdefault(one.number, []).append(one)
        return found

    def routes(self) -> Routing:
        """Return a context manager for looking up routes."""
        return Routing()


def _look_inside() -> Any:
    """Describe the network namespace that this process is in, as JSON."""
    links = read_links()
    names = {link.number: link.name for link in links}
    with Routing() as routing:
        leads_out = [[family, not routing.look_up(address).error_number] for family, address in OUTSIDE.items()]
    return {
        "links": links,
        "addresses": [[names.get(one.number, ""), str(one.address)] for one in read_addresses()],
        "leadsOut": leads_out,
    }


def _inside(answer: dict[str, Any]) -> Inside:
    from .network import Link

    if "error" in answer:
        return Inside({}, set(), {}, answer["error"])
    told = answer["answer"]
    links = [Link(*fields) for fields in told["links"]]
    addresses = {(name, address) for name, address in told["addresses"]}
    return Inside({link.name: link for link in links}, addresses, {int(f): out for f, out in told["leadsOut"]}, "")


class Causes:
    """Causes with the containers that they affect: each cause is one finding, however many containers it affects."""

    def __init__(self) -> None:
        self._affected: dict[tuple[str, str, str, bool], list[str]] = {}

    def add(self, where: str, cause: str, remedy: str, affected: str, *, certain: bool = True) -> None:
        """Note a cause. affected: the container, as the finding names it."""
        found = self._affected.setdefault((where, cause, remedy, certain), [])
        if affected not in found:
            found.append(affected)

    def __iter__(self) -> Iterator[tuple[str, str, str, bool]]:
        for (where, cause, remedy, certain), affected in self._affected.items():
            others = f" and {len(affected) - 1} more" if len(affected) > 1 else ""
            yield where, f"{cause} (affects {affected[0]}{others})", remedy, certain
