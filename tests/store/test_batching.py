"""Decisions that come together travel together: order, cancellation, failures, and how many trips."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Window
from headworks.store.batch import SIZE, GiveUp, ServerError, posted
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, Gate, Question, Receiver, Report, StoreDown
from headworks.store.scripts import Script
from headworks.store.valkey import ValkeyStore
from headworks.verdict import NEVER, Verdict

GATE = Gate("{v}:gate", BreakerRules(0.5, 4, 10_000_000, 60_000_000, 2, 5_000_000))
HUNDRED = Window.of(100, 60)


def one(key: str = "k", shape: Any = HUNDRED, cost: int = 1) -> Question:
    return Question((Ask("limit", key, shape, cost),))


class HeldLink:
    """Answers every limit with yes, each call after a second, or never, or with an error."""

    def __init__(self, slots: int = 0) -> None:
        self.calls: list[list[str]] = []
        self.given_up = 0
        self.error: Exception | None = None
        self.reply: list[bytes] | None = None
        self.seconds = 1.0
        self._slots = slots

    def slot(self, key: str) -> int | None:
        return hash(key) % self._slots if self._slots else None

    def post(self, script: Script, keys: Sequence[Any], args: Sequence[Any], to: Receiver) -> GiveUp:
        return posted(self._run(script, keys, args), to)

    async def _run(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        self.calls.append(list(keys))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.error is not None:
            raise self.error
        if self.reply is not None:
            return self.reply
        numbers = [1, *(number for i, _ in enumerate(keys) for number in (i, 0, 0))]
        return [struct.pack(f"<{len(numbers)}q", *numbers)]

    async def aclose(self) -> None: ...


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_asked_in_one_tick_is_one_call_in_the_order_of_asking() -> None:
    link = HeldLink()
    store = ValkeyStore(link)
    verdicts = await asyncio.gather(*(store.ask(one(f"k{i}")) for i in range(10)))
    assert link.calls == [[f"hw1:w:k{i}" for i in range(10)]]
    assert [verdict.limits[0].remaining for verdict in verdicts] == list(range(10))
    assert store.statistics().trips == 1


async def test_a_lone_question_is_sent_in_its_own_tick_without_a_timer() -> None:
    link = HeldLink()
    store = ValkeyStore(link)
    asked = asyncio.ensure_future(store.ask(one()))
    now = asyncio.get_running_loop().time()
    await _settle()
    assert link.calls == [["hw1:w:k"]]
    assert asyncio.get_running_loop().time() == now
    await asked


async def test_who_comes_while_calls_are_on_their_way_travels_with_the_next() -> None:
    link = HeldLink()
    store = ValkeyStore(link, in_flight=1)
    first = asyncio.ensure_future(store.ask(one("first")))
    await asyncio.sleep(0.5)
    later = [asyncio.ensure_future(store.ask(one(f"k{i}"))) for i in range(3)]
    await asyncio.sleep(0.2)
    later += [asyncio.ensure_future(store.ask(one("k3")))]
    await asyncio.gather(first, *later)
    assert link.calls == [["hw1:w:first"], [f"hw1:w:k{i}" for i in range(4)]]


@pytest.mark.parametrize(("most", "said"), [(SIZE, {}), (5, {"together": 5})])
async def test_a_call_has_a_largest_size_and_only_a_few_are_on_their_way(
    most: int, said: dict[str, int]
) -> None:
    link = HeldLink()
    store = ValkeyStore(link, in_flight=2, **said)
    asked = [asyncio.ensure_future(store.ask(one(f"k{i}"))) for i in range(3 * most + 1)]
    await asyncio.sleep(0.5)
    assert [len(keys) for keys in link.calls] == [most, most]
    await asyncio.gather(*asked)
    assert [len(keys) for keys in link.calls] == [most, most, most, 1]


async def test_every_slot_has_a_call_of_its_own() -> None:
    link = HeldLink(slots=4)
    store = ValkeyStore(link)
    await asyncio.gather(*(store.ask(one(f"k{i}")) for i in range(40)))
    assert len(link.calls) <= 4
    assert all(len({link.slot(key) for key in keys}) == 1 for keys in link.calls)


async def test_a_caller_that_left_before_the_call_is_not_sent() -> None:
    link = HeldLink()
    store = ValkeyStore(link)
    asked = [asyncio.ensure_future(store.ask(one(f"k{i}"))) for i in range(3)]
    await asyncio.sleep(0)  # asked, not yet sent
    asked[1].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert link.calls == [["hw1:w:k0", "hw1:w:k2"]]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answers[i].limits[0].remaining for i in (0, 2)] == [0, 1]


async def test_who_left_before_the_call_does_not_count_among_those_who_leave_it_later() -> None:
    link = HeldLink()
    store = ValkeyStore(link)
    asked = [asyncio.ensure_future(store.ask(one(f"k{i}"))) for i in range(3)]
    await asyncio.sleep(0)
    asked[1].cancel()
    await asyncio.sleep(0.5)
    asked[0].cancel()
    assert (await asked[2]).limits[0].remaining == 1
    assert link.given_up == 0


async def test_a_reply_that_cannot_be_read_fails_its_callers_and_nobody_else() -> None:
    link = HeldLink()
    store = ValkeyStore(link)
    link.reply = [b"12345678" * 2]  # a number too few
    with pytest.raises(IndexError):
        await store.ask(one())
    link.reply = None
    assert (await store.ask(one())).allowed


@pytest.mark.real
async def test_a_key_that_cannot_be_written_fails_alone_and_shifts_nobodys_answer(
    own_server: Any,
) -> None:
    """Half a surrogate, as JSON can hold it. A reply that is waited for but never asked for would go to
    the next caller, whose own would go to the one after; and who asks in the same tick is answered."""
    store, single = ValkeyStore(own_server.url, connections=1), Window.of(1, 60)
    await store.ask(one("full", single))
    async with asyncio.timeout(60):
        for number in range(3):
            with pytest.raises(UnicodeEncodeError):
                await store.ask(one("\ud800"))
            full, unwritable, fresh = await asyncio.gather(
                store.ask(one("full", single)),
                store.ask(one("\ud800")),
                store.ask(one(f"fresh {number}", single)),
                return_exceptions=True,
            )
            assert isinstance(unwritable, UnicodeEncodeError)
            assert isinstance(full, Verdict)
            assert isinstance(fresh, Verdict)
            assert (full.allowed, fresh.allowed) == (False, True)
    assert store.statistics().failures == 0
    await store.aclose()


@pytest.mark.real
@pytest.mark.parametrize("shape", [HUNDRED, Bucket.of(100, 60, burst=100)])
async def test_a_cost_beyond_any_number_is_refused_for_ever_and_troubles_nobody(
    server: Any, shape: Any
) -> None:
    """It comes out of a request's body, and doubles, which scripts compute with, do not hold it."""
    store = ValkeyStore(server.url)
    for cost in (2**53, 10**30, 10**400):
        async with asyncio.timeout(60):
            huge, other = await asyncio.gather(
                store.ask(one("k", shape, cost)), store.ask(one("other", shape))
            )
        assert (huge.allowed, huge.retry_after, other.allowed) == (False, NEVER, True)
    await store.aclose()


