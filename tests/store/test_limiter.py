"""The limiter by itself: what its users are promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from headworks.limits.text import shape_of
from headworks.policy.units import parse_rate
from headworks.store import NEVER, Bucket, Limiter, Limits, Places, Verdict, Window, open_store
from headworks.store.deny import DenyCache
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question, Report, Standing, StoreStatistics
from headworks.testing.cancel import cancel_at_every_await


class Remote:
    """A store in memory behind a way that takes a tenth of a second, and as long back."""

    def __init__(self, inner: MemoryStore | None = None) -> None:
        self.inner = inner or MemoryStore()

    async def ask(self, question: Question) -> Verdict:
        await asyncio.sleep(0.1)
        verdict = await self.inner.ask(question)
        await asyncio.sleep(0.1)
        return verdict

    async def report(self, report: Report) -> Standing:
        await asyncio.sleep(0.1)
        return await self.inner.report(report)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> bool:
        await asyncio.sleep(0.1)
        held = await self.inner.lease(key, holder=holder, limit=limit, ttl=ttl)
        await asyncio.sleep(0.1)
        return held

    async def release(self, key: str, *, holder: str) -> None:
        await asyncio.sleep(0.1)
        await self.inner.release(key, holder=holder)

    async def forget(self, keys: Sequence[str]) -> None:
        await self.inner.forget(keys)

    async def aclose(self) -> None: ...

    def statistics(self) -> StoreStatistics:
        return self.inner.statistics()


class Ledger(MemoryStore):
    """A store in memory that adds up what was taken and given back."""

    units = 0

    def ask_nowait(self, question: Question) -> Verdict:
        verdict = super().ask_nowait(question)
        self.units += verdict.allowed * sum(ask.cost for ask in question.asks)
        return verdict

    def report_nowait(self, report: Report) -> Standing:
        self.units += sum(correction.units for correction in report.corrections)
        return super().report_nowait(report)


async def test_the_eleventh_of_ten_a_minute_is_refused_and_told_when() -> None:
    limiter = Limiter(MemoryStore(), "10/min")
    for left in reversed(range(10)):
        assert (await limiter.take("ann")).limits[0].remaining == left
    refused = await limiter.take("ann")
    assert (refused.allowed, refused.retry_after) == (False, 60)
    assert (await limiter.take("bob")).allowed
    await limiter.forget("ann")
    assert (await limiter.take("ann", 10)).allowed


@pytest.mark.parametrize("store", [MemoryStore, Remote])
async def test_waiting_returns_when_the_time_has_come(store: type[MemoryStore | Remote]) -> None:
    limiter, loop = Limiter(store(), "1/s burst 1"), asyncio.get_running_loop()
    began = loop.time()
    verdicts = await asyncio.gather(*(limiter.wait("ann", timeout=5) for _ in range(4)))
    assert all(verdict.allowed for verdict in verdicts)
    assert loop.time() - began == pytest.approx(3, abs=0.3)


async def test_what_cannot_be_in_time_is_refused_at_once_and_books_nothing() -> None:
    limiter, loop = Limiter(MemoryStore(), "1/s burst 1"), asyncio.get_running_loop()
    await limiter.take("ann")
    began = loop.time()
    refused = await limiter.wait("ann", timeout=0.5)
    assert (refused.allowed, loop.time() - began) == (False, 0)
    assert refused.retry_after == 0.5
    assert (await limiter.wait("ann", timeout=1)).wait == 1
    assert (await limiter.wait("ann", 2, timeout=60)).retry_after == NEVER


@pytest.mark.parametrize("store", [MemoryStore, Remote])
@pytest.mark.parametrize("rate", ["3/min", "1/s burst 3"])
def test_a_wait_cancelled_anywhere_gives_its_booking_back(
    store: type[MemoryStore | Remote], rate: str
) -> None:
    """Whatever it had heard by then: nothing is lost, and nothing returned twice."""
    world: list[Ledger] = []

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        ledger = Ledger()
        world[:] = [ledger]
        await Limits(ledger, {"limit": rate}).take("ann", 3)
        yield

    async def scenario() -> None:
        limiter = Limiter(world[0] if store is MemoryStore else Remote(world[0]), rate)
        verdict = await limiter.wait("ann", timeout=100)
        assert verdict.allowed
        await limiter.give_back("ann", verdict)

    suspensions = cancel_at_every_await(scenario, snapshot=lambda: world[0].units, around=around)
    assert suspensions >= 2


async def test_several_limits_consume_together_or_not_at_all() -> None:
    limits = Limits(MemoryStore(), {"user": "100/min", "chat": "5/min", "paced": "10/s burst 5"})
    assert (await limits.take("ann", {"user": 1, "chat": 5})).allowed
    refused = await limits.take("ann", {"user": 1, "chat": 1})
    assert not refused.allowed
    assert refused.tightest is not None
    assert refused.tightest.name == "chat"
    user, chat, paced = (await limits.peek("ann")).limits
    assert (user.remaining, chat.remaining, paced.remaining) == (99, 0, 5)


async def test_what_it_really_cost_is_settled() -> None:
    limits = Limits(MemoryStore(), {"requests": "60/min", "tokens": "1000/min"})
    verdict = await limits.take("ann", {"requests": 1, "tokens": 400})
    await limits.settle("ann", verdict, estimated={"tokens": 400}, actual={"tokens": 150})
    assert [state.remaining for state in (await limits.peek("ann")).limits] == [59, 850]
    await limits.settle("ann", verdict, estimated={"tokens": 150}, actual={"tokens": 1200})
    assert [state.remaining for state in (await limits.peek("ann")).limits] == [59, 0]
    await limits.give_back("ann", verdict, {"requests": 1, "tokens": 1200})
    assert [state.remaining for state in (await limits.peek("ann")).limits] == [60, 1000]


class Counting(Remote):
    asked = 0

    async def ask(self, question: Question) -> Verdict:
        self.asked += 1
        return await super().ask(question)


async def test_a_flood_on_a_final_limit_is_answered_from_memory_until_it_could_fit() -> None:
    store, loop = Counting(), asyncio.get_running_loop()
    limits = Limits(store, {"user": "10/min", "burst": "10/s"}, final=True)
    assert (await limits.take("ann", 10)).allowed
    refused = await limits.take("ann", {"user": 1})
    began, asked = loop.time(), store.asked
    for _ in range(1_000):
        again = await limits.take("ann", {"user": 1})
    assert (again.allowed, store.asked, loop.time()) == (False, asked, began)
    assert again.retry_after == pytest.approx(refused.retry_after - 0.2)
    assert (await limits.take("ann", {"burst": 1})).limits[0].name == "burst"
    assert (await limits.peek("ann")).limits[0].remaining == 0
    assert store.asked == asked + 2, "another limit, and a peek, are not what was refused"
    await asyncio.sleep(60)
    assert (await limits.take("ann", 10)).allowed
    assert not (await limits.take("ann")).allowed
    await limits.forget("ann")
    assert (await limits.take("ann")).allowed


async def test_a_limit_that_is_not_final_is_asked_every_time() -> None:
    """Not even behind a cache: what it took may come back."""
    store = Counting()
    limiter = Limiter(DenyCache(store), "10/min")
    for _ in range(12):
        await limiter.take("ann", 10)
    assert store.asked == 12


async def test_of_a_final_limit_nothing_is_given_back() -> None:
    limiter = Limiter(MemoryStore(), "10/min", final=True)
    verdict = await limiter.take("ann")
    for call in (
        limiter.wait("ann", timeout=1),
        limiter.give_back("ann", verdict),
        limiter.settle("ann", verdict, estimated=1, actual=2),
    ):
        with pytest.raises(RuntimeError, match=r"with final=True nothing is"):
            await call
    assert (await limiter.peek("ann")).limits[0].remaining == 9


async def test_a_refusal_is_given_back_for_nothing() -> None:
    limiter = Limiter(MemoryStore(), "2/min")
    taken = await limiter.take("ann", 2)
    refused = await limiter.take("ann")
    await limiter.give_back("ann", refused)
    assert (await limiter.peek("ann")).limits[0].remaining == 0
    await limiter.give_back("ann", taken, 2)
    assert (await limiter.peek("ann")).limits[0].remaining == 2


async def test_places_are_held_renewed_and_returned() -> None:
    store = MemoryStore()
    pods = [Places(store, "leave", 2, holder=f"pod-{n}", ttl=15) for n in range(3)]
    async with pods[0].hold() as first, pods[1].hold() as second, pods[2].hold() as third:
        assert first is not None
        assert second is not None
        assert third is None
        await asyncio.sleep(100)
        assert first.held
        async with pods[2].hold() as still:
            assert still is None
    assert not first.held
    await pods[0].aclose()
    async with pods[2].hold() as now:
        assert now is not None


async def test_a_place_whose_store_is_gone_is_lost_within_its_time() -> None:
    class Gone(MemoryStore):
        gone = False

        async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> bool:
            if self.gone:
                await asyncio.sleep(3600)
            return await super().lease(key, holder=holder, limit=limit, ttl=ttl)

    store = Gone()
    async with Places(store, "leave", 1, holder="pod-1", ttl=15).hold() as place:
        store.gone = True
        assert place is not None
        await asyncio.sleep(14)
        assert place.held
        await asyncio.sleep(2)
        assert not place.held


def test_a_place_asked_for_in_vain_is_returned_by_whoever_is_cancelled() -> None:
    remote = Remote()

    async def scenario() -> None:
        async with Places(remote, "leave", 1, holder="pod-1").hold():
            await asyncio.sleep(1)

    def snapshot() -> object:
        return dict(remote.inner._leases)

    assert cancel_at_every_await(scenario, snapshot=snapshot) > 2


@pytest.mark.parametrize(
    "text", ["100/min", "10/s burst 5", "10 / 30s", "1_000/hour", "7/d", "3/5m burst 2"]
)
def test_a_rate_reads_as_it_does_in_a_policy(text: str) -> None:
    rate, shape = parse_rate(text), shape_of(text)
    if rate.burst is None:
        assert shape == Window.of(rate.amount, rate.period)
    else:
        assert shape == Bucket.of(rate.amount, rate.period, burst=rate.burst)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: Limiter(s, "often"), r"rate: 'often' is not a rate; write an amount per period"),
        (lambda s: Limiter(s, "3/fortnight"), r"rate: '3/fortnight': 'fortnight' is no period"),
        (lambda s: Limiter(s, "0/min"), r"rate: '0/min': .*limit ≥ 1"),
        (lambda s: Limits(s, {}), r"rates: \{\} names no limit"),
        (lambda s: Limiter(s, "3/min")._asks("", 1), r"key: '' is empty"),
        (lambda s: Limiter(s, "3/min")._asks("ann", -1), r"cost: -1; a cost is whole and ≥ 0"),
        (lambda s: Limiter(s, "3/min")._asks("ann", {"user": 1}), r"there is no limit 'user'"),
        (lambda s: Places(s, "x", 0, holder="a"), r"limit: 0 places; one at least"),
        (lambda s: Places(s, "x", 1, holder="a", ttl=0), r"ttl: 0 s"),
        (lambda s: open_store("http://h"), r"a store's URL begins like valkey://"),
        (lambda s: open_store("valkey://h", replicas=0), r"replicas: 0"),
        (lambda s: open_store("valkey://h", group=""), r"group: '' is empty"),
        (lambda s: open_store("valkey://h", when_down="ajar"), r"when_down: 'ajar' is none of share"),  # type: ignore[arg-type]
        (
            lambda s: open_store("valkey://h", when_down_for={"a": "ajar"}),
            r"when_down_for\['a'\]: 'ajar'",
        ),  # type: ignore[dict-item]
        (lambda s: open_store("valkey://h", decision_timeout=0), r"decision_timeout: 0 s"),
    ],
)
async def test_an_error_names_field_value_and_remedy(wrong: object, message: str) -> None:
    assert callable(wrong)
    with pytest.raises(ValueError, match=message):
        wrong(MemoryStore())


async def test_what_may_be_waited_is_no_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="timeout: -1 s"):
        await Limiter(MemoryStore(), "3/min").wait("ann", timeout=-1)


async def test_a_store_is_opened_by_its_url() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    store = open_store("valkey://nowhere.invalid:1", replicas=4)
    assert isinstance(store, LadderStore)
    await store.aclose()
