"""Hosts as network namespaces on one bridge: a link that goes down is a partition, a token bucket a slow line."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SUBNET = "10.231.7"


def run(*command: str) -> str:
    """The output of a command. Raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str | None:
    """Why this machine cannot have namespaces; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"there is no command {missing[0]} (Debian: iproute2)"
    try:
        with network("probe") as hosts:
            hosts.slow("probe", "1mbit")
    except RuntimeError as error:
        return str(error)
    return None


@dataclass
class Hosts:
    """Running hosts by name."""

    names: tuple[str, ...]
    mark: str = field(default_factory=lambda: f"{os.getpid() % 46656:x}")

    @property
    def bridge(self) -> str:
        return f"br{self.mark}"

    def namespace(self, name: str) -> str:
        return f"st-{self.mark}-{name}"

    def address(self, name: str) -> str:
        return f"{SUBNET}.{self.names.index(name) + 1}"

    def port(self, name: str) -> str:
        """The end of a host's cable at the bridge."""
        return f"v{self.mark}-{self.names.index(name)}"

    def link(self, name: str, *, up: bool) -> None:
        run("ip", "link", "set", self.port(name), "up" if up else "down")

    def slow(self, name: str, rate: str) -> None:
        """Let at most `rate` through in each direction."""
        shape = ("root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms")
        run("tc", "qdisc", "add", "dev", self.port(name), *shape)
        run("ip", "netns", "exec", self.namespace(name), "tc", "qdisc", "add", "dev", "eth0", *shape)

    def held_back(self, name: str) -> int:
        """How often the token bucket had no token for what the host wanted to send."""
        said = run("ip", "netns", "exec", self.namespace(name), "tc", "-s", "qdisc", "show", "dev", "eth0")
        return int(said.split("overlimits ")[1].split()[0])

    def make(self) -> None:
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "link", "set", self.bridge, "up")
        for name in self.names:
            inside = self.namespace(name)
            run("ip", "netns", "add", inside)
            run("ip", "link", "add", self.port(name), "type", "veth", "peer", "name", "eth0", "netns", inside)
            run("ip", "link", "set", self.port(name), "master", self.bridge, "up")
            for command in (
                f"addr add {self.address(name)}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
            ):
                run("ip", "-n", inside, *command.split())

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)


@contextmanager
def network(*names: str) -> Iterator[Hosts]:
    """These hosts, for as long as the block lasts."""
    hosts = Hosts(names)
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()
