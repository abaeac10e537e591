"""How soon a fleet is back at its bound when what went wrong is over."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from tests.vendor.test_fleet import QUOTA, drive

BAD = 40.0
"""Seconds into the run, for `LASTING` seconds, in which every call is answered badly."""

LASTING = 10.0
WINDOW = 10.0
BOUND = QUOTA / 60.05
"""Calls a second that the quota, spared for 50 ms of jitter, allows."""


class Ailing:
    """A vendor that is well, ill for a while, and well again; it takes its time for good answers."""

    def __init__(self, latency: float, status: int, headers: dict[str, str]) -> None:
        self.accepted: list[float] = []
        self._latency, self._ill = latency, httpx2.Response(status, headers=headers)
        self._began = asyncio.get_running_loop().time()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        now = asyncio.get_running_loop().time() - self._began
        if BAD <= now < BAD + LASTING:
            return httpx2.Response(self._ill.status_code, headers=self._ill.headers, request=request)
        self.accepted.append(now)
        await asyncio.sleep(self._latency)
        return httpx2.Response(200, json={}, request=request)

    def recovered(self, since: float) -> float:
        """Seconds from then to the beginning of the first window that is used to 99 % of the bound."""
        for tenth in range(400):
            at = since + tenth / 10
            if sum(at <= when < at + WINDOW for when in self.accepted) >= 0.99 * BOUND * WINDOW:
                return tenth / 10
        return float("inf")


@pytest.mark.parametrize("latency", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("status", [429, 500])
async def test_a_fleet_is_back_at_its_bound_within_a_window(
    house: Any, latency: float, status: int
) -> None:
    """Ten pods, five times overloaded: from the end of the last pause, or when the breaker lets probes
    through. How long the vendor takes for an answer delays a breaker's probes, but no slow start."""
    headers = {"retry-after": "1"} if status == 429 else {}
    house.server.answer = vendor = Ailing(latency, status, headers)
    opens = "8s" if status == 500 else "1s"
    breaker = {"window": "10s", "min_calls": 20, "open_for": opens, "failure_ratio": 0.5}
    pods = [
        house.vendor(
            pod=f"pod-{number}",
            replicas=10,
            expected_latency=f"{latency}s",
            call_timeout="60s",
            breaker=breaker,
        )
        for number in range(10)
    ]
    await drive(pods, overload=5, seconds=BAD + LASTING + 60)
    probed = 2 * latency if status == 500 else 0.0
    assert vendor.recovered(BAD + LASTING) <= WINDOW + probed
    settled = [at for at in vendor.accepted if BAD + LASTING + 40 <= at < BAD + LASTING + 60]
    assert len(settled) >= 0.99 * BOUND * 20
