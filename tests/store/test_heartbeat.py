"""How many share the store is counted while it is there, and gone by when it is not."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules
from headworks.limits.shapes import Window
from headworks.store.heartbeat import EVERY, LIFE, PATIENCE, Heartbeat
from headworks.store.ladder import FAILURES, LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Census, Gate, Question, StoreDown
from headworks.testing.cancel import cancel_at_every_await
from headworks.verdict import Verdict

NOTHING = Question(())
HUNDRED = Window.of(100, 100)


class Server:
    """What several processes share: it goes away, comes back, and may have lost its memory."""

    def __init__(self) -> None:
        self.state, self.away, self.beats = MemoryStore(), False, 0

    def restart(self) -> None:
        self.state, self.away = MemoryStore(), False


class Way(MemoryStore):
    """One process's way to the server; it may be cut for this process alone."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server, self.cut = server, False

    def _there(self) -> MemoryStore:
        if self.server.away or self.cut:
            raise StoreDown("away")
        return self.server.state

    async def ask(self, question: Question) -> Verdict:
        return await self._there().ask(question)

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        self.server.beats += 1
        return await self._there().census(group, process=process, ttl=ttl)


class Fleet:
    """Processes on one server, each by its ladder."""

    def __init__(self) -> None:
        self.server, self.ways, self.ladders = Server(), list[Way](), list[LadderStore]()

    async def start(self, count: int, *, replicas: int = 1) -> list[LadderStore]:
        ladders = []
        for _ in range(count):
            self.ways.append(Way(self.server))
            rng = random.Random(len(self.ways))
            ladders.append(LadderStore(self.ways[-1], replicas=replicas, rng=rng))
            await ladders[-1].ask(NOTHING)
        self.ladders += ladders
        return ladders

    def counts(self) -> list[int]:
        return [ladder.statistics().processes for ladder in self.ladders]

    async def down(self) -> None:
        """Every process notices that the server is away."""
        for ladder in self.ladders:
            for _ in range(FAILURES):
                await ladder.ask(NOTHING)
            assert not ladder.up

    async def close(self) -> None:
        for ladder in self.ladders:
            await ladder.aclose()


async def _die(fleet: Fleet, which: int) -> None:
    """Killed: it beats no more, and tells nobody."""
    ladder = fleet.ladders.pop(which)
    fleet.ways.pop(which).cut = True
    await ladder.aclose()


async def test_a_process_is_counted_with_its_first_question_and_told_how_many_there_are() -> None:
    fleet = Fleet()
    await fleet.start(4)
    await asyncio.sleep(EVERY)
    assert fleet.counts() == [4, 4, 4, 4]
    await fleet.close()


async def test_more_are_noticed_with_the_next_beat_and_fewer_after_their_time() -> None:
    fleet = Fleet()
    await fleet.start(2)
    await asyncio.sleep(20)
    await fleet.start(3)
    await asyncio.sleep(EVERY)
    assert fleet.counts() == [5] * 5
    await _die(fleet, 0)
    await asyncio.sleep(LIFE - EVERY)
    assert fleet.counts() == [5] * 4, "it may be there still"
    await asyncio.sleep(LIFE + 2 * EVERY)
    assert fleet.counts() == [4] * 4
    await fleet.close()


async def test_who_leaves_says_so() -> None:
    fleet = Fleet()
    first, _ = await fleet.start(2)
    await asyncio.sleep(EVERY)
    await first.aclose()
    assert await fleet.server.state.census("all", process="me", ttl=0) == (1, False)
    assert await fleet.server.state.census("another", process="me", ttl=0) == (0, False)
    await fleet.close()


async def test_before_any_count_there_are_as_many_as_the_process_was_told() -> None:
    fleet = Fleet()
    fleet.server.away = True
    await fleet.start(1, replicas=7)
    await asyncio.sleep(60)
    assert fleet.counts() == [7]
    fleet.server.away = False
    await asyncio.sleep(1 + EVERY)
    assert fleet.counts() == [7], "the others may not have been counted yet"
    await asyncio.sleep(LIFE + EVERY)
    assert fleet.counts() == [1]
    await fleet.close()


