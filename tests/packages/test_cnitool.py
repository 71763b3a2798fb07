"""The quickstart's runtime, over plugins that write down what they were called with: as cnitool v1.3.0 calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUNTIME = Path(__file__).parents[2] / "packaging" / "cnitool.py"
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}
# Writes down its call; the second one refuses what has "refuse" in its configuration.
PLUGIN = f"""#!/usr/bin/python3
import json, os, sys
configuration = json.load(sys.stdin)
variables = {{key: value for key, value in os.environ.items() if key.startswith("CNI_") and key != "CNI_CACHE"}}
with open(os.environ["LOG"], "a") as log:
    print(json.dumps([variables, configuration]), file=log)
if configuration.get("refuse"):
    sys.exit(print(json.dumps({{"code": 100, "msg": "no room"}})) or 1)
if os.environ["CNI_COMMAND"] == "ADD":
    print(json.dumps(configuration.get("prevResult") or {RESULT!r}))
"""


class Runtime:
    """The runtime with two plugins; `extra` is the second one's configuration."""

    def __init__(self, directory: Path, **extra: Any) -> None:
        self.directory = directory
        for name in ("bin", "net.d", "cache"):
            (directory / name).mkdir()
        for name in ("one", "two"):
            (directory / "bin" / name).write_text(PLUGIN)
            (directory / "bin" / name).chmod(0o755)
        capabilities = {"portMappings": True, "bandwidth": True, "mac": False}
        plugins = [{"type": "one", "a": 1}, {"type": "two", "capabilities": capabilities, **extra}]
        conflist = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
        (directory / "net.d/10.conflist").write_text(json.dumps(conflist))

    def run(self, verb: str, network: str = "net") -> subprocess.CompletedProcess[str]:
        variables = {
            "LOG": str(self.directory / "log"),
            "CNI_PATH": str(self.directory / "bin"),
            "NETCONFPATH": str(self.directory / "net.d"),
            "CNI_CACHE": str(self.directory / "cache"),
            "CAP_ARGS": json.dumps({"portMappings": [{"hostPort": 1}], "mac": "x"}),
        }
        line = [sys.executable, str(RUNTIME), verb, network, "/run/netns/x"]
        return subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True, check=False)

    def calls(self) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """Return the variables and the configuration of each call since the last question."""
        log = self.directory / "log"
        found = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
        log.unlink()
        return found


@pytest.mark.parametrize(("verb", "order"), [("check", ["one", "two"]), ("del", ["two", "one"])])
def test_each_plugin_gets_the_result_of_add(tmp_path: Path, verb: str, order: list[str]) -> None:
    runtime = Runtime(tmp_path)
    added = runtime.run("add")
    assert json.loads(added.stdout) == RESULT
    (_, one), (variables, two) = runtime.calls()
    assert "prevResult" not in one
    assert (two["name"], two["cniVersion"], two["prevResult"]) == ("net", "1.0.0", RESULT)
    assert two["runtimeConfig"] == {"portMappings": [{"hostPort": 1}]}
    assert variables == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "cnitool-55e2cecc95014b0f7fc4",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "",
        "CNI_PATH": str(tmp_path / "bin"),
    }
    assert runtime.run(verb).returncode == 0
    calls = runtime.calls()
    assert [configuration["type"] for _, configuration in calls] == order
    assert all(configuration["prevResult"] == RESULT for _, configuration in calls)
    assert bool(list((tmp_path / "cache").iterdir())) == (verb == "check")


def test_what_a_plugin_refuses_is_said(tmp_path: Path) -> None:
    done = Runtime(tmp_path, refuse=True).run("add")
    assert done.returncode == 1
    assert "plugin two failed (ADD, exit status 1)" in done.stderr
    assert "no room" in done.stderr
    assert not list((tmp_path / "cache").iterdir())


def test_a_list_or_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    assert "has the name other" in runtime.run("add", "other").stderr
    (tmp_path / "bin/two").unlink()
    assert "no plugin two in" in runtime.run("add").stderr
