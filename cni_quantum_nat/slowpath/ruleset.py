"""The fixed ruleset of table `inet quantum`, built through libnftables when it is not there.

Containers are elements of its sets and maps and never add a rule. docs/ruleset.md explains each chain.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from ..hotpath.errors import NOT_AVAILABLE, CniError
from ..hotpath.table import INTERFACE, SETS, TABLE, SetLayout, prefix_chain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nftables import Nftables

    from ..hotpath.rules import Element, Fields

# Ahead of Docker's, portmap's and kube-proxy's chains at -100 and 100: for a flow, the first NAT rule that
# matches is the only one, so a published port must not depend on who registered last.
_PRIORITY_IN = -110
_PRIORITY_OUT = 90
_REHEARSAL = f"{TABLE}_rehearsal"

_CHAINS = f"""
	chain guard {{
		comment "route_localnet is on for some interfaces: 127.0.0.0/8 stays on this host all the same"
		type filter hook prerouting priority raw; policy accept;
		iif != "lo" ip daddr 127.0.0.0/8 drop
		iif != "lo" ip saddr 127.0.0.0/8 drop
	}}
	chain guard_forward {{
		comment "what is published on 127.0.0.1 only is not reached by routing to the container either"
		type filter hook forward priority filter; policy accept;
		ct state new ct status ! dnat jump guard_new
	}}
	chain guard_new {{
		ip daddr . iifname @home4 return
		ip6 daddr . iifname @home6 return
		ip daddr . meta l4proto . th dport @loopback_only4 drop
		ip6 daddr . meta l4proto . th dport @loopback_only6 drop
	}}
	chain prerouting {{
		comment "only what is for this host: traffic that passes through it keeps its destination"
		type nat hook prerouting priority {_PRIORITY_IN}; policy accept;
		meta l4proto {{ tcp, udp, sctp }} fib daddr type local goto host_ports
	}}
	chain output {{
		type nat hook output priority {_PRIORITY_IN}; policy accept;
		meta l4proto {{ tcp, udp, sctp }} fib daddr type local goto host_ports
	}}
	chain host_ports {{
		comment "::1 cannot be routed to a container: left alone, it is refused at once"
		ip6 daddr ::1 return
		dnat ip to ip daddr . meta l4proto . th dport map @host_ip_ports4
		dnat ip to meta l4proto . th dport map @host_ports4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @host_ip_ports6
		dnat ip6 to meta l4proto . th dport map @host_ports6
	}}
	chain postrouting {{
		type nat hook postrouting priority {_PRIORITY_OUT}; policy accept;
		ct status dnat jump inbound
		meta nfproto vmap {{ ipv4 : goto outbound4, ipv6 : goto outbound6 }}
	}}
	chain inbound {{
		comment "scoped by the host port: other tables translate flows to the same containers"
{{inbound}}
		ip daddr vmap @networks4
		ip6 daddr vmap @networks6
	}}
	chain outbound4 {{
		ip saddr vmap @networks4
		ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} return
		snat ip to ip saddr . oifname map @snat_via4
		snat ip to ip saddr map @snat4
		ip saddr . oifname @masquerade_via4 masquerade
		ip saddr @masquerade4 masquerade
	}}
	chain outbound6 {{
		ip6 saddr vmap @networks6
		ip6 daddr ff00::/8 return
		snat ip6 to ip6 saddr . oifname map @snat_via6
		snat ip6 to ip6 saddr map @snat6
		ip6 saddr . oifname @masquerade_via6 masquerade
		ip6 saddr @masquerade6 masquerade
	}}
	chain own {{
		comment "source and destination share the container's subnet"
{{own}}
		accept
	}}
"""

_FAMILIES = (("ipv4", "ip", 4, 32), ("ipv6", "ip6", 6, 128))
_PROTOCOLS = ("tcp", "udp", "sctp")


def _scoped(set_name: str, condition: str = "") -> list[str]:
    """Masquerade rules for a container's host ports; nft wants the protocol said before `ct original proto-dst`."""
    return [
        f"\t\tmeta nfproto {nfproto} meta l4proto {protocol} {condition}"
        f"{ip} daddr . meta l4proto . ct original proto-dst @{set_name}{family} masquerade"
        for nfproto, ip, family, _ in _FAMILIES
        for protocol in _PROTOCOLS
    ]


