"""Quotas per day: counted and not spaced out, on the vendor's calendar where it has one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headworks.errors import VendorQuota
from headworks.testing.fake_vendor import FakeVendor, InProcess, limit
from headworks.vendor import REFUSED

LATE = datetime(2026, 1, 31, 22, tzinfo=UTC)
PATH = "/chat/completions"
ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


class Day:
    """A vendor that allows twenty calls from midnight to midnight, two hours before one."""

    def __init__(self, house: Any, **settings: Any) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.fake = FakeVendor(
            [limit("20/day", mechanism="fixed"), limit("600/min", mechanism="sliding")],
            wall=lambda: LATE.timestamp() + loop.time() - began,
        )
        house.server = InProcess(self.fake)
        quota = {"quota": ["20/day", "600/min"]} | settings
        self.vendor = house.vendor(**quota, now=lambda: LATE + timedelta(seconds=loop.time() - began))

    async def served(self, calls: int) -> int:
        answers = await asyncio.gather(*(self.vendor.client.post(PATH, json=ASK) for _ in range(calls)))
        self.refusals = [a.extensions[REFUSED] for a in answers if a.status_code != 200]
        return calls - len(self.refusals)


async def test_a_day_is_used_up_as_fast_as_the_minute_allows_and_starts_anew_at_midnight(
    house: Any,
) -> None:
    day = Day(house, day="UTC")
    start = asyncio.get_running_loop().time()
    assert await day.served(20) == 20
    assert asyncio.get_running_loop().time() - start < 3, "a quota per day is not spaced out"
    assert await day.served(3) == 0
    assert all(isinstance(refusal, VendorQuota) for refusal in day.refusals)
    for refusal in day.refusals:
        assert refusal.retry_after == pytest.approx(2 * 3600, abs=10), "not when it was spent, plus 24 h"
    await asyncio.sleep(2 * 3600 + 3)
    assert await day.served(20) == 20
    assert not day.fake.ledger.rejected


async def test_without_a_calendar_a_day_is_any_24_hours(house: Any) -> None:
    """The strict reading keeps every calendar's contract, but lets the new day's quota wait."""
    day = Day(house)
    assert await day.served(20) == 20
    await asyncio.sleep(2 * 3600 + 3)
    assert await day.served(3) == 0
    await asyncio.sleep(23 * 3600)
    assert await day.served(20) == 20
    assert not day.fake.ledger.rejected


async def test_around_midnight_a_call_counts_on_both_days(house: Any) -> None:
    """One that is granted before and arrives after must not find the new day used up by others."""
    day = Day(house, day="UTC")
    await asyncio.sleep(2 * 3600 - 2)
    assert await day.served(15) == 15
    await asyncio.sleep(4)
    assert await day.served(10) == 5
    assert not day.fake.ledger.rejected


async def test_tokens_of_a_day_are_settled_on_it(house: Any) -> None:
    day = Day(house, day="UTC", quota=["1000 tokens/day"])
    async with day.vendor.call(tokens=900) as call:
        call.settle(tokens=100)
    await house.reaper.drain(1)
    async with day.vendor.call(tokens=900):
        pass
    with pytest.raises(VendorQuota):
        async with day.vendor.call(tokens=100):
            pass


async def test_who_has_a_booking_is_not_turned_away_with_those_who_get_none(house: Any) -> None:
    """Bookings lie ahead: when the quota ends, those at the head of the line still have theirs."""
    day = Day(house, day="UTC")
    assert await day.served(25) == 20


async def test_pods_share_a_day(house: Any) -> None:
    one = Day(house, day="America/Los_Angeles", replicas=2, pod="p1")
    two = Day(house, day="America/Los_Angeles", replicas=2, pod="p2")
    served = await asyncio.gather(one.served(15), two.served(15))
    assert sum(served) == 20
