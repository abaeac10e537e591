"""What the store has refused is refused without it, until it could fit."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import pytest
from tests.store.test_cancel import Wire, clock

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store import Limiter, open_store
from headworks.store.deny import FRESH, DenyCache
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, FinalAsk, Question, Report
from headworks.store.valkey import ValkeyStore
from headworks.verdict import NEVER, Verdict

TEN = Window.of(10, 60)
PACED = Bucket.of(10, 60, burst=10)


def final(key: str = "k", shape: Shape = TEN, cost: int = 1, **more: Any) -> Question:
    return Question((FinalAsk("limit", key, shape, cost),), **more)


class Counted(MemoryStore):
    through = 0

    async def ask(self, question: Question) -> Verdict:
        self.through += 1
        return await super().ask(question)


class Front:
    """A deny cache before a memory store, and how many questions came through."""

    def __init__(self, size: int = 10_000) -> None:
        self.inner = Counted()
        self.cache = DenyCache(self.inner, size=size)
        self.ask = self.cache.ask

    @property
    def through(self) -> int:
        return self.inner.through


async def emptied(shape: Shape = TEN) -> Front:
    front = Front()
    assert (await front.ask(final(cost=10, shape=shape))).allowed
    await front.ask(final(shape=shape))
    return front


@pytest.mark.parametrize("shape", [TEN, PACED])
async def test_a_refusal_is_repeated_and_counts_down_until_it_could_fit(shape: Shape) -> None:
    front = await emptied(shape)
    said = await front.inner.ask(final(shape=shape))
    before = front.through
    await asyncio.sleep(2.5)
    again = await front.ask(final(shape=shape))
    assert (again.allowed, again.limits[0].allowed, again.limits[0].remaining) == (False, False, 0)
    assert again.retry_after == again.limits[0].retry_after == pytest.approx(said.retry_after - 2.5)
    assert again.limits[0].reset == pytest.approx(said.limits[0].reset - 2.5)
    assert front.through == before
    await asyncio.sleep(again.retry_after)
    assert (await front.ask(final(shape=shape))).allowed


async def test_the_smallest_refused_cost_stands_for_all_above_it_only() -> None:
    front = Front()
    await front.ask(final(cost=5))
    assert not (await front.ask(final(cost=7))).allowed
    before = front.through
    assert not (await front.ask(final(cost=8))).allowed
    assert front.through == before
    assert (await front.ask(final(cost=2))).allowed
    assert not (await front.ask(final(cost=4))).allowed
    assert not (await front.ask(final(cost=9))).allowed
    assert not (await front.ask(final(cost=4))).allowed
    assert front.through == before + 2


async def test_a_larger_cost_that_was_refused_later_does_not_hide_the_smaller_one() -> None:
    """Both were on their way at once, so neither could be answered from here."""

    class Slow(Counted):
        async def ask(self, question: Question) -> Verdict:
            verdict = await super().ask(question)
            await asyncio.sleep(question.asks[0].cost)
            return verdict

    inner = Slow()
    cache = DenyCache(inner)
    assert (await cache.ask(final(cost=8))).allowed
    verdicts = await asyncio.gather(cache.ask(final(cost=3)), cache.ask(final(cost=9)))
    assert not any(verdict.allowed for verdict in verdicts)
    before = inner.through
    assert not (await cache.ask(final(cost=5))).allowed
    assert inner.through == before


async def test_a_cost_that_never_fits_stands_for_no_other() -> None:
    front = Front()
    for _ in range(3):
        assert (await front.ask(final(cost=11))).retry_after == NEVER
    assert front.through == 1
    assert (await front.ask(final(cost=10))).allowed


async def test_what_may_be_given_back_is_always_asked() -> None:
    front = await emptied()
    for question in (
        Question((Ask("limit", "k", TEN),)),
        final(cost=0),
        final(horizon=5.0),
        final(demand=1.0),
        final("other"),
        final(shape=Window.of(20, 60)),
    ):
        before = front.through
        await front.ask(question)
        assert front.through == before + 1, question


async def test_a_question_with_several_limits_is_refused_by_the_one_that_refuses() -> None:
    front = Front()
    user, chat = FinalAsk("user", "u", Window.of(100, 60)), FinalAsk("chat", "u:/chat", TEN, 3)
    both = Question((user, chat))
    for _ in range(3):
        assert (await front.ask(both)).allowed
    refused = await front.ask(both)
    before = front.through
    await asyncio.sleep(1)
    again = await front.ask(both)
    assert front.through == before
    assert [state.name for state in again.limits] == ["chat"], "what else is left, others may have taken"
    assert again.tightest == again.limits[0]
    assert again.limits[0].remaining == refused.limits[1].remaining
    assert len(front.cache) == 1
    assert (await front.ask(Question((user,)))).allowed, "the user's limit has not refused"


async def test_a_limit_that_all_share_refuses_strangers_without_a_question() -> None:
    """A flood from everywhere: of each caller nothing is known, of what they share enough."""
    front = Front()

    def asked(user: str) -> Question:
        own = FinalAsk("user", user, Window.of(100, 60))
        return Question((own, FinalAsk("total", "all", TEN)))

    for number in range(10):
        assert (await front.ask(asked(f"u{number}"))).allowed
    said = await front.ask(asked("u10"))
    before = front.through
    for number in range(1_000):
        verdict = await front.ask(asked(f"stranger{number}"))
        assert not verdict.allowed
        assert [state.name for state in verdict.limits] == ["total"]
        assert verdict.retry_after == pytest.approx(said.limits[1].retry_after)
    assert front.through == before
    await asyncio.sleep(said.retry_after)
    assert (await front.ask(asked("stranger0"))).allowed


async def test_a_question_that_only_looks_at_one_limit_is_asked() -> None:
    """What it looks at is not known here, though another limit of it is known to refuse."""
    front = await emptied()
    for other in (FinalAsk("other", "o", TEN, 0), Ask("other", "o", TEN)):
        before = front.through
        await front.ask(Question((FinalAsk("limit", "k", TEN), other)))
        assert front.through == before + 1


async def test_forgetting_and_giving_back_are_heard() -> None:
    front = await emptied()
    await front.cache.forget(["k"])
    paid = await front.ask(final(cost=10))
    assert paid.allowed
    assert not (await front.ask(final())).allowed
    await front.cache.report(Report((Correction("k", TEN, -5, paid.at_us),)))
    assert (await front.ask(final())).allowed


async def refuse(front: Front, key: str) -> None:
    await front.inner.ask(final(key, cost=10))
    assert not (await front.ask(final(key))).allowed


async def test_it_remembers_so_many_keys_and_no_more() -> None:
    """The half that was asked for last is there whatever came before."""
    front = Front(size=4)
    for i in range(11):
        await refuse(front, f"k{i}")
        assert len(front.cache) <= 4
        before = front.through
        for last in range(max(0, i - 1), i + 1):
            await front.ask(final(f"k{last}"))
        assert front.through == before
        assert len(front.cache) <= 4
    await front.ask(final("k0"))
    assert front.through == before + 1


@pytest.mark.parametrize("way", ["asked", "known"])
async def test_a_flood_of_strangers_drives_out_nobody_who_is_asked_for_all_the_time(way: str) -> None:
    front = Front(size=10)
    await refuse(front, "often")
    for i in range(100):
        for stranger in range(4):
            await refuse(front, f"stranger{4 * i + stranger}")
        before = front.through
        if way == "known":
            assert front.cache.known_nowait(final("often").asks) is not None
        else:
            await front.ask(final("often"))
        assert (front.through, len(front.cache) <= 10) == (before, True)


async def test_a_refusal_is_one_key_however_often_and_in_whatever_way_it_comes() -> None:
    """Also where the smallest cost is learned anew of one that was among the old ones."""
    front = Front(size=4)
    await front.inner.ask(final("k", cost=6))
    await front.ask(final("k", cost=8))
    for stranger in ("a", "b"):
        await refuse(front, stranger)
    assert len(front.cache) == 3
    await front.ask(final("k", cost=7))
    assert len(front.cache) == 3
    before = front.through
    assert not (await front.ask(final("k", cost=7))).allowed
    assert front.through == before
    await front.cache.forget(["a", "k"])
    assert len(front.cache) == 1
    await front.ask(final("k", cost=7))
    await front.ask(final("a"))
    assert front.through == before + 2


async def test_what_was_decided_without_the_store_is_not_remembered() -> None:
    class Gone(MemoryStore):
        async def ask(self, question: Question) -> Verdict:
            return (await super().ask(question))._replace(allowed=False, retry_after=9.0, degraded=True)

    cache = DenyCache(Gone())
    for _ in range(12):  # the last two, with limits that refuse
        await cache.ask(final())
    assert len(cache) == 0


FLOODS = [100, 10_000]
"""Questions a second."""


@pytest.mark.parametrize("shape", [Window.of(10, 2), Bucket.of(10, 2, burst=5)])
async def test_ten_seconds_of_a_flood_cost_the_server_the_same_however_large_it_is(
    server: Any, shape: Shape
) -> None:
    """On a key over its limit, which gets the units that fall due meanwhile, no more and no fewer."""
    calls = []
    for rate in FLOODS:
        server.client.flushall()
        wire = Wire(server.client, delay=0.0005)
        store = DenyCache(LadderStore(ValkeyStore(wire, clock=clock), rng=random.Random(1)))
        asked = list[asyncio.Task[Verdict]]()
        for _ in range(1_000):
            asked += [asyncio.create_task(store.ask(final(shape=shape))) for _ in range(rate // 100)]
            await asyncio.sleep(0.01)
        admitted = sum(verdict.allowed for verdict in await asyncio.gather(*asked))
        assert 49 <= admitted <= 55
        calls.append(wire.calls)
        await store.aclose()
    few, many = calls
    assert many <= few + 20, "a few more are asked at once whenever a unit falls due"
    assert many <= 3 * 55


@pytest.mark.real
@pytest.mark.parametrize("shape", [Window.of(10, 3600), Bucket.of(10, 3600, burst=10)])
async def test_until_a_unit_falls_due_a_flood_costs_the_server_nothing(
    server: Any, shape: Shape
) -> None:
    """Through a limiter of its own over an opened store."""
    store = open_store(server.url, decision_timeout=10.0)
    limiter = Limiter(store, shape, final=True)
    await limiter.take("k", 10)
    await limiter.take("k")
    asked = store.statistics().questions
    for _ in range(1_000):
        verdicts = await asyncio.gather(*(limiter.take("k") for _ in range(10)))
        assert not any(verdict.allowed for verdict in verdicts)
    assert store.statistics().questions == asked
    await store.aclose()


async def test_the_same_asks_are_given_the_same_verdict_for_a_moment() -> None:
    """Object for object, so that whoever makes an answer of it need do so once; then a new one."""
    front = await emptied()
    asks = final().asks
    counted = front.cache.statistics().questions
    first = front.cache.known_nowait(asks)
    assert first is not None
    await asyncio.sleep(FRESH / 2)
    assert front.cache.known_nowait(asks) is first
    others = front.cache.known_nowait(final().asks)
    assert others is not None
    assert others.retry_after == pytest.approx(first.retry_after - FRESH / 2), "of asks of its own"
    await asyncio.sleep(FRESH / 2)
    second = front.cache.known_nowait(asks)
    assert second is not None
    assert second is not first
    assert second.retry_after == pytest.approx(first.retry_after - FRESH)
    assert front.cache.statistics().questions == counted + 4


async def test_it_is_given_no_longer_than_the_refusal_lasts() -> None:
    front = await emptied()
    asks = final().asks
    await front.ask(Question(asks))
    first = front.cache.known_nowait(asks)
    assert first is not None
    await asyncio.sleep(first.retry_after - FRESH / 4)
    last = front.cache.known_nowait(asks)
    assert last is not None
    assert last.retry_after == pytest.approx(FRESH / 4)
    await asyncio.sleep(FRESH / 4)
    assert front.cache.known_nowait(asks) is None


async def test_what_is_forgotten_is_not_given_again_for_a_moment_either() -> None:
    front = await emptied()
    asks = final().asks
    await front.ask(Question(asks))
    assert front.cache.known_nowait(asks) is not None
    await front.cache.forget(["k"])
    assert front.cache.known_nowait(asks) is None
    await front.cache.ask(final("other", cost=11))
    assert len(front.cache) == 1, "there is something to look for"
    assert front.cache.known_nowait(asks) is None


async def test_the_collector_has_nothing_to_look_through_in_what_is_remembered() -> None:
    store = DenyCache(MemoryStore())
    for number in range(20):
        for _ in range(2):
            await store.ask(final(f"user:{number}", Window.of(1, 60)))
    for _ in range(2):  # what is inside of a tuple, then the tuple
        gc.collect()
    remembered = [*store._young.values(), *store._old.values()]
    assert len(remembered) == 20
    assert not any(gc.is_tracked(one) for one in remembered)


async def test_a_limit_of_another_kind_is_another_limit_though_its_numbers_are_the_same() -> None:
    front = Front()
    window, bucket = Window(1, 60_000_000, 1), Bucket(1, 60_000_000, 1)
    assert window.mark[1:] == bucket.mark[1:]
    await front.ask(final(shape=window))
    assert not (await front.ask(final(shape=window))).allowed
    assert (await front.ask(final(shape=bucket))).allowed


async def test_of_two_limits_that_refuse_neither_is_forgotten_for_the_other() -> None:
    """Not when asking for them is what makes the young ones the old."""
    front = Front(size=6)
    both = Question((FinalAsk("user", "a", TEN), FinalAsk("endpoint", "b", TEN)))
    await front.ask(Question((FinalAsk("user", "a", TEN, 10), FinalAsk("endpoint", "b", TEN, 10))))
    await front.ask(both)
    for key in "cdef":
        await front.ask(final(key, cost=10))
        await front.ask(final(key))
    assert (set(front.cache._old), set(front.cache._young)) == (set("abc"), set("def"))
    through = front.through
    for question in (both, final("a"), final("b")):
        assert not (await front.ask(question)).allowed
    assert front.through == through


async def test_a_limit_that_may_be_given_back_is_not_remembered_for_what_stands_beside_it() -> None:
    front = Front()
    mixed = Question((FinalAsk("user", "a", TEN, 10), Ask("other", "b", TEN, 10)))
    assert (await front.ask(mixed)).allowed
    assert not (await front.ask(mixed)).allowed
    through = front.through
    assert not (await front.ask(Question((Ask("other", "b", TEN),)))).allowed
    assert front.through == through + 1
    assert set(front.cache._young) == {"a"}


@pytest.mark.parametrize("before", [Window.of(10, 1), Window.of(9, 60)])
async def test_what_no_longer_holds_is_learned_anew(before: Shape) -> None:
    """A smaller cost that was refused once, by a limit of another time or shape, keeps nothing out."""
    front = Front()
    await front.ask(final(cost=before.limit, shape=before))
    assert not (await front.ask(final(cost=1, shape=before))).allowed
    await asyncio.sleep(2.0)
    now_is = before if before.period < 2 else TEN
    await front.ask(final(cost=now_is.limit - 1, shape=now_is))
    assert not (await front.ask(final(cost=10, shape=now_is))).allowed
    through = front.through
    assert not (await front.ask(final(cost=10, shape=now_is))).allowed
    assert front.through == through


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_memory_of_less_than_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size: {size}; two keys at least"):
        DenyCache(MemoryStore(), size=size)