async def test_a_caller_that_leaves_a_sent_call_takes_nothing_from_its_neighbours() -> None:
    link = HeldLink()
    store = ValkeyStore(link)
    asked = [asyncio.ensure_future(store.ask(one(f"k{i}"))) for i in range(3)]
    await asyncio.sleep(0.5)
    asked[0].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answer.limits[0].remaining for answer in answers[1:]] == [1, 2]
    assert link.given_up == 0


async def test_a_call_that_everyone_has_left_is_given_up_and_makes_room() -> None:
    link = HeldLink()
    link.seconds = 1e6
    store = ValkeyStore(link, in_flight=1)
    asked = [asyncio.ensure_future(store.ask(one(f"k{i}"))) for i in range(2)]
    await asyncio.sleep(0.5)
    for task in asked:
        task.cancel()
    await _settle()
    assert link.given_up == 1
    link.seconds = 1.0
    assert (await store.ask(one("next"))).allowed


async def test_a_failing_call_fails_each_of_its_callers_with_an_error_of_its_own() -> None:
    link = HeldLink()
    link.error = StoreDown("gone")
    store = ValkeyStore(link)
    errors = await asyncio.gather(*(store.ask(one()) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["gone"] * 3
    assert len({id(error) for error in errors}) == 3
    assert store.statistics().failures == 1


async def test_closing_answers_everyone_who_waits() -> None:
    link = HeldLink()
    store = ValkeyStore(link, in_flight=1)
    asked = [asyncio.ensure_future(store.ask(one())) for _ in range(SIZE + 1)]
    await asyncio.sleep(0.5)
    await store.aclose()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error) for error in errors} == {StoreDown}


