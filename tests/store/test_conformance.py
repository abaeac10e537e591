"""One suite for every store, on a clock moved by hand: the same questions, the same verdicts."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Store
from headworks.verdict import Blocked, Verdict

pytestmark = pytest.mark.real

RULES = BreakerRules(0.5, 4, 10_000_000, 60_000_000, 2, 5_000_000)
GATE = Gate("{v}:gate", RULES)
TEN = Window.of(10, 60)
HUNDRED = Window.of(100, 60)
PACED = Bucket.of(60, 60)
AMPLE = Bucket.of(600, 60, burst=600)


async def ask(store: Store, shape: Shape, cost: int = 1, *, key: str = "{v}:k", **more: Any) -> Verdict:
    return await store.ask(Question((Ask("limit", key, shape, cost),), **more))


async def test_the_eleventh_of_ten_a_minute_is_refused(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        for left in reversed(range(10)):
            verdict = await ask(store, TEN)
            assert verdict.allowed
            assert verdict.limits[0].remaining == left
            clock.pass_(1)
        verdict = await ask(store, TEN)
        (limit,) = verdict.limits
        assert not verdict.allowed
        assert verdict.retry_after == limit.retry_after == 50
        assert (limit.limit, limit.window, limit.remaining, limit.reset) == (10, 60, 0, 59)


@pytest.mark.parametrize("shape", [TEN, HUNDRED, Bucket.of(59, 60, burst=7)])
async def test_retry_after_is_exact(opener: Any, clock: Any, shape: Shape) -> None:
    """Refused a millisecond earlier, admitted at it."""
    async with opener(clock) as store:
        clock.pass_(1.234567)
        while (await ask(store, shape, 3)).allowed:
            clock.pass_(0.0101)
        clock.pass_((await ask(store, shape, 3)).retry_after - 0.001)
        assert not (await ask(store, shape, 3)).allowed
        clock.pass_(0.001)
        assert (await ask(store, shape, 3)).allowed


@pytest.mark.parametrize("shape", [TEN, HUNDRED, Bucket.of(100, 60, burst=10)])
async def test_a_cost_above_the_limit_never_fits(opener: Any, clock: Any, shape: Shape) -> None:
    async with opener(clock) as store:
        verdict = await ask(store, shape, 101, horizon=1e6)
        assert verdict.retry_after == verdict.limits[0].retry_after == math.inf
        assert verdict.limits[0].remaining >= 10


@pytest.mark.parametrize("shape", [HUNDRED, Bucket.of(100, 60, burst=100)])
async def test_a_race_of_200_for_100_admits_exactly_100(opener: Any, clock: Any, shape: Shape) -> None:
    async with opener(clock) as store:
        verdicts = await asyncio.gather(*(ask(store, shape) for _ in range(200)))
        assert sum(verdict.allowed for verdict in verdicts) == 100


async def test_nobody_gets_twice_the_limit_around_an_edge(opener: Any, clock: Any) -> None:
    """Fixed windows let 199 of 100 through, a bucket with burst = limit 197."""
    async with opener(clock) as store:
        clock.pass_(58.9)
        admitted = 0
        for _ in range(100):
            admitted += (await ask(store, HUNDRED, 2)).allowed
            clock.pass_(0.021)
        assert admitted == 50


async def test_all_limits_consume_or_none_does(opener: Any, clock: Any) -> None:
    """Peers burn the first limit when the second refuses."""
    async with opener(clock) as store:
        asks = (Ask("user", "{u}", HUNDRED, 5), Ask("endpoint", "{u}:/chat", TEN, 4))
        for _ in range(2):
            assert (await store.ask(Question(asks))).allowed
        refused = await store.ask(Question(asks))
        user, endpoint = refused.limits
        assert (refused.allowed, user.allowed, endpoint.allowed) == (False, True, False)
        assert (user.remaining, endpoint.remaining) == (90, 2)
        assert (user.retry_after, endpoint.retry_after, refused.retry_after) == (0, 60, 60)
        assert refused.tightest == endpoint


async def test_two_users_do_not_share_a_limit(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        for _ in range(11):
            last = await ask(store, TEN, key="a")
        assert not last.allowed
        assert (await ask(store, TEN, key="b")).allowed


async def test_a_peek_costs_nothing(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        await ask(store, TEN, 3)
        for _ in range(20):
            verdict = await ask(store, TEN, 0)
            assert verdict.allowed
            assert verdict.limits[0].remaining == 7


async def test_bookings_line_up_at_the_pace(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        waits = [(await ask(store, PACED, horizon=3)).wait for _ in range(4)]
        assert waits == [0, 1, 2, 3]
        refused = await ask(store, PACED, horizon=3)
        assert not refused.allowed
        assert refused.retry_after == 1, "the same question could succeed in a second"
        assert refused.limits[0].retry_after == 4
        clock.pass_(1)
        assert (await ask(store, PACED, horizon=3)).wait == 3


async def test_a_booking_waits_for_the_slowest_limit_and_takes_all_at_once(
    opener: Any, clock: Any
) -> None:
    async with opener(clock) as store:
        tokens = Window.of(1000, 60, grains=60)
        await ask(store, tokens, 900, key="{v}:tokens")
        asks = (Ask("requests", "{v}:requests", PACED), Ask("tokens", "{v}:tokens", tokens, 500))
        verdict = await store.ask(Question(asks, horizon=90))
        assert verdict.allowed
        assert 60 <= verdict.wait <= 61
        assert verdict.at_us == clock.now + round(verdict.wait * 1_000_000)
        later = await store.ask(Question(asks, horizon=90))
        assert later.at_us >= verdict.at_us


async def test_a_cancelled_booking_is_given_back(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        await ask(store, PACED, horizon=9)
        booked = await ask(store, PACED, horizon=9)
        await store.report(Report((Correction("{v}:k", PACED, -1, booked.at_us),)))
        assert (await ask(store, PACED, horizon=9)).at_us == booked.at_us


async def test_an_overtaken_booking_of_a_bucket_is_not_given_back(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        first, _, _ = [await ask(store, PACED, horizon=9) for _ in range(3)]
        await store.report(Report((Correction("{v}:k", PACED, -1, first.at_us),)))
        assert (await ask(store, PACED, horizon=9)).wait == 3


@pytest.mark.parametrize("shape", [HUNDRED, Bucket.of(100, 60, burst=100)])
async def test_settling_charges_and_gives_back(opener: Any, clock: Any, shape: Shape) -> None:
    async with opener(clock) as store:
        paid = await ask(store, shape, 60)
        await store.report(Report((Correction("{v}:k", shape, -50, paid.at_us),)))
        assert (await ask(store, shape, 0)).limits[0].remaining == 90
        await store.report(Report((Correction("{v}:k", shape, 200, paid.at_us),)))
        peek = await ask(store, shape, 0)
        assert not peek.allowed
        assert peek.limits[0].remaining == 0
        refused = await ask(store, shape)
        clock.pass_(refused.retry_after)
        assert (await ask(store, shape)).allowed


async def test_a_changed_limit_gives_no_free_burst_and_locks_nobody_out(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        for before, after in [
            (HUNDRED, TEN),
            (TEN, HUNDRED),
            (Bucket.of(100, 60, burst=10), Bucket.of(50, 60, burst=10)),
        ]:
            await store.forget(["{v}:k"])
            while (verdict := await ask(store, before)).allowed:
                pass
            used = before.limit if isinstance(before, Window) else before.burst // 2
            room = after.limit if isinstance(after, Window) else after.burst
            assert (await ask(store, after, 0)).limits[0].remaining == max(0, room - used)
            clock.pass_(verdict.limits[0].reset)
            assert (await ask(store, after, 0)).limits[0].remaining == room


@pytest.mark.parametrize(
    ("shape", "cost", "share"),
    [(Bucket.of(59, 60), 1, 1), (Bucket.of(40_000_000, 60, burst=200_000), 200_000, 1)],
)
async def test_a_rate_is_delivered_in_full(
    opener: Any, clock: Any, shape: Bucket, cost: int, share: float
) -> None:
    """59/min once delivered 30, per-unit rounding 30 of 40 million."""
    async with opener(clock) as store:
        delivered, end = 0, clock.now + 60_000_000
        while clock.now < end:
            verdict = await ask(store, shape, cost)
            delivered += cost * verdict.allowed
            clock.now += round(verdict.retry_after * 1_000_000)
        assert shape.limit * share <= delivered <= shape.limit + shape.burst


async def test_a_key_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="names each key once"):
        Question((Ask("a", "k", TEN), Ask("b", "k", HUNDRED)))


async def _fail(store: Store, times: int, gate: Gate = GATE) -> None:
    for _ in range(times):
        epoch = (await store.ask(Question((), gate=gate))).epoch
        await store.report(Report(gate=gate, ending=Ending.FAILED, epoch=epoch))


async def test_the_breakers_life(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        question = Question((Ask("requests", "{v}:r", HUNDRED),), gate=GATE)
        closed = await store.ask(question)
        await _fail(store, 4)
        opened = await store.ask(question)
        assert (opened.allowed, opened.blocked, opened.retry_after) == (False, Blocked.OPEN, 60)
        assert opened.epoch == closed.epoch + 1
        assert opened.limits == ()
        clock.pass_(60)
        probes = [await store.ask(question) for _ in range(3)]
        assert [verdict.probe for verdict in probes] == [1, 2, 0]
        assert probes[2].blocked is Blocked.OPEN
        for verdict in probes[:2]:
            standing = await store.report(
                Report(gate=GATE, ending=Ending.OK, epoch=verdict.epoch, probe=verdict.probe)
            )
        assert (standing.epoch, standing.shut_for) == (opened.epoch + 1, 0)
        again = await store.ask(question)
        assert again.allowed
        assert again.limits[0].remaining == 100 - 4, "a blocked question consumes nothing"


async def test_endings_of_an_older_epoch_count_for_nothing(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        old = (await store.ask(Question((), gate=GATE))).epoch
        await store.report(Report(gate=GATE, cool_down=1))
        for _ in range(9):
            await store.report(Report(gate=GATE, ending=Ending.FAILED, epoch=old))
        clock.pass_(1)
        assert (await store.ask(Question((), gate=GATE))).allowed
        await _fail(store, 4)
        assert not (await store.ask(Question((), gate=GATE))).allowed


async def test_a_probe_refused_by_a_limit_takes_no_place(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        await _fail(store, 4)
        clock.pass_(60)
        full = Question((Ask("tokens", "{v}:t", TEN, 11),), gate=GATE)
        for _ in range(3):
            assert (await store.ask(full)).blocked is None
        assert (await store.ask(full._replace(asks=()))).probe == 1


async def test_a_cool_down_stops_the_fleet_and_voids_what_was_booked(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        booked = await ask(store, PACED, gate=GATE, horizon=5)
        standing = await store.report(
            Report(gate=GATE, ending=Ending.OVERLOADED, epoch=booked.epoch, cool_down=2.5)
        )
        assert standing.epoch == booked.epoch + 1
        assert standing.shut_for == 2.5
        blocked = await ask(store, PACED, gate=GATE, horizon=5)
        assert (blocked.blocked, blocked.retry_after) == (Blocked.COOL_DOWN, 2.5)
        clock.pass_(2.5)
        assert (await ask(store, PACED, gate=GATE, horizon=5)).allowed


async def test_a_slow_start_follows_a_cool_down(opener: Any, clock: Any) -> None:
    """One passes, then two more for each that comes back; a call that came to nothing frees its pass."""
    async with opener(clock) as store:
        epoch = (await store.report(Report(gate=GATE, ending=Ending.OVERLOADED, cool_down=1))).epoch
        clock.pass_(1)

        async def passing() -> int:
            passed = 0
            while (verdict := await ask(store, AMPLE, gate=GATE)).allowed:
                passed += 1
            assert verdict.blocked is Blocked.COOL_DOWN
            assert 0 < verdict.retry_after <= 0.25
            return passed

        async def back(*endings: Ending) -> None:
            for ending in endings:
                await store.report(Report(gate=GATE, ending=ending, epoch=epoch))

        assert await passing() == 1
        await back(Ending.IGNORED)
        assert await passing() == 1
        await back(Ending.OK)
        assert await passing() == 2
        await back(Ending.OK, Ending.OVERLOADED)
        assert await passing() == 2
        clock.pass_(RULES.probe_us / 1e6)
        assert await passing() == 1, "nothing was heard for as long as a probe may take"
        await back(*[Ending.OK] * 16)
        assert [(await ask(store, AMPLE, gate=GATE)).allowed for _ in range(99)] == [True] * 99


async def test_a_slow_start_goes_on_though_answers_take_long(opener: Any, clock: Any) -> None:
    """One second after the first, half a second after the second, a third after the third."""
    async with opener(clock) as store:
        await store.report(Report(gate=GATE, ending=Ending.OVERLOADED, cool_down=1))
        clock.pass_(1)
        for number in (1, 2, 3, 4):
            assert (await ask(store, AMPLE, gate=GATE)).allowed
            assert not (await ask(store, AMPLE, gate=GATE)).allowed
            clock.pass_(1 / number - 0.001)
            assert (await ask(store, AMPLE, gate=GATE)).retry_after == pytest.approx(0.001, abs=2e-6)
            clock.pass_(0.001)


async def test_the_fleets_demand_is_the_sum_of_recent_reports(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        for pod, demand in [("a", 2.5), ("b", 4.0), ("a", 3.5)]:
            verdict = await ask(store, PACED, gate=GATE, pod=pod, demand=demand)
        assert verdict.demand == 7.5
        clock.pass_(10)
        assert (await ask(store, PACED, gate=GATE, pod="a", demand=1)).demand == 1


async def test_places_are_leased_renewed_returned_and_lost_in_time(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:

        async def lease(holder: str, limit: int = 2) -> bool:
            return await store.lease("leave", holder=holder, limit=limit, ttl=15) > 0

        assert [await lease(holder) for holder in "abc"] == [True, True, False]
        await store.release("leave", holder="a")
        await store.release("leave", holder="nobody")
        assert await lease("c")
        clock.pass_(10)
        assert await lease("c")
        clock.pass_(5)
        assert await lease("d"), "b's lease was not renewed"
        assert not await lease("e")
        assert not await lease("e", limit=0)


async def test_a_later_holder_has_a_greater_fence(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:

        async def lease(holder: str, limit: int = 1) -> int:
            fence: int = await store.lease("job", holder=holder, limit=limit, ttl=15)
            return fence

        first = await lease("a")
        clock.pass_(10)
        assert await lease("a") == first, "renewed in time, it is the same lease"
        assert await lease("b") == 0
        second = await lease("b", limit=2)
        await store.release("job", holder="a")
        third = await lease("a", limit=2)
        assert first < second < third, "also within the same microsecond"
        clock.pass_(15)
        assert third < await lease("a")


async def test_processes_are_counted_until_they_leave_or_their_time_is_over(
    opener: Any, clock: Any
) -> None:
    async with opener(clock) as store:

        async def there(process: str, ttl: float = 10.0, group: str = "search") -> int:
            count: int = (await store.census(group, process=process, ttl=ttl)).there
            return count

        assert [await there(process) for process in "abca"] == [1, 2, 3, 3]
        assert await there("a", group="other") == 1, "each group by itself"
        assert await there("c", ttl=0) == 2
        assert await there("nobody", ttl=0) == 2
        clock.pass_(9)
        assert await there("a", ttl=20) == 2
        assert await there("b", ttl=2) == 2
        clock.pass_(2)
        assert await there("nobody", ttl=0) == 1, "b's time is over, a's was renewed"
        clock.pass_(17)
        assert await there("c", ttl=1) == 2, "a short stay ends nobody else's"
        clock.pass_(1)
        assert await there("nobody", ttl=0) == 0


async def test_a_census_tells_who_was_not_counted_any_more(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:

        async def known(process: str, ttl: float = 10.0) -> bool:
            answer: bool = (await store.census("search", process=process, ttl=ttl)).known
            return answer

        assert [await known(process) for process in "abab"] == [False, False, True, True]
        clock.pass_(5)
        assert await known("a")
        clock.pass_(5)
        assert [await known("a"), await known("b")] == [True, False], "b's time is over"
        assert await known("b", ttl=0), "it leaves"
        assert not await known("b")


async def test_what_is_forgotten_is_as_if_never_taken(opener: Any, clock: Any) -> None:
    async with opener(clock) as store:
        for shape in (TEN, Bucket.of(10, 60, burst=10)):
            await ask(store, shape, 10)
            await store.forget(["{v}:k"])
            assert (await ask(store, shape, 10)).allowed