async def test_the_last_count_stands_while_the_store_is_away_and_sets_the_share() -> None:
    fleet = Fleet()
    ladders = await fleet.start(4)
    await asyncio.sleep(EVERY)
    fleet.server.away = True
    await fleet.down()
    await asyncio.sleep(300)
    assert fleet.counts() == [4] * 4
    question = Question((Ask("limit", "k", HUNDRED),))
    assert (await ladders[0].ask(question)).allowed
    assert (await ladders[0].ask(question)).retry_after == pytest.approx(4.0)
    await fleet.close()


async def test_what_several_groups_share_is_split_among_the_processes_of_all() -> None:
    """Two services with a vendor's account in common; their other limits are their own."""
    server, gate = Server(), Gate("{vendor:main}:llm:gate", BreakerRules(0.5, 20, 1, 1, 1, 1))
    ladders = []
    for number, group in enumerate(("shop", "shop", "search", "search")):
        rng = random.Random(number)
        ladders.append(LadderStore(Way(server), group=group, gates=[gate.key], rng=rng))
        await ladders[-1].ask(NOTHING)
    await asyncio.sleep(LIFE)
    server.away = True
    for _ in range(FAILURES):
        await ladders[0].ask(NOTHING)
    theirs = Question((Ask("quota", "q", HUNDRED),), gate=gate)
    own = Question((Ask("limit", "k", HUNDRED),))
    assert (await ladders[0].ask(theirs)).retry_after == pytest.approx(4.0), "a fourth of one per second"
    assert (await ladders[0].ask(own)).allowed
    assert (await ladders[0].ask(own)).retry_after == pytest.approx(2.0), "one half"
    for ladder in ladders:
        await ladder.aclose()


async def test_a_process_that_first_met_a_server_that_was_away_is_counted_once_it_is_back() -> None:
    """Leases fail without a question having been asked; the first one comes after the recovery."""
    server = Server()
    server.away = True
    way = Way(server)
    way.lease = _away  # type: ignore[method-assign]  # this test's server
    ladder = LadderStore(way, rng=random.Random(1))
    for _ in range(FAILURES):
        assert not await ladder.lease("l", holder="h", limit=1, ttl=5.0)
    assert not ladder.up
    server.away = False
    await asyncio.sleep(3)
    assert ladder.up
    await ladder.ask(NOTHING)
    await asyncio.sleep(EVERY)
    assert server.beats > 0
    await ladder.aclose()


async def _away(*_: Any, **__: Any) -> int:
    raise StoreDown("away")


@pytest.mark.parametrize("pause", [0.5, 2.0, 11.0])
async def test_a_server_that_comes_back_empty_and_goes_again_makes_nobody_feel_alone(
    pause: float,
) -> None:
    """Counted anew, the first to find it again would take the whole limit for itself."""
    fleet = Fleet()
    await fleet.start(4, replicas=4)
    await asyncio.sleep(2 * LIFE)
    for _ in range(10):
        fleet.server.away = True
        await asyncio.sleep(pause)
        fleet.server.restart()
        await asyncio.sleep(pause)
        assert fleet.counts() == [4] * 4
    await fleet.close()


async def test_those_cut_off_together_keep_their_number() -> None:
    """Two of four: L·(1 + 2/4) at most. The others go by two, should they be cut off as well."""
    fleet = Fleet()
    await fleet.start(4)
    await asyncio.sleep(EVERY)
    for way in fleet.ways[2:]:
        way.cut = True
    await asyncio.sleep(60)
    assert fleet.counts() == [2, 2, 4, 4]
    await fleet.close()


async def test_a_beat_that_fails_is_not_held_against_the_store() -> None:
    """A server that counts nobody, by the rights it gives, still decides."""

    class Uncounted(MemoryStore):
        async def census(self, group: str, *, process: str, ttl: float) -> Census:
            raise StoreDown("NOPERM this user has no permissions to run the 'zadd' command")

    store = LadderStore(Uncounted(), replicas=3, rng=random.Random(1))
    for _ in range(20):
        assert not (await store.ask(NOTHING)).degraded
        await asyncio.sleep(EVERY)
    told = store.statistics()
    assert (told.failures, told.degraded, told.processes, told.up) == (0, 0, 3, True)
    await store.aclose()