@pytest.mark.real
async def test_questions_and_reports_are_taken_in_the_order_in_which_they_came(server: Any) -> None:
    store = ValkeyStore(server.url)
    paid = await store.ask(one(cost=100))
    give_back = Report((Correction("k", HUNDRED, -40, paid.at_us),))
    before = store.statistics().trips
    refused, _, allowed, _, again = await asyncio.gather(
        store.ask(one(cost=40)),
        store.report(give_back),
        store.ask(one(cost=40)),
        store.report(Report(gate=GATE, ending=Ending.OK)),
        store.ask(one(cost=1)),
    )
    assert (refused.allowed, allowed.allowed, again.allowed) == (False, True, False)
    assert store.statistics().trips - before == 1
    await store.aclose()


@pytest.mark.real
@pytest.mark.parametrize("shape", [HUNDRED, Bucket.of(100, 60, burst=100)])
async def test_a_batch_is_one_command_reads_once_and_writes_each_key_once(
    server: Any, shape: Any
) -> None:
    store = ValkeyStore(server.url)
    await store.ask(Question(()))  # connected, the script known
    server.client.config_resetstat()
    verdicts = await asyncio.gather(*(store.ask(one(f"k{i % 4}", shape, 10)) for i in range(SIZE)))
    calls = {name: row["calls"] for name, row in server.client.info("commandstats").items()}
    assert sum(verdict.allowed for verdict in verdicts) == 40
    assert calls["cmdstat_evalsha"] == calls["cmdstat_mget"] == calls["cmdstat_time"] == 1
    assert calls["cmdstat_set"] == 4
    assert "cmdstat_eval" not in calls
    await store.aclose()


SHAPES: dict[str, list[Any]] = {
    "window": [Window(80, 60_000_000, 7_000_000), Window(60, 60_000_000, 1), Window.of(300, 60)],
    "long": [Window.of(50, 5_000, grains=40), Window.of(90, 5_000)],
    "wide": [Window(2**40, 60_000_000, 3_000_000), Window(2**25, 60_000_000, 1_000_000)],
    "bucket": [Bucket.of(59, 60, burst=30), Bucket.of(7, 10, burst=9)],
}


@pytest.mark.real
@pytest.mark.parametrize("seed", range(8))
async def test_a_batch_decides_as_if_its_members_had_come_one_by_one(server: Any, seed: int) -> None:
    """Shapes of different limit and grain take turns on the same keys; bookings come out of order;
    costs are given back and charged on top."""
    rng, now = random.Random(seed), [1_764_000_000_123_456]
    gate, longest = (GATE, 40_000_000) if seed % 2 else (None, 5_000_000_000)  # a gate is kept an hour
    valkey, memory = ValkeyStore(server.url, clock=lambda: now[0]), MemoryStore(lambda: now[0])
    paid: list[Correction] = []

    def ask(key: str) -> Ask:
        cost = rng.choice([0, 1, 3, 2**24, 2**30]) if key == "wide" else rng.randint(0, 12)
        return Ask(key, key, rng.choice(SHAPES[key]), cost)

    for _ in range(60):
        now[0] += rng.choice([0, 1, 999_999, 3_000_000, 30_000_000, rng.randrange(longest)])
        members: list[Question | Report] = []
        for _ in range(rng.randint(1, 12)):
            if paid and rng.random() < 0.3:
                members.append(Report((paid.pop(rng.randrange(len(paid))),), gate))
            else:
                asks = tuple(map(ask, rng.sample(sorted(SHAPES), rng.randint(0, 3))))
                horizon, demand = rng.choice([0.0, 0.0, 70.0]), rng.choice([0.0, 1.5])
                members.append(Question(asks, horizon, rng.choice([None, gate]), "pod", demand))
        together: list[Any] = await asyncio.gather(
            *(valkey.report(m) if isinstance(m, Report) else valkey.ask(m) for m in members)
        )
        for member, answer in zip(members, together, strict=True):
            if isinstance(member, Report):
                assert answer == await memory.report(member)
                continue
            assert answer == await memory.ask(member)
            if answer.allowed:
                shift = rng.choice([-1, -1, 1])
                paid += [Correction(a.key, a.shape, a.cost * shift, answer.at_us) for a in member.asks]
    await valkey.aclose()


