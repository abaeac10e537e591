"""What only the store in memory can get wrong: growing without end."""

from __future__ import annotations

from typing import Any

from headworks.limits.shapes import Bucket, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question


async def test_it_forgets_what_is_as_good_as_new(clock: Any) -> None:
    store = MemoryStore(clock)
    for i in range(2_000):
        asks = (Ask("w", f"w{i}", Window.of(10, 60)), Ask("b", f"b{i}", Bucket.of(10, 60)))
        await store.ask(Question(asks))
    assert len(store) == 4_000
    clock.pass_(61)
    for i in range(2_000):
        asks = (
            Ask("w", "w", Window.of(10**6, 60)),
            Ask("b", f"b{i % 7}", Bucket.of(10**6, 60, burst=999)),
        )
        assert (await store.ask(Question(asks))).allowed
    assert len(store) <= 10


async def test_it_keeps_what_still_counts_however_many_keys_come_after(clock: Any) -> None:
    store = MemoryStore(clock)
    await store.ask(Question((Ask("w", "mine", Window.of(10, 60), 10),)))
    clock.pass_(59)
    for i in range(1_000):
        await store.ask(Question((Ask("w", f"w{i}", Window.of(10, 60)),)))
    assert not (await store.ask(Question((Ask("w", "mine", Window.of(10, 60)),)))).allowed


async def test_a_forgotten_key_comes_back_once() -> None:
    store = MemoryStore()
    question = Question((Ask("w", "k", Window.of(10, 60)),))
    for _ in range(5):
        await store.ask(question)
        await store.forget(["k"])
    assert len(store) == 1
    assert (await store.ask(question)).limits[0].remaining == 9