def _chains() -> str:
    localhost = [rule for rule in _scoped("published", "ip saddr 127.0.0.0/8 ") if "ipv4" in rule]
    inbound = "\n".join(_scoped("masquerade_all") + localhost)
    own = "\n".join(f"\t\tct status dnat{rule[1:].replace(chr(9), ' ')}" for rule in _scoped("published"))
    return _CHAINS.replace("{inbound}", inbound).replace("{own}", own)


def _prefix_chains() -> str:
    """One chain for each prefix length: whether the other end, masked, is the container's subnet."""
    chains = []
    for _, ip, family, longest in _FAMILIES:
        for length in range(1, longest + 1):
            mask = ip_network((0, length) if family == 4 else (b"\0" * 16, length)).netmask
            chains.append(
                f"\tchain {prefix_chain(family, length)} {{\n"
                f"\t\t{ip} daddr . ( {ip} saddr & {mask} ) @subnets{family} goto own\n"
                f"\t\t{ip} saddr . ( {ip} daddr & {mask} ) @subnets{family} goto own\n"
                "\t}\n"
            )
    return "".join(chains)


def _declare(layout: SetLayout) -> str:
    kind = "map" if layout.data else "set"
    fields = " . ".join(layout.key) + (f" : {' . '.join(layout.data)}" if layout.data else "")
    counter = " counter;" if layout.counter else ""
    return f'\t{kind} {layout.name} {{ type {fields};{counter} comment "{layout.purpose}"; }}\n'


def table_text(name: str) -> str:
    """Return the table without elements, as nft reads it."""
    declared = "".join(_declare(layout) for layout in SETS.values())
    # Prefix chains jump to `own`, and are jumped to from maps only, so they come last.
    return f"table inet {name} {{\n{declared}{_chains()}{_prefix_chains()}}}\n"


def element_text(element: Element) -> str:
    """Return the command that adds an element, as nft reads it."""
    layout = SETS[element.set_name]
    data = ""
    if layout.data == ("verdict",):
        data = f" : jump {element.data[0]}"
    elif layout.data:
        data = f" : {_fields_text(layout.data, element.data)}"
    key = _fields_text(layout.key, element.key)
    return f'add element inet {TABLE} {element.set_name} {{ {key} comment "{element.owner}"{data} }}'


def _fields_text(kinds: tuple[str, ...], fields: Fields) -> str:
    return " . ".join(
        f'"{field}"' if kind == INTERFACE else str(field) for kind, field in zip(kinds, fields, strict=True)
    )


def build(elements: Iterable[Element]) -> None:
    """Build the table and its elements in one transaction, in place of what there is; CniError(50) when refused."""
    # "add, delete, add" replaces the table whether it is there or not.
    replacement = [f"add table inet {TABLE}", f"delete table inet {TABLE}", table_text(TABLE)]
    _run(replacement + [element_text(element) for element in elements])


def rehearse() -> None:
    """Let the kernel take the table under another name and drop it, in one transaction; CniError(50) when refused."""
    _run([table_text(_REHEARSAL), f"delete table inet {_REHEARSAL}"])


def _run(commands: list[str]) -> None:
    status, _, error = _libnftables().cmd("\n".join(commands) + "\n")
    if status:
        raise CniError(NOT_AVAILABLE, f"nftables cannot hold table inet {TABLE}", " ".join(error.split())[:1000])


def _libnftables() -> Nftables:
    from nftables import Nftables  # loads the library, which may not be installed

    try:
        return Nftables()
    except OSError as error:
        raise CniError(
            NOT_AVAILABLE, f"libnftables cannot be loaded: {error}", "Install it: apt-get install libnftables1."
        ) from error
