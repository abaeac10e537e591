"""A real server frozen and killed under load."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from headworks.limits.shapes import Window
from headworks.store.ladder import LadderStore
from headworks.store.protocol import Ask, Question
from headworks.store.valkey import ValkeyStore

pytestmark = pytest.mark.real

QUESTION = Question((Ask("limit", "k", Window.of(1_000_000, 60)),))


async def _slowest(store: LadderStore, rounds: int) -> float:
    """Seconds the slowest of many decisions took, ten at a time."""
    loop, slowest = asyncio.get_running_loop(), 0.0
    for _ in range(rounds):
        started = loop.time()
        await asyncio.gather(*(store.ask(QUESTION) for _ in range(10)))
        slowest = max(slowest, loop.time() - started)
        await asyncio.sleep(0.005)
    return slowest


async def _until_up(store: LadderStore) -> None:
    async with asyncio.timeout(3):
        while True:
            if store.up and not (await store.ask(QUESTION)).degraded:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_decisions_keep_their_deadline_and_the_store_is_used_again(
    own_server: Any, how: str
) -> None:
    told: list[str] = []
    store = LadderStore(
        ValkeyStore(own_server.url),
        decision_timeout=0.1,
        rng=random.Random(2),
        on_change=lambda state, _: told.append(state),
    )
    await _until_up(store)
    own_server.freeze() if how == "frozen" else own_server.kill()
    assert await _slowest(store, 40) < 0.1 + 0.4, "deadline and scheduling on a busy machine"
    assert (store.up, told[-1]) == (False, "down")
    own_server.thaw() if how == "frozen" else own_server.start()
    await _until_up(store)
    assert told[-1] == "up"
    await store.aclose()


async def test_starting_without_a_server_is_normal(own_server: Any) -> None:
    own_server.kill()
    store = LadderStore(ValkeyStore(own_server.url), rng=random.Random(3))
    for _ in range(5):
        assert (await store.ask(QUESTION)).degraded
    own_server.start()
    await _until_up(store)
    await store.aclose()
