"""The fleet as ten processes: the shipped stack, a Valkey and vendors that judge, on loopback.

Calls come over HTTP, go through the application that `protect` stands around, and leave through the
vendor's client. A vendor is a process of its own, which knows no policy; it lets every call travel for
a random part of the jitter before it counts it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from bench.contract.cells import PODS, Cell
from bench.core.server import Server
from bench.stage import ROOT, Missing, Stack, client, headworks, running, stop
from headworks.current import current
from headworks.local import probe
from headworks.local.parts import LOOPBACK

POLICY = ROOT / "bench" / "pod" / "contract.toml"
JITTER = 0.05
"""Seconds that a call may travel, at most; the pods' policy reckons with twice as much, since they may
be late themselves."""
LATENCY = "uniform:200ms:1s"
SEEDS = random.Random()

SLIDING = Cell("sliding 10 s", "sliding", 10.0, JITTER)
BUCKET = Cell("bucket 1 s", "bucket", 1.0, JITTER)
VENDORS = {"sliding": SLIDING, "eager": SLIDING, "bucket": BUCKET}
"""The policy's vendors, and what judges them: two of them are paced differently against the same one."""

MECHANISMS = ROOT / "bench" / "pod" / "mechanisms.toml"
COUNTED = {
    "bucket-60": Cell("bucket 60 s", "bucket", 60.0, JITTER),
    "bucket-1": BUCKET,
    "sliding-60": Cell("sliding 60 s", "sliding", 60.0, JITTER),
    "sliding-10": SLIDING,
    "still": Cell("sliding 10 s, 0 ms", "sliding", 10.0, 0.0),
    "shaken": Cell("sliding 10 s, 250 ms", "sliding", 10.0, 0.25),
    "fixed-60": Cell("fixed 60 s", "fixed", 60.0, JITTER),
    "tokens": Cell("tokens", "sliding", 60.0, JITTER, tokens=1_260_000),
    "eager": SLIDING,
}
"""The same of the policy in which every mechanism has a vendor; the last is a control."""


class Crowd:
    """Who sends: through pods at a vendor, or past the limiter in the same pods.

    aborting  the part of the callers that leave within a second or so; of the answers that begin, as
              streams then, the part that is left at its first piece
    """

    def __init__(
        self, vendor: str, cell: Cell, clients: list[httpx2.AsyncClient], *, unlimited: bool = False
    ) -> None:
        self.cell, self.aborting = cell, 0.0
        self._clients = clients
        self._path = f"/send/{vendor}" + ("?unlimited=true" if unlimited else "")

    async def send(self, pod: int, tokens: int) -> int:
        """One call; its status, 0 where nobody answered."""
        said = {"role": "user", "content": "hi"}
        body = {"model": "m", "messages": [said], "max_tokens": tokens, "stream": self.aborting > 0}
        leaves = random.random() < self.aborting
        key = {"x-api-key": current().tenant}
        try:
            call = self._clients[pod].stream("POST", self._path, json=body, headers=key)
            async with call as answer:
                async for _ in answer.aiter_raw():
                    if leaves:
                        break
                return answer.status_code
        except httpx2.TransportError:
            return 0


class Processes:
    """The stack, the vendors beside it, and a way to each pod.

    stores  the ports at which pods find the store
    """

    def __init__(
        self,
        stack: Stack,
        vendors: Mapping[str, Cell],
        judges: dict[str, int],
        clients: list[httpx2.AsyncClient],
    ) -> None:
        self.stack, self.clients, self._vendors, self._judges = stack, clients, vendors, judges
        port = httpx2.URL(stack.part("valkey").url).port or 0
        self.store = Server(port)
        self.stores = {port}

    def crowd(self, vendor: str, *, unlimited: bool = False) -> Crowd:
        return Crowd(vendor, self._vendors[vendor], self.clients, unlimited=unlimited)

    def judge(self, vendor: str) -> int:
        """The port of the one who judges that vendor's calls."""
        return self._judges[self._vendors[vendor].name]

    async def told(self, vendor: str, path: str = "/stats", **change: Any) -> dict[str, Any]:
        """What the judge says; or what it answers to a change."""
        url = f"http://{LOOPBACK}:{self.judge(vendor)}{path}"
        async with client() as asking:
            answer = await (asking.post(url, json=change) if change else asking.get(url))
            found: dict[str, Any] = answer.json()
            return found

    def trips(self) -> int:
        """Scripts that Valkey has run so far, but for the beats by which pods count one another."""
        told: dict[str, Any] = self.store.client.info("commandstats")  # type: ignore[assignment]
        calls = {
            name: told.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "zcard")
        }
        return int(calls["evalsha"] - calls["zcard"])

    async def looks(self) -> list[dict[str, Any]]:
        """What every pod holds, and what it heard since it was last asked."""
        async with client() as asking:
            return [(await asking.get(f"{pod.url}/look")).json() for pod in self.stack.pods()]


@asynccontextmanager
async def processes(
    environ: Mapping[str, str] | None = None,
    *,
    vendors: Mapping[str, Cell] = VENDORS,
    policy: Path = POLICY,
) -> AsyncIterator[Processes]:
    """Ten pods under that policy, which has these vendors, ended with the context; what `environ` says
    stands over it."""
    async with AsyncExitStack() as raised:
        judges: dict[str, int] = {}
        for cell in vendors.values():
            if cell.name not in judges:
                judges[cell.name] = await raised.enter_async_context(_judge(cell))
        urls = (f"{name}=http://{LOOPBACK}:{judges[cell.name]}/v1" for name, cell in vendors.items())
        options = [part for url in urls for part in ("--vendor-url", url)]
        started = running("--pods", str(PODS), *options, environ=environ, policy=policy)
        stack = await raised.enter_async_context(started)
        clients = [await raised.enter_async_context(client(base_url=pod.url)) for pod in stack.pods()]
        yield Processes(stack, vendors, judges, clients)


@asynccontextmanager
async def _judge(cell: Cell) -> AsyncIterator[int]:
    """A vendor that counts as the cell says; its port."""
    port = probe.free_ports(LOOPBACK, 1, SEEDS)[0]
    rate = ("--tokens", f"{cell.tokens}/min") if cell.tokens else ("--limit", f"{cell.per_minute}/min")
    counts = ("--mechanism", cell.mechanism, *rate)
    if cell.mechanism == "bucket":
        counts += ("--burst", str(round(cell.per_minute * cell.window / 60)))
    else:
        counts += ("--window", f"{cell.window:g}s")
    travel = ("--arrival-jitter", f"0ms:{cell.jitter * 1000:g}ms", "--latency", LATENCY)
    process = await headworks("fake-vendor", "--port", str(port), *counts, *travel)
    try:
        if not await probe.wait_until(lambda: _answers(port), timeout=20.0):
            raise Missing("the vendor did not start")
        yield port
    finally:
        await stop(process)


async def _answers(port: int) -> bool:
    return await probe.http_status(LOOPBACK, port, "/stats") == 200
