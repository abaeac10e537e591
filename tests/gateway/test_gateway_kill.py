"""Real pods, each a process that `headworks serve` runs, and a real kill -9 of one: no read is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from tests.gateway.conftest import Edge, policy_with, run

from headworks.gateway.shares import Address
from headworks.local.gateways import GATEWAYS
from headworks.local.parts import LOOPBACK
from headworks.local.probe import free_ports, http_status, wait_until

pytestmark = pytest.mark.real

PATIENCE = 60.0
"""Seconds after which something has not happened."""
WIDE = {"per_ip_rate": "50000/s", "per_ip_connections": 1000, "total_rate": "50000/s"}
POLICY = """
schema = 1
[service]
name = "pod"
app = "pod_app:app"
[management]
port = 0
[fairness]
default_tier = "free"
tiers.free = { rate = "1000000/min" }
"""
APP = """
import asyncio, os, pathlib, uuid
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from headworks import Headworks

HERE, POD = pathlib.Path(__file__).parent, os.environ["HEADWORKS_POD"]

async def held(request):
    (HERE / f"{POD}-{uuid.uuid4()}.held").touch()
    while not (HERE / "go").exists():
        await asyncio.sleep(0.02)
    return PlainTextResponse(POD)

async def name(request):
    return PlainTextResponse(POD)

works = Headworks.load()
app = works.protect(Starlette(routes=[Route("/held", held), Route("/x", name)]))
"""


class Pod:
    """One pod, in a process of its own."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.name, self.address, self._folder = name, Address(LOOPBACK, port), folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        argv = (sys.executable, "-m", "headworks", "serve", "--policy", "headworks.toml")
        where = ("--host", LOOPBACK, "--port", str(self.address.port))
        with (self._folder / f"{self.name}.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                *where,
                cwd=self._folder,
                env={**os.environ, "HEADWORKS_POD": self.name},
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        """kill -9, and nothing before it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def ready(self) -> bool:
        return await http_status(*self.address, "/ready") == 200

    def holds(self) -> int:
        return len(list(self._folder.glob(f"{self.name}-*.held")))


@pytest.mark.parametrize("product", ["nginx", "envoy"])
async def test_a_real_kill_of_a_pod_costs_no_read(product: str, tmp_path: Path) -> None:
    """It dies with reads in its hands: siblings answer those, and all that come after."""
    (tmp_path / "headworks.toml").write_text(POLICY)
    (tmp_path / "pod_app.py").write_text(APP)
    async with AsyncExitStack() as stack:
        port, *ports = free_ports(LOOPBACK, 4, random.Random())
        pods = [Pod(f"pod-{number}", port, tmp_path) for number, port in enumerate(ports)]
        for pod in pods:
            stack.push_async_callback(pod.kill)
            await pod.start()
        for pod in pods:
            assert await wait_until(pod.ready, timeout=PATIENCE)
        edge = Edge(GATEWAYS[product], port, pods, stack)  # type: ignore[arg-type]  # it asks for addresses alone
        await run(edge, tmp_path, policy_with(request_timeout="120s", **WIDE), stack)
        assert await wait_until(lambda: _up(edge), timeout=PATIENCE)
        client = await edge.client()
        client.timeout = PATIENCE

        async def answers_of(wanted: set[str]) -> bool:
            seen = [await client.get("/x") for _ in range(12)]
            return {a.text for a in seen} == wanted and {a.status_code for a in seen} == {200}

        names = {pod.name for pod in pods}
        assert await wait_until(lambda: answers_of(names), timeout=PATIENCE)
        reads = [asyncio.create_task(client.get("/held")) for _ in range(15)]
        assert await wait_until(lambda: _true(sum(p.holds() for p in pods) == 15), timeout=PATIENCE), (
            "every read is in a pod's hands"
        )
        dies = max(pods, key=Pod.holds)
        held = dies.holds()
        await dies.kill()
        after = [await client.get("/x") for _ in range(60)]
        assert Counter(a.status_code for a in after) == {200: 60}
        assert {a.text for a in after} <= names - {dies.name}
        (tmp_path / "go").touch()
        done = await asyncio.gather(*reads)
        assert Counter(a.status_code for a in done) == {200: 15}
        assert sum(p.holds() for p in pods) == 15 + held, "its reads were offered once more"
        await dies.start()
        assert await wait_until(lambda: answers_of(names), timeout=PATIENCE)


async def _up(edge: Edge) -> bool:
    return await edge.health() == 200


async def _true(value: bool) -> bool:
    return value
