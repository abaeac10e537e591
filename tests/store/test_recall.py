"""What a process took of a vendor's quota is told to a store that has forgotten it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Standing, StoreDown
from headworks.store.recall import EXPIRES_MS, HAND_OVER
from headworks.store.valkey import ValkeyStore
from headworks.testing.cancel import cancel_at_every_await
from headworks.verdict import Verdict

GATE = Gate("{v}:gate", BreakerRules(0.5, 4, 10_000_000, 60_000_000, 2, 5_000_000))
HUNDRED = Window.of(100, 60, grains=60)
BURST = Bucket.of(100, 60, burst=100)


class Server(MemoryStore):
    """Forgets when it is told to; counts what it is told of quotas. `deaf`: reports get no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.deaf, self.delay = 0, False, 0.0

    def forget_all(self) -> None:
        MemoryStore.__init__(self)

    async def report(self, report: Report) -> Standing:
        if self.deaf:
            raise StoreDown("gone")
        await asyncio.sleep(self.delay)
        self.told += sum(change.units for change in report.corrections)
        return self.report_nowait(report)


def question(cost: int, shape: Shape = HUNDRED, gate: Gate | None = GATE) -> Question:
    return Question((Ask("quota", "{v}:q", shape, cost),), horizon=3.0, gate=gate)


def ladder(server: Any, number: int = 0) -> LadderStore:
    return LadderStore(server, rng=random.Random(number), when_down="closed")


def left(server: MemoryStore, shape: Shape = HUNDRED) -> int:
    return server.ask_nowait(Question((Ask("quota", "{v}:q", shape, 0),))).limits[0].remaining


async def _pods(server: Server, *costs: int, shape: Shape = HUNDRED) -> list[LadderStore]:
    """Ladders on that server, each of which has taken so much; a while has passed."""
    await asyncio.sleep(1)
    pods = [ladder(server, number) for number in range(len(costs))]
    for pod, cost in zip(pods, costs, strict=True):
        assert (await pod.ask(question(cost, shape))).allowed
    await asyncio.sleep(5)
    return pods


@pytest.mark.parametrize("shape", [HUNDRED, BURST])
async def test_a_store_that_has_forgotten_is_told_by_everyone_before_it_grants_again(
    shape: Shape,
) -> None:
    """The first to ask hears it, and waits until the one that asks nothing has told, too."""
    server = Server()
    asking, idle = await _pods(server, 40, 35, shape=shape)
    server.forget_all()
    refused = await asking.ask(question(1, shape))
    assert (refused.allowed, refused.retry_after, refused.degraded) == (False, HAND_OVER, True)
    assert 0 < (await asking.ask(question(1, shape))).retry_after <= HAND_OVER, "not asked at all"
    await asyncio.sleep(HAND_OVER)
    assert server.told == 75
    assert left(server, shape) <= 100 - 75 + 10, "a bucket has refilled a little"
    assert (await asking.ask(question(1, shape))).allowed
    for pod in (asking, idle):
        await pod.aclose()


async def test_who_goes_on_alone_waits_for_nobody_but_tells_all_the_same() -> None:
    """With "share" a store that has forgotten stops nobody; it hears of all with the next beat."""
    server = Server()
    pod = LadderStore(server, rng=random.Random(1), when_down="share")
    await asyncio.sleep(1)
    assert (await pod.ask(question(40))).allowed
    await asyncio.sleep(5)
    server.forget_all()
    assert [(await pod.ask(question(5))).allowed for _ in range(2)] == [True, True]
    await asyncio.sleep(HAND_OVER)
    assert server.told == 40
    assert left(server) == 50
    await pod.aclose()


async def test_what_no_longer_counts_is_not_told() -> None:
    server = Server()
    (pod,) = await _pods(server, 40)
    await asyncio.sleep(60)
    assert (await pod.ask(question(30))).allowed
    server.forget_all()
    await asyncio.sleep(HAND_OVER)
    assert server.told == 30
    await pod.aclose()


async def test_what_was_given_back_or_charged_since_is_told_as_it_was() -> None:
    server = Server()
    (pod,) = await _pods(server, 40)
    paid = await pod.ask(question(20, gate=None))  # booked anew, the gate having been passed
    for units in (5, -20):
        await pod.report(Report((Correction("{v}:q", HUNDRED, units, paid.at_us),)))
    server.forget_all()
    server.told = 0
    await asyncio.sleep(HAND_OVER)
    assert server.told == 45
    await pod.aclose()


async def test_a_charge_that_the_store_did_not_hear_is_charged_again_a_give_back_is_not() -> None:
    server = Server()
    (pod,) = await _pods(server, 40)
    paid = await pod.ask(question(20))
    server.deaf = True
    for units in (7, -9):
        await pod.report(Report((Correction("{v}:q", HUNDRED, units, paid.at_us),)))
    assert left(server) == 40
    server.deaf = False
    await asyncio.sleep(HAND_OVER)
    assert (server.told, left(server)) == (7, 33)
    await pod.aclose()


async def test_a_breaker_that_moves_is_no_sign_of_a_loss() -> None:
    server = Server()
    (pod,) = await _pods(server, 10)
    verdict = await pod.ask(question(1))
    for _ in range(4):
        await pod.report(Report(gate=GATE, ending=Ending.FAILED, epoch=verdict.epoch))
    opened = await pod.ask(question(1))
    assert (opened.degraded, opened.epoch) == (False, verdict.epoch + 1)
    await asyncio.sleep(HAND_OVER)
    assert server.told == 0
    await pod.aclose()


async def test_a_gate_that_ran_out_by_itself_makes_nobody_wait() -> None:
    server = Server()
    (pod,) = await _pods(server, 10)
    await asyncio.sleep(2 * EXPIRES_MS / 1000 + 60)
    assert (await pod.ask(question(1))).allowed
    await pod.aclose()


async def test_a_process_that_was_not_there_before_asks_at_once() -> None:
    server = Server()
    await asyncio.sleep(1)
    pod = ladder(server)
    assert (await pod.ask(question(100))).allowed
    await pod.aclose()


def test_a_telling_that_is_cancelled_anywhere_is_told_again() -> None:
    """What is in nobody's hands would be granted a second time."""
    world: dict[str, Any] = {}

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        server = Server()
        (pod,) = await _pods(server, 40)
        server.delay = 0.1
        server.forget_all()
        await pod.ask(question(1))
        world["pod"] = pod
        yield
        await pod.aclose()

    def remembered() -> int:
        limits = world["pod"]._recall._limits.values()
        return sum(sum((*taken.told.values(), *taken.untold.values())) for taken in limits)

    async def tell() -> None:
        await world["pod"]._tell_untold(known=False)

    assert cancel_at_every_await(tell, snapshot=remembered, around=around) >= 2


@pytest.mark.real
async def test_a_valkey_that_was_emptied_is_told(server: Any) -> None:
    pod, beside = ladder(ValkeyStore(server.url)), ValkeyStore(server.url)
    peek = Question((Ask("quota", "{v}:q", HUNDRED, 0),))
    try:
        async with asyncio.timeout(60):
            while not (await pod.ask(question(40))).allowed:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.01)  # an epoch is a millisecond
            server.client.flushall()
            lost: Verdict = await pod.ask(question(1))
            assert (lost.allowed, lost.degraded) == (False, True)
            while (await beside.ask(peek)).limits[0].remaining > 60:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await pod.aclose()
        await beside.aclose()
