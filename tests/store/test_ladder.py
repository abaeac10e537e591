"""The ladder in virtual time, over a store that fails as it is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Window
from headworks.store.ladder import FAILURES, LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Census, Correction, Gate, Question, Report, Standing, StoreDown
from headworks.verdict import Blocked, Verdict

GATE = Gate("g", BreakerRules(0.5, 4, 10_000_000, 60_000_000, 2, 5_000_000))
TEN = Window.of(10, 60)


class Moody(MemoryStore):
    """Answers, after `delay` seconds; raises `error` instead, where there is one; `others` ask it. One
    that is `read_only` answers whatever takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.read_only = False
        self.delay, self.error, self.asked, self.others = 0.0, None, 0, 0
        self.before: Callable[[], None] = lambda: None

    async def _mood(self) -> None:
        self.asked += 1
        self.before()
        await self._answer()

    async def _answer(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.error:
            raise self.error

    async def ask(self, question: Question) -> Verdict:
        await self._mood()
        if self.read_only and any(ask.cost for ask in question.asks):
            raise StoreDown("READONLY You can't write against a read only replica.")
        return self.ask_nowait(question)

    async def report(self, report: Report) -> Standing:
        await self._mood()
        return self.report_nowait(report)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> bool:
        await self._mood()
        return await super().lease(key, holder=holder, limit=limit, ttl=ttl)

    async def release(self, key: str, *, holder: str) -> None:
        await self._mood()
        await super().release(key, holder=holder)

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        await self._answer()
        there, known = await super().census(group, process=process, ttl=ttl)
        return Census(self.others + there, known)


def ladder(inner: Moody, **more: Any) -> LadderStore:
    return LadderStore(inner, rng=random.Random(1), **more)


def one(key: str = "k", shape: Any = TEN, cost: int = 1, **more: Any) -> Question:
    return Question((Ask("limit", key, shape, cost),), **more)


async def test_a_limit_that_has_room_again_begins_with_a_unit_when_the_store_goes() -> None:
    """What the store said last counts: nothing was left, then something was."""
    inner = Moody()
    store = ladder(inner)
    single = Window.of(1, 60)
    assert (await store.ask(one(shape=single))).allowed
    await asyncio.sleep(61)
    assert (await store.ask(one(shape=single, cost=0))).limits[0].remaining == 1
    await _down(store, inner)
    assert (await store.ask(one(shape=single))).allowed
    await store.aclose()


async def _down(store: LadderStore, inner: Moody, error: Exception | None = None) -> None:
    inner.error = error or StoreDown("gone")
    for _ in range(FAILURES):
        await store.ask(Question(()))
    assert not store.up


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_healthy_store_decides() -> None:
    inner = Moody()
    store = ladder(inner)
    verdict = await store.ask(one())
    assert (verdict.allowed, verdict.degraded, store.up) == (True, False, True)
    assert verdict.limits[0].remaining == 9
    await store.aclose()


async def test_a_slow_store_costs_the_decision_timeout_and_no_more() -> None:
    inner = Moody()
    inner.delay = 5
    store, started = ladder(inner), now()
    verdict = await store.ask(one())
    assert now() - started == pytest.approx(0.05)
    assert verdict.degraded
    await store.aclose()


@pytest.mark.parametrize("error", [StoreDown("gone"), RuntimeError("a bug"), OSError("no route")])
async def test_no_failure_ever_leaves_it(error: Exception) -> None:
    inner = Moody()
    inner.error = error
    store = ladder(inner)
    for _ in range(5):
        assert (await store.ask(one())).degraded
        assert await store.report(Report(gate=GATE, ending=Ending.OK)) == Standing()
        assert not await store.lease("l", holder="a", limit=1, ttl=1)
        await store.release("l", holder="a")
    await store.aclose()


async def test_cancellation_does_leave_it() -> None:
    inner = Moody()
    inner.delay = 0.04
    store = ladder(inner)
    task = asyncio.create_task(store.ask(one()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.up
    await store.aclose()


async def test_after_three_failures_in_a_row_decisions_wait_for_nobody() -> None:
    inner, told = Moody(), []
    inner.delay = 60
    store = ladder(inner, on_change=lambda *change: told.append(change))
    for _ in range(FAILURES):
        assert store.up
        await store.ask(one())
    started, asked = now(), inner.asked
    for _ in range(100):
        await store.ask(one())
    assert (now(), inner.asked) == (started, asked)
    assert [state for state, _ in told] == ["down"]
    assert store.statistics().degraded == FAILURES + 100
    await store.aclose()


async def test_a_hiccup_counts_once_however_many_questions_it_meets() -> None:
    """Three timeouts of one hiccup once took the store down."""
    inner = Moody()
    store = ladder(inner)
    for _ in range(FAILURES - 1):
        inner.delay = 5
        verdicts = await asyncio.gather(*(store.ask(one(str(i))) for i in range(50)))
        assert all(verdict.degraded for verdict in verdicts)
        assert store.up
    await asyncio.gather(*(store.ask(one(str(i))) for i in range(50)))
    assert not store.up
    assert store.statistics().failures == FAILURES * 50
    await store.aclose()


async def test_a_store_that_comes_and_goes_hands_out_no_unit_each_time() -> None:
    inner = Moody()
    store = ladder(inner, replicas=10)
    inner.others = 9
    hundred = Window.of(100, 600)  # its share here: one a minute
    await store.ask(one("k", hundred))
    admitted, ends = 0, now() + 300
    while now() < ends:
        await _down(store, inner)
        admitted += (await store.ask(one("k", hundred))).allowed
        inner.error = None
        await asyncio.sleep(2)
        assert store.up
        await store.ask(one("k", hundred, 0))
    assert admitted == 5
    await store.aclose()


async def test_failures_apart_do_not_add_up() -> None:
    inner = Moody()
    store = ladder(inner)
    for _ in range(10):
        inner.error = StoreDown("once")
        await store.ask(one())
        inner.error = None
        await store.ask(one())
    assert store.up
    await store.aclose()


async def test_one_look_at_a_time_finds_the_store_again_within_a_second() -> None:
    inner, told = Moody(), []
    store = ladder(inner, on_change=lambda *change: told.append(change))
    await _down(store, inner)
    asked = inner.asked
    await asyncio.sleep(60)
    assert 50 <= inner.asked - asked <= 130, "pauses between half a second and one"
    inner.error = None
    await asyncio.sleep(1.0)
    assert store.up
    assert [state for state, _ in told] == ["down", "up"]
    assert not (await store.ask(one())).degraded
    await store.aclose()


async def test_a_store_that_answers_but_cannot_write_stays_down_until_it_can() -> None:
    """A demoted primary, or one that is full, once went down and came back ten times a second."""
    inner, told = Moody(), []
    store = ladder(inner, on_change=lambda *change: told.append(change))
    inner.read_only = True
    ends = now() + 60
    while now() < ends:
        await store.ask(one())
        await asyncio.sleep(0.05)
    assert [state for state, _ in told] == ["down"]
    inner.read_only = False
    await asyncio.sleep(1.0)
    assert [state for state, _ in told] == ["down", "up"]
    assert not (await store.ask(one("fresh"))).degraded
    await store.aclose()


async def test_many_processes_find_the_store_again_at_once() -> None:
    """What one of them has taken of what they look by keeps the others from nothing."""
    inner = Moody()
    stores = [ladder(inner) for _ in range(5)]
    for store in stores:
        await _down(store, inner)
    inner.error = None
    await asyncio.sleep(1.0)
    assert all(store.up for store in stores)
    for store in stores:
        await store.aclose()


async def test_a_store_that_answers_too_slowly_stays_down() -> None:
    inner = Moody()
    store = ladder(inner)
    await _down(store, inner)
    inner.error, inner.delay = None, 0.5
    await asyncio.sleep(30)
    assert not store.up
    await store.aclose()


async def test_a_pause_of_the_event_loop_is_not_held_against_the_store() -> None:
    """The answer had arrived before the deadline; only nobody was there to read it."""
    inner, loop = Moody(), asyncio.get_running_loop()
    inner.delay = 0.02
    inner.before = lambda: loop.call_later(0.01, loop.advance, 0.1)  # type: ignore[attr-defined]
    store = ladder(inner)
    for _ in range(10):
        assert not (await store.ask(one("k", Window.of(100, 60)))).degraded
    assert store.statistics().failures == 0
    inner.delay = 60
    for _ in range(10):
        assert (await store.ask(one())).degraded
    assert store.up, "nor is an answer that is still missing then"
    await store.aclose()


async def test_closed_refuses_and_open_admits() -> None:
    for when_down, allowed in [("closed", False), ("open", True)]:
        inner = Moody()
        store = ladder(inner, when_down=when_down)
        await _down(store, inner)
        verdicts = [await store.ask(one(cost=7)) for _ in range(5)]
        assert all(v.degraded and v.allowed is allowed for v in verdicts)
        assert verdicts[0].retry_after == (0 if allowed else 1)
        await store.aclose()


async def test_each_limit_has_its_own_way_without_the_store() -> None:
    """One that is closed refuses the whole question, one that is open is not looked at."""
    inner = Moody()
    store = ladder(inner, replicas=2, when_down_for={"chat": "open", "pay": "closed"})

    async def ask(*names: str) -> Verdict:
        return await store.ask(Question(tuple(Ask(name, f"{{u}}:{name}", TEN) for name in names)))

    assert not (await ask("pay", "chat", "user")).degraded
    assert (await ask("pay")).allowed, "nobody asks for a way while the store is up"
    await _down(store, inner)
    assert all([(await ask("chat")).allowed for _ in range(20)])
    assert (await ask("chat", "pay")).retry_after == 1
    both = await ask("chat", "user")
    assert both.allowed
    assert [state.name for state in both.limits] == ["user"]
    refused = await ask("chat", "user")
    assert (refused.allowed, refused.retry_after) == (False, 12), "of ten a minute, five are its share"
    assert refused.degraded
    await store.aclose()


async def test_a_way_for_one_limit_leaves_the_others_theirs() -> None:
    inner = Moody()
    store = ladder(inner, when_down="closed", when_down_for={"chat": "share"})
    await _down(store, inner)
    assert not (await store.ask(one())).allowed
    assert not (await store.ask(Question((), gate=GATE))).allowed
    assert (await store.ask(Question((Ask("chat", "k", TEN),)))).allowed
    await store.aclose()


async def _admitted(store: LadderStore, question: Question, seconds: float) -> int:
    admitted, ends = 0, now() + seconds
    while now() < ends:
        verdict = await store.ask(question)
        admitted += verdict.allowed
        if not verdict.allowed:
            await asyncio.sleep(min(verdict.retry_after, ends - now()))
    return admitted


@pytest.mark.parametrize("shape", [Window.of(100, 60), Bucket.of(100, 60, burst=50)])
async def test_a_share_is_paced_at_a_part_of_the_limit(shape: Any) -> None:
    inner = Moody()
    store = ladder(inner, replicas=5)
    assert (await store.ask(one("k", shape))).allowed
    await _down(store, inner)
    assert [(await store.ask(one("k", shape))).allowed for _ in range(3)] == [True, False, False]
    assert await _admitted(store, one("k", shape), 60) in (19, 20)
    await store.aclose()


async def test_a_vendors_quota_of_which_nothing_is_known_starts_empty() -> None:
    inner = Moody()
    store = ladder(inner, replicas=2)
    await _down(store, inner)
    verdict = await store.ask(one("new", gate=GATE))
    assert (verdict.allowed, verdict.retry_after) == (False, 12)
    assert verdict.limits[0].limit == 10
    await asyncio.sleep(12)
    assert (await store.ask(one("new", gate=GATE))).allowed
    await asyncio.sleep(600)
    assert (await store.ask(one("new", gate=GATE))).allowed, "it is known now"
    await store.aclose()


async def test_a_user_of_whom_nothing_is_known_has_a_first_unit_and_no_more() -> None:
    inner = Moody()
    store = ladder(inner, replicas=2)
    await _down(store, inner)
    assert (await store.ask(one("new"))).allowed
    verdict = await store.ask(one("new"))
    assert (verdict.allowed, verdict.retry_after) == (False, 12)
    await store.aclose()


async def test_a_key_that_was_used_up_starts_empty() -> None:
    inner = Moody()
    store = ladder(inner)
    await store.ask(one(cost=10))
    await _down(store, inner)
    assert not (await store.ask(one())).allowed
    await store.aclose()


async def test_a_user_keeps_one_unit_per_period_a_vendor_keeps_its_part() -> None:
    inner = Moody()
    store = ladder(inner, replicas=100)
    await _down(store, inner)
    assert (await store.ask(one("user"))).allowed
    assert (await store.ask(one("user"))).retry_after == 60
    assert (await store.ask(one("vendor", gate=GATE))).retry_after == 600
    await store.aclose()


async def test_costs_pass_whole_and_pay_their_time() -> None:
    inner = Moody()
    store = ladder(inner, replicas=2)
    tokens = Window.of(1_000, 60)
    await store.ask(one("t", tokens, 1))
    await _down(store, inner)
    assert (await store.ask(one("t", tokens, 100))).allowed
    assert (await store.ask(one("t", tokens, 1))).retry_after == 12
    assert (await store.ask(one("t", tokens, 1_001))).retry_after == float("inf")
    await store.aclose()


async def test_a_cost_that_could_not_be_paid_in_a_hundred_days_is_refused() -> None:
    inner = Moody()
    store = ladder(inner, replicas=1_000)
    await _down(store, inner)
    month = Window.of(999_983, 30 * 86_400, grains=60)
    verdict = await store.ask(one("t", month, 900_001, gate=GATE))
    assert (verdict.allowed, verdict.retry_after) == (False, float("inf"))
    await store.aclose()


async def test_alone_the_local_breaker_still_guards_and_epochs_stand_still() -> None:
    inner = Moody()
    store = ladder(inner)
    epoch = (await store.ask(one(gate=GATE))).epoch
    await _down(store, inner)
    for _ in range(4):
        standing = await store.report(Report(gate=GATE, ending=Ending.FAILED, epoch=epoch))
    assert (standing.epoch, standing.shut_for) == (epoch, 60)
    verdict = await store.ask(one(gate=GATE))
    assert (verdict.blocked, verdict.epoch) == (Blocked.OPEN, epoch)
    inner.error = StoreDown("still gone")
    await asyncio.sleep(60)
    probes = [await store.ask(Question((), gate=GATE)) for _ in range(2)]
    assert [verdict.probe for verdict in probes] == [-1, -2], "not to be taken for the store's own"
    for verdict in probes:
        await store.report(Report(gate=GATE, ending=Ending.OK, epoch=epoch, probe=verdict.probe))
    assert (await store.ask(Question((), gate=GATE))).probe == 0
    await store.aclose()


async def test_a_report_that_fails_is_not_repeated() -> None:
    """It may have been heard; giving back twice would let too much through."""
    inner = Moody()
    store = ladder(inner)
    inner.delay = 5
    started = now()
    await store.report(Report((Correction("k", TEN, -1, 0),)))
    assert (inner.asked, now() - started) == (1, pytest.approx(1.0))
    await store.aclose()


async def test_closing_ends_the_search() -> None:
    inner = Moody()
    store = ladder(inner)
    await _down(store, inner)
    await store.aclose()
    assert len(asyncio.all_tasks()) == 1


def test_a_store_that_is_closed_is_counted_in_no_later_loop() -> None:
    """Whoever still asks it there begins no task that nobody would end."""
    store = ladder(Moody())

    async def used_up() -> None:
        await store.ask(one())
        await store.aclose()

    async def asked_again() -> set[str]:
        await store.ask(one())
        await store.lease("key", holder="h", limit=1, ttl=1.0)
        return {task.get_name() for task in asyncio.all_tasks()}

    asyncio.run(used_up())
    assert "store-heartbeat" not in asyncio.run(asked_again())
