"""Limits on different slots of a cluster: asked slot by slot, and given back on a refusal.

The conformance suite's questions keep to one slot each, as the default scopes do; these do not.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Standing, StoreDown
from headworks.store.slots import ask_in_parts, question_parts
from headworks.store.valkey import ValkeyStore
from headworks.verdict import Blocked, Verdict

GATE = Gate("{gate}", BreakerRules(0.5, 4, 10_000_000, 60_000_000, 2, 5_000_000))
HUNDRED, SIXTY = Window.of(100, 60), Window.of(60, 60)


def asks(*parts: tuple[str, Shape, int]) -> tuple[Ask, ...]:
    return tuple(Ask(key, key, shape, cost) for key, shape, cost in parts)


@pytest.mark.real
@pytest.mark.parametrize("shapes", [(HUNDRED, SIXTY), (Bucket.of(100, 60, burst=100), SIXTY)])
async def test_it_answers_as_memory_does(cluster: Any, clock: Any, shapes: Any) -> None:
    question = Question(asks(("a", shapes[0], 5), ("b", shapes[1], 7), ("c", Window.of(9, 60), 1)))
    stores = [MemoryStore(clock), ValkeyStore(cluster.url, clock=clock)]
    for _ in range(12):
        clock.pass_(1.5)
        expected, verdict = [await store.ask(question) for store in stores]
        assert verdict.allowed == expected.allowed
        assert verdict.retry_after == expected.retry_after
        for state, wanted in zip(verdict.limits, expected.limits, strict=True):
            assert state.name == wanted.name
            assert (state.allowed, state.remaining) == (wanted.allowed, wanted.remaining)
            assert state.retry_after == wanted.retry_after
    assert not verdict.allowed
    assert len({stores[1]._link.slot(f"hw1:w:{key}") for key in "abc"}) == 3
    for store in stores:
        await store.aclose()


@pytest.mark.real
async def test_a_race_is_never_over_and_leaves_nothing_taken(cluster: Any) -> None:
    """Two hundred tasks for a hundred of one and sixty of the other."""
    store = ValkeyStore(cluster.url)
    question = Question(asks(("a", HUNDRED, 1), ("b", SIXTY, 1)))
    verdicts = await asyncio.gather(*(store.ask(question) for _ in range(200)))
    passed = sum(verdict.allowed for verdict in verdicts)
    assert 50 <= passed <= 60
    left = []
    for key, shape in (("a", HUNDRED), ("b", SIXTY)):
        left.append((await store.ask(Question(asks((key, shape, 0))))).limits[0].remaining)
    assert left == [100 - passed, 60 - passed], "what was given back is there again"
    await store.aclose()


@pytest.mark.real
async def test_a_refusal_elsewhere_gives_the_probe_back_and_a_shut_gate_takes_nothing(
    cluster: Any, clock: Any
) -> None:
    store = ValkeyStore(cluster.url, clock=clock)
    question = Question(asks(("far", SIXTY, 60)), gate=GATE)
    epoch = (await store.ask(Question((), gate=GATE))).epoch
    for _ in range(4):
        await store.report(Report(gate=GATE, ending=Ending.FAILED, epoch=epoch))
    shut = await store.ask(question)
    assert (shut.allowed, shut.blocked) == (False, Blocked.OPEN)
    clock.pass_(60)
    assert (await store.ask(question)).probe == 1
    for _ in range(5):
        refused = await store.ask(question)
        assert (refused.allowed, refused.blocked, refused.probe) == (False, None, 0)
    assert (await store.ask(Question((), gate=GATE))).probe > 1
    await store.aclose()


@pytest.mark.real
async def test_a_report_reaches_every_slot(cluster: Any, clock: Any) -> None:
    store = ValkeyStore(cluster.url, clock=clock)
    question = Question(asks(("a", HUNDRED, 50), ("b", HUNDRED, 50)), gate=GATE)
    paid = await store.ask(question)
    corrections = tuple(Correction(key, HUNDRED, -50, paid.at_us) for key in "ab")
    standing = await store.report(Report(corrections, GATE, Ending.OK, epoch=paid.epoch, cool_down=2))
    assert (standing.epoch, standing.shut_for) == (paid.epoch + 1, 2)
    for key in "ab":
        assert (await store.ask(Question(asks((key, HUNDRED, 0))))).limits[0].remaining == 100
    await store.aclose()


async def test_a_slot_that_fails_gives_the_others_back() -> None:
    store = MemoryStore()
    question = Question(asks(("a", HUNDRED, 5), ("b", SIXTY, 7), ("gone", SIXTY, 1)))

    async def ask(part: Question) -> Verdict:
        if part.asks[0].key == "gone":
            raise StoreDown("gone")
        return await store.ask(part)

    async def report(part: Report) -> Standing:
        return await store.report(part)

    parts = question_parts(question, lambda limit: ord(limit.key[0]), lambda gate: 0)
    with pytest.raises(StoreDown):
        await ask_in_parts(parts, ask, report)
    for key, shape in (("a", HUNDRED), ("b", SIXTY)):
        left = (await store.ask(Question(asks((key, shape, 0))))).limits[0].remaining
        assert left == shape.limit