async def test_a_heart_beats_on_whatever_follows_a_beat(caplog: pytest.LogCaptureFixture) -> None:
    followed = []

    async def fails(known: bool) -> None:
        followed.append(known)
        raise ValueError("unforeseen")

    heart = Heartbeat(MemoryStore(), "all", processes=1, rng=random.Random(1), then=fails)
    heart.begin()
    await asyncio.sleep(3 * EVERY)
    await heart.end()
    assert followed[:3] == [False, True, True]
    assert "what follows a beat failed" in caplog.text


async def test_a_beat_that_hangs_holds_nobody_up() -> None:
    class Hanging(MemoryStore):
        hangs = 0

        async def census(self, group: str, *, process: str, ttl: float) -> Census:
            self.hangs += 1
            await asyncio.Event().wait()
            raise AssertionError

    inner, loop = Hanging(), asyncio.get_running_loop()
    store, began = LadderStore(inner, rng=random.Random(1)), loop.time()
    assert not (await store.ask(NOTHING)).degraded
    assert loop.time() == began
    await asyncio.sleep(30)
    assert inner.hangs >= 30 / (EVERY + PATIENCE)
    await store.aclose()
    assert loop.time() == began + 30


async def test_it_is_one_task_from_the_first_question_to_the_end() -> None:
    fleet = Fleet()
    way = Way(fleet.server)
    store = LadderStore(way, rng=random.Random(1))
    assert len(asyncio.all_tasks()) == 1, "nothing runs for a store that nobody asks"
    for _ in range(3):
        await asyncio.gather(*(store.ask(NOTHING) for _ in range(50)))
        assert len(asyncio.all_tasks()) == 2
    await asyncio.sleep(60)
    assert 60 / EVERY <= fleet.server.beats <= 60 / (0.8 * EVERY) + 1
    await store.aclose()
    assert len(asyncio.all_tasks()) == 1
    beats = fleet.server.beats
    await store.ask(NOTHING)
    await asyncio.sleep(60)
    assert (len(asyncio.all_tasks()), fleet.server.beats) == (1, beats)
    unused = LadderStore(way, rng=random.Random(1))
    await unused.aclose()
    await unused.ask(NOTHING)
    assert len(asyncio.all_tasks()) == 1


async def test_closing_a_store_that_is_away_waits_for_nobody() -> None:
    fleet = Fleet()
    (store,) = await fleet.start(1)
    fleet.server.away = True
    await asyncio.sleep(2 * EVERY)
    beats = fleet.server.beats
    await store.aclose()
    assert fleet.server.beats == beats


def test_a_store_that_is_never_closed_keeps_no_loop_from_ending() -> None:
    fleet = Fleet()

    async def main() -> Any:
        await fleet.start(1)
        return asyncio.all_tasks() - {asyncio.current_task()}

    with asyncio.Runner() as runner:
        tasks = runner.run(main())
    assert len(tasks) == 1
    assert all(task.cancelled() for task in tasks)


async def test_processes_do_not_beat_in_step() -> None:
    """Beats that began together are spread out soon."""
    fleet, loop = Fleet(), asyncio.get_running_loop()
    await fleet.start(20)
    await asyncio.sleep(20 * EVERY)
    beats, times = fleet.server.beats, set[float]()
    ends = loop.time() + EVERY
    while loop.time() < ends:
        await asyncio.sleep(0.05)
        if fleet.server.beats > beats:
            times.add(loop.time())
        beats = fleet.server.beats
    assert len(times) > 10
    await fleet.close()


class Far(MemoryStore):
    """A tenth of a second away; knows how many of it are open."""

    open = 0

    def __init__(self) -> None:
        super().__init__()
        Far.open += 1

    async def ask(self, question: Question) -> Verdict:
        await asyncio.sleep(0.01)
        return await super().ask(question)

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        await asyncio.sleep(0.1)
        return await super().census(group, process=process, ttl=ttl)

    async def aclose(self) -> None:
        Far.open -= 1


def test_whoever_is_cancelled_while_asking_or_closing_leaves_no_heartbeat_and_nothing_open() -> None:
    async def life() -> None:
        store = LadderStore(Far(), rng=random.Random(1))
        try:
            await store.ask(NOTHING)
            await asyncio.sleep(5)
        finally:
            await store.aclose()

    assert cancel_at_every_await(life, snapshot=lambda: Far.open, settle=5) >= 4