@pytest.mark.real
async def test_a_poisoned_question_does_not_fail_its_neighbours(server: Any) -> None:
    """Neither one that finds a value of another type, nor one that finds nonsense; and nobody pays
    twice."""
    store = ValkeyStore(server.url)
    server.client.lpush("hw1:w:list", "x")
    server.client.set("hw1:w:nonsense", "x")
    both = Question((Ask("a", "{k}:a", HUNDRED), Ask("b", "nonsense", HUNDRED)))
    questions = [one("good"), one("list"), one("good"), one("nonsense"), both, one("good", cost=0)]
    answers = await asyncio.gather(*map(store.ask, questions), return_exceptions=True)
    bad = [isinstance(answer, ServerError) for answer in answers]
    assert bad == [False, True, False, True, True, False]
    assert [answers[i].limits[0].remaining for i in (0, 2, 5)] == [99, 98, 98]
    assert "WRONGTYPE" in str(answers[1])
    assert (await store.ask(one("{k}:a", cost=0))).limits[0].remaining == 100
    await store.aclose()


@pytest.mark.real
async def test_a_flushed_script_is_loaded_again_within_the_call_of_a_batch(server: Any) -> None:
    store = ValkeyStore(server.url)
    await store.ask(one())
    server.client.script_flush()
    before = store.statistics().trips
    verdicts = await asyncio.gather(*(store.ask(one()) for _ in range(2 * SIZE)))
    assert sum(verdict.allowed for verdict in verdicts) == 99
    assert store.statistics().trips - before == 2
    await store.aclose()


@pytest.mark.real
async def test_a_connection_that_breaks_fails_those_on_it_and_the_next_call_opens_another(
    own_server: Any,
) -> None:
    store = ValkeyStore(own_server.url, connections=1)
    await store.ask(one())
    own_server.freeze()
    asked = [asyncio.ensure_future(store.ask(one())) for _ in range(3)]
    await _settle()
    (wire,) = store._link._wires  # type: ignore[attr-defined]  # the test's own view
    wire.abort()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    own_server.thaw()
    assert {type(error) for error in errors} == {StoreDown}
    assert (await store.ask(one())).allowed
    await store.aclose()


@pytest.mark.real
async def test_a_lost_connection_is_closed_after_a_while_and_a_slow_one_kept(
    own_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ValkeyStore(own_server.url, connections=1)
    await store.ask(one())
    wires = store._link._wires  # type: ignore[attr-defined]  # the test's own view
    (wire,) = wires
    for frozen in (False, True):
        monkeypatch.setattr("headworks.store.wire.LOST_AFTER", 0.2 if frozen else 60.0)
        if frozen:
            own_server.freeze()
        asked = asyncio.ensure_future(store.ask(one()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked.cancel()
        if frozen:
            async with asyncio.timeout(60):
                while wire.open:  # noqa: ASYNC110  nothing tells when a socket closes
                    await asyncio.sleep(0.01)
            own_server.thaw()
        assert (await store.ask(one())).allowed
        assert wire.open is not frozen
    await store.aclose()
