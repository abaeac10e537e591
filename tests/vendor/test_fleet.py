"""The promise, in small: all pods together use the whole quota and never exceed it.

Ten pods share one store, five times overloaded, one pod with half of the traffic; the vendor enforces
exactly, after a jitter on the way. Virtual time, so minutes pass in seconds. The control asks the same
judge without the limiter and must be rejected: a judge that never says no would prove nothing.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx2
import pytest

from headworks.current import Current, enter
from headworks.testing.fake_vendor.judge import Judge, Limit
from headworks.vendor import Vendor

MINUTES = 3
QUOTA = 600
JITTER = 0.05


class Enforcing:
    """Decides on arrival, `JITTER` seconds at most after a call was sent."""

    def __init__(self, mechanism: str) -> None:
        self.judge = Judge([Limit("requests", QUOTA, 60_000_000, mechanism)])
        self.rng = random.Random(3)
        self.accepted: list[float] = []
        self.rejected = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(self.rng.uniform(0.0, JITTER))
        now = asyncio.get_running_loop().time()
        if self.judge.decide({"requests": 1}, int(now * 1e6)).accepted:
            self.accepted.append(now)
            await asyncio.sleep(self.rng.uniform(0.2, 1.0))
            return httpx2.Response(200, json={}, request=request)
        self.rejected += 1
        return httpx2.Response(429, headers={"retry-after": "1"}, request=request)


async def drive(pods: list[Vendor], overload: float, seconds: float) -> list[int]:
    """Send at `overload` times the quota, half of it to the first pod; served calls by pod."""
    served = [0] * len(pods)
    rng = random.Random(5)

    async def one(pod: int, tenant: str) -> None:
        enter(Current(tenant=tenant))
        response = await pods[pod].client.post("/chat/completions", json={"model": "m"})
        served[pod] += response.status_code == 200

    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    async with asyncio.TaskGroup() as group:
        while loop.time() < ends:
            pod = 0 if rng.random() < 0.5 else rng.randrange(1, len(pods))
            group.create_task(one(pod, f"t{rng.randrange(20)}"))
            await asyncio.sleep(rng.expovariate(overload * QUOTA / 60))
    return served


@pytest.mark.parametrize("mechanism", ["bucket", "sliding", "fixed"])
async def test_ten_pods_use_the_quota_and_never_exceed_it(house: Any, mechanism: str) -> None:
    vendor = Enforcing(mechanism)
    house.server.answer = vendor
    profile = "openai" if mechanism == "bucket" else "generic"
    pods = [
        house.vendor(
            pod=f"pod-{number}",
            replicas=10,
            profile=profile,
            quota=[f"{QUOTA}/min"],
            queue_timeout="5s",
            expected_latency="1s",
            jitter=f"{JITTER}s",
        )
        for number in range(10)
    ]
    start = asyncio.get_running_loop().time()
    served = await drive(pods, overload=5, seconds=60 * MINUTES)
    within = [at for at in vendor.accepted if start + 60 <= at < start + 60 * (MINUTES - 1)]
    bound = 1.0 if mechanism == "bucket" else 60 / (60 + JITTER)
    utilisation = len(within) / (QUOTA * (MINUTES - 2)) / bound
    questions = len(house.store.asked) + len(house.store.told)
    assert vendor.rejected == 0
    assert utilisation >= 0.99
    assert questions / sum(served) <= 3.5
    assert served[0] / sum(served) >= 0.45


async def test_without_the_limiter_the_same_judge_rejects(house: Any) -> None:
    vendor = Enforcing("sliding")
    house.server.answer = vendor
    pod = house.vendor(quota=["600000/min"], slots=10_000, breaker={"min_calls": 100_000})
    await drive([pod, pod], overload=3, seconds=90)
    assert vendor.rejected > 0
