"""A rolling restart under load: every pod told to go, one after the other, and nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bench.claims import Claim, Control, Figure
from bench.pressure import drive
from bench.stage import Missing, Stack, Stage, client, running
from headworks.local import parts, probe
from headworks.local.load.outcome import Kind, judge
from headworks.local.load.wire import Answer

PODS = 3
BACK = 60.0
"""Seconds within which a restarted pod must be ready again: its requests in flight come first."""
SEEN = 1.0
"""Seconds that the gateway gets to see that a pod is back before the next one is told to go."""
STREAMERS = tuple(f"enterprise-{n}" for n in range(1, 4)) + tuple(f"pro-{n}" for n in range(1, 6))
EVERY = 4.0
"""Seconds between two streams of one customer: well below what its limit allows."""


@dataclass
class Round:
    """What became of everything asked during one round of restarts.

    lost     requests of `headworks load` that were not served
    streams  how streams ended: "served", or the kind and reason of another end
    seconds  how long each pod was away
    """

    lost: int = 0
    sent: int = 0
    streams: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    decisions: list[Any] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """Streams that ended without an end: neither complete nor with an event that says why."""
        return sum(count for end, count in self.streams.items() if end not in ("served", "pod-leaving"))


async def rolling(stage: Stage) -> Claim:
    """SIGTERM to three pods, one after the other, under load; then the same with SIGKILL."""
    async with running("--pods", str(PODS)) as stack:
        told = await _round(stage, stack, signal.SIGTERM)
        killed = await _round(stage, stack, signal.SIGKILL)
    return Claim(
        "rolling",
        "three pods are restarted one after the other under load: no request fails, and every stream "
        "comes to its end or to an event that says why",
        (
            Figure(
                "requests not served and streams broken off",
                told.lost + told.broken,
                "==",
                0,
                Control("the pods killed instead", killed.lost + killed.broken),
            ),
            Figure("streams that were open", sum(told.streams.values()), ">=", PODS),
            Figure("pods restarted", len(told.seconds), "==", PODS),
        ),
        {name: vars(one) for name, one in (("told", told), ("killed", killed))},
    )


async def _round(stage: Stage, stack: Stack, number: signal.Signals) -> Round:
    """Restart every pod once while customers ask and stream; returns when all of them are answered."""
    found, over = Round(), asyncio.Event()
    seconds = 30 if stage.quick else 45
    loading = asyncio.ensure_future(drive(stage, stack, "steady", seconds, "--rate", "5"))
    streaming = [asyncio.ensure_future(_streams(stack, key, over, found)) for key in STREAMERS]
    try:
        await asyncio.sleep(EVERY / 2)
        for pod in stack.pods():
            found.seconds.append(await restart(stack, pod.name, number))
            await asyncio.sleep(SEEN)
        report = await loading
        over.set()
        await asyncio.gather(*streaming)
    finally:
        over.set()
        for task in (loading, *streaming):
            task.cancel()
        await asyncio.gather(loading, *streaming, return_exceptions=True)
    found.sent = sum(crowd["sent"] for crowd in report["crowds"])
    found.lost = found.sent - sum(crowd["served"] for crowd in report["crowds"])
    found.decisions = report["decisions"]
    return found


async def restart(stack: Stack, name: str, number: signal.Signals) -> float:
    """End one pod and wait until its successor is ready; seconds that took."""
    part = stack.part(name)
    if part.pid is None:
        raise Missing(f"{name} was not running")
    port = httpx2.URL(part.url).port or 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    os.kill(part.pid, number)

    async def back() -> bool:
        if stack.part(name).pid in (None, part.pid):
            return False
        return await probe.http_status(parts.LOOPBACK, port, "/ready") == 200

    if not await probe.wait_until(back, timeout=BACK):
        raise Missing(f"{name} was not back within {BACK:g} s")
    return round(loop.time() - began, 2)


async def _streams(stack: Stack, key: str, over: asyncio.Event, found: Round) -> None:
    """One customer who asks for a stream again and again, on an address of its own."""
    address = f"127.0.4.{STREAMERS.index(key) + 1}"
    async with client(address, base_url=stack.url) as asking:
        await asyncio.sleep(EVERY * STREAMERS.index(key) / len(STREAMERS))
        while not over.is_set():
            found.streams[await _stream(asking, key)] += 1
            try:
                async with asyncio.timeout(EVERY):
                    await over.wait()
            except TimeoutError:
                pass


async def _stream(asking: httpx2.AsyncClient, key: str) -> str:
    """How one stream ended: "served", the reason of a refusal, or how it broke."""
    call = {"message": "Describe a weir.", "stream": True}
    try:
        answer = await asking.post("/chat", json=call, headers={"X-API-Key": key})
    except httpx2.TransportError as error:
        return type(error).__name__
    kind = answer.headers.get("content-type", "").partition(";")[0]
    outcome = judge(Answer(answer.status_code, kind, answer.content))
    return "served" if outcome.kind is Kind.SERVED else outcome.reason
