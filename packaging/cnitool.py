"""A runtime for the quickstart: it calls the plugins of a configuration list as cnitool and libcni do, and needs no compiler.

cnitool.py add|check|del NETWORK NETNS, with cnitool's environment: CNI_PATH, NETCONFPATH, CAP_ARGS, CNI_IFNAME. libcni keeps the results of ADD
in /var/lib/cni for CHECK and DEL; this keeps them in the directory that CNI_CACHE names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

VERBS = {"add": "ADD", "check": "CHECK", "del": "DEL"}


class Failed(Exception):
    """A call cannot be made, or a plugin refused it."""


def read_list(network: str) -> dict[str, Any]:
    """Return the configuration list of this name."""
    directory = Path(os.environ["NETCONFPATH"])
    for file in sorted(directory.glob("*.conflist")):
        found: dict[str, Any] = json.loads(file.read_text())
        if found["name"] == network:
            return found
    raise Failed(f"no list in {directory} has the name {network}")


def configuration(plugin: dict[str, Any], conflist: dict[str, Any], result: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a plugin reads on standard input: its own part of the list, and what libcni adds."""
    given = json.loads(os.environ.get("CAP_ARGS") or "{}")
    wanted = {name: given[name] for name, is_on in plugin.get("capabilities", {}).items() if is_on and name in given}
    complete = {**plugin, "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    if wanted:
        complete["runtimeConfig"] = wanted
    if result is not None:
        complete["prevResult"] = result
    return complete


def call(verb: str, netns: str, content: dict[str, Any]) -> str:
    """Run a plugin, and return what it printed."""
    program = shutil.which(content["type"], path=os.environ["CNI_PATH"])
    if program is None:
        raise Failed(f"no plugin {content['type']} in {os.environ['CNI_PATH']}")
    digest = hashlib.sha512(netns.encode()).digest()
    variables = {
        "CNI_COMMAND": VERBS[verb],
        "CNI_CONTAINERID": f"cnitool-{digest[:10].hex()}",
        "CNI_NETNS": netns,
        "CNI_ARGS": "",
        "CNI_IFNAME": os.environ.get("CNI_IFNAME", "eth0"),
    }
    done = subprocess.run(
        [program],
        env={**os.environ, **variables},
        input=json.dumps(content),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(
            f"plugin {content['type']} failed ({VERBS[verb]}, exit status {done.returncode}): {done.stdout.strip()}"
        )
    return done.stdout


def run(verb: str, network: str, netns: str) -> None:
    """Call every plugin of the list, for DEL the last one first."""
    conflist = read_list(network)
    netns = os.path.abspath(netns)  # noqa: PTH100 - as it is written, links and all: the ID is made of it
    name = "-".join((network, *Path(netns).parts[1:], os.environ.get("CNI_IFNAME", "eth0")))
    kept = Path(os.environ["CNI_CACHE"], f"{name}.json")
    if verb == "add":
        result: dict[str, Any] | None = None
        for plugin in conflist["plugins"]:
            result = json.loads(call(verb, netns, configuration(plugin, conflist, result)))
        answer = json.dumps(result, indent=4)
        kept.write_text(answer)
        print(answer)  # noqa: T201 - the answer
        return
    result = json.loads(kept.read_text()) if kept.exists() else None
    for plugin in conflist["plugins"] if verb == "check" else reversed(conflist["plugins"]):
        call(verb, netns, configuration(plugin, conflist, result))
    if verb == "del":
        kept.unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in VERBS:
        sys.exit("usage: cnitool.py add|check|del NETWORK NETNS")
    try:
        run(*sys.argv[1:])
    except Failed as error:
        sys.exit(f"cnitool.py: {error}")
