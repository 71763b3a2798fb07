"""Times one container's ADD and DEL: quantum-nat (masquerade and one port) beside portmap (one port).

Calls alternate, so that the machine's moods fall on all alike; figures are medians, in milliseconds, of whole
processes from spawn to exit. Runs in a network namespace of its own, see conformance/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

PYTHON = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
NETNS_DIRECTORY = "/run/netns"
HOST_SETUP = (
    "mount -t tmpfs tmpfs /run/netns",
    "ip link set lo up",
    "ip link add cni0 type bridge",
    "ip address add 10.88.0.1/24 dev cni0",
    "ip link set cni0 up",
    "ip netns add container",
)

FLOWS = 1000
TRACKING = """table inet bench {
	chain output {
		type filter hook output priority 0
		ct state new accept
	}
}
"""


class Contender:
    """A plugin with a configuration, or a plain command."""

    def __init__(self, name: str, command: list[str], configuration: dict[str, object] | None = None) -> None:
        self.name = name
        self.command = command
        self.configuration = json.dumps(configuration).encode() if configuration else b""

    def call(self, verb: str) -> float:
        """Run it once, and return the milliseconds it took; CalledProcessError when it fails."""
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "bench",
            "CNI_NETNS": f"{NETNS_DIRECTORY}/container",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
        }
        start = time.perf_counter()
        subprocess.run(self.command, input=self.configuration, env=environment, check=True, capture_output=True)
        return (time.perf_counter() - start) * 1000


def configuration(protocol: str = "tcp", **keys: object) -> dict[str, object]:
    """Return the request of a container with one published port."""
    return {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "bench",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": protocol}]},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": f"{NETNS_DIRECTORY}/container"}],
            "ips": [{"address": "10.88.0.2/24", "interface": 0}],
        },
        **keys,
    }


def track_flows(count: int) -> None:
    """Let conntrack know so many UDP flows, as a host in use has: to forget some, the kernel looks at all."""
    subprocess.run(["nft", "-f", "-"], input=TRACKING, text=True, check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(b"", (f"127.1.{number // 250}.{1 + number % 250}", 9))


def measure(contenders: list[Contender], verbs: tuple[str, ...], pairs: int) -> dict[str, dict[str, list[float]]]:
    """Call all contenders in turn, `pairs` times after one warm-up; milliseconds by name and verb."""
    times: dict[str, dict[str, list[float]]] = {c.name: {verb: [] for verb in verbs} for c in contenders}
    for number in range(pairs + 1):
        for contender in contenders:
            for verb in verbs:
                took = contender.call(verb)
                if number:
                    times[contender.name][verb].append(took)
    return times


def summarise(times: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return median and quartiles."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, verbs in times.items():
        for verb, values in verbs.items():
            low, median, high = statistics.quantiles(values, n=4)
            summary.setdefault(name, {})[verb] = {"q1": low, "median": median, "q3": high}
    return summary


def report(summary: dict[str, dict[str, dict[str, float]]], ratios: dict[str, float]) -> None:
    """Print the table."""
    print(f"{'':<24}{'call':<10}{'median ms':>10}{'quartiles':>16}")
    for name, verbs in summary.items():
        for verb, figures in verbs.items():
            quartiles = f"{figures['q1']:.1f}-{figures['q3']:.1f}"
            print(f"{name:<24}{verb:<10}{figures['median']:>10.1f}{quartiles:>16}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")


def compare(summary: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return ratios of medians, against portmap's faster backend."""

    def median(name: str, verb: str) -> float:
        return summary[name][verb]["median"]

    def best_peer(verb: str) -> float:
        return min(median(name, verb) for name in summary if name.startswith("portmap"))

    return {
        "start (VERSION) / python3 -I -S -c pass": median("quantum-nat", "VERSION") / median("python3", "VERSION"),
        "ADD / portmap's faster ADD": median("quantum-nat", "ADD") / best_peer("ADD"),
        "UDP's ADD - TCP's ADD, ms": median("quantum-nat, udp", "ADD") - median("quantum-nat", "ADD"),
        "UDP's DEL - TCP's DEL, ms": median("quantum-nat, udp", "DEL") - median("quantum-nat", "DEL"),
        "DEL / portmap's faster DEL": median("quantum-nat", "DEL") / best_peer("DEL"),
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--portmap", required=True)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    for command in HOST_SETUP:
        Path(NETNS_DIRECTORY).mkdir(exist_ok=True)
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory() as state:
        ours = Contender("quantum-nat", [arguments.ours], configuration(stateDir=f"{state}/state"))
        peers = [
            Contender(f"portmap ({backend})", [arguments.portmap], configuration(backend=backend))
            for backend in ("nftables", "iptables")
        ]
        udp = Contender("quantum-nat, udp", [arguments.ours], configuration("udp", stateDir=f"{state}/state"))
        track_flows(FLOWS)
        starts = measure([ours, Contender("python3", PYTHON)], ("VERSION",), arguments.pairs)
        calls = measure([ours, udp, *peers], ("ADD", "DEL"), arguments.pairs)
    summary = summarise(calls)
    for name, verbs in summarise(starts).items():
        summary.setdefault(name, {}).update(verbs)
    ratios = compare(summary)
    report(summary, ratios)
    if arguments.json:
        arguments.json.write_text(json.dumps({"milliseconds": summary, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
