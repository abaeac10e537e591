"""A question that is put for one who is no task: heard once, decided as `ask` would; virtual time."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from tests.store.servers import ClusterOfThree, Server
from tests.store.test_batching import HeldLink
from tests.store.test_ladder import GATE, TEN, Moody, ladder, now, one

from headworks.limits.shapes import Window
from headworks.store.batch import GiveUp, ServerError
from headworks.store.deadline import LOOK_AGAIN
from headworks.store.deny import DenyCache
from headworks.store.ladder import FAILURES, LadderStore
from headworks.store.protocol import FinalAsk, Leaves, Question, Receiver, Store, StoreDown
from headworks.store.scripts import Script
from headworks.store.valkey import ValkeyStore
from headworks.testing import loop
from headworks.verdict import Verdict


class Beginning(Moody):
    """One whose answers are on their way: to those who wait for them, and to those who do not."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.left = 0

    def begin(self, question: Question, to: Receiver) -> Leaves:
        self.begun += 1
        asyncio.get_running_loop().call_later(self.delay, self.tell, to, question)
        return self

    def leave(self) -> None:
        self.left += 1

    def tell(self, to: Receiver, question: Question) -> None:
        if to.done():
            return
        self.before()
        if self.error is not None:
            to.set_exception(self.error)
        else:
            to.set_result(self.ask_nowait(question))


async def asked(store: Store) -> None:
    """The first question, with which a ladder begins; nothing is put before it."""
    await store.ask(Question(()))


async def put(store: Store, question: Question, *, waits: float = 1.0) -> Verdict:
    """The verdict that was heard of it, once."""
    heard: list[Verdict] = []
    assert store.put(question, heard.append)
    assert not heard, "in a later turn of the loop"
    await asyncio.sleep(waits)
    (verdict,) = heard
    return verdict


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What nobody handled, by the loop's own word."""
    found: list[str] = []
    running = asyncio.get_running_loop()
    running.set_exception_handler(lambda _, context: found.append(str(context.get("exception"))))
    try:
        yield found
    finally:
        running.set_exception_handler(None)


async def test_whoever_puts_hears_the_stores_verdict_once() -> None:
    inner = Beginning()
    store = ladder(inner)
    await asked(store)
    inner.delay = 0.04
    verdict = await put(store, one())
    assert (verdict.allowed, verdict.degraded, verdict.limits[0].remaining) == (True, False, 9)
    assert (inner.begun, inner.left, store.statistics().questions) == (1, 0, 2)
    assert not store._deciding.waiting
    await store.aclose()


Mood = Callable[[Beginning], None]


def fails(error: Exception) -> Mood:
    return lambda inner: setattr(inner, "error", error)


def held_up(inner: Beginning) -> None:
    """The event loop is, past the deadline, and the answer comes when even the last look is over."""
    running: Any = asyncio.get_running_loop()
    running.call_later(0.02, running.advance, 0.1)
    inner.delay = 5.0


def held_up_with_the_answer(inner: Beginning) -> None:
    """The loop is, but the answer has come meanwhile."""
    running: Any = asyncio.get_running_loop()
    running.call_later(0.02, running.advance, 0.1)
    inner.delay = 0.04


MOODS: dict[str, Mood] = {
    "well": lambda inner: None,
    "READONLY": fails(ServerError("READONLY You can't write against a read only replica.")),
    "LOADING": fails(ServerError("LOADING the dataset is in memory")),
    "lost": fails(StoreDown("connection lost")),
    "unforeseen": fails(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")),
    "late": lambda inner: setattr(inner, "delay", 5.0),
    "held up": held_up,
    "held up, and answered": held_up_with_the_answer,
}


@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("when_down", ["share", "open", "closed"])
@pytest.mark.parametrize("shape", [TEN, Window.of(1, 60)])
async def test_it_is_decided_and_counted_as_ask_would(mood: str, when_down: Any, shape: Any) -> None:
    """Four in a row, of which the store is down after three that fail, then one after it is back."""
    found = []
    for way in (put_or_ask, ask):
        inner, told = Beginning(), []
        store = ladder(
            inner, when_down=when_down, on_change=lambda *change, told=told: told.append(change)
        )
        await asked(store)
        seen: list[Any] = []
        for moods in (mood, mood, mood, mood, "well"):
            inner.error, inner.delay = None, 0.0
            MOODS[moods](inner)
            verdict = await way(store, one(shape=shape))
            seen.append(
                (_plain(verdict), store.up, store._in_a_row, store.round, sorted(store._share._empty))
            )
            await asyncio.sleep(0.2 if moods == mood and store.up else 0.0)
        stood = store.statistics()
        found.append((seen, told, stood.questions, stood.failures, stood.degraded))
        await store.aclose()
    assert found[0] == found[1]


async def put_or_ask(store: Store, question: Question) -> Verdict:
    """As the door does it."""
    heard: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    if store.put(question, heard.set_result):
        return await heard
    return await store.ask(question)


async def ask(store: Store, question: Question) -> Verdict:
    return await store.ask(question)


def _plain(verdict: Verdict) -> tuple[Any, ...]:
    """Without what depends on when it was asked."""
    return (
        verdict.allowed,
        verdict.degraded,
        round(verdict.retry_after, 3),
        [(state.name, state.limit, state.allowed, state.remaining) for state in verdict.limits],
    )


async def test_a_deadline_takes_as_long_as_one_who_waits_and_leaves_the_call() -> None:
    inner = Beginning()
    store = ladder(inner)
    await asked(store)
    inner.delay = 5.0
    heard: list[float] = []
    assert store.put(one(), lambda verdict: heard.append(now() - began))
    began = now()
    await asyncio.sleep(10.0)
    assert heard == [pytest.approx(0.05)]
    assert inner.left == 1
    await store.aclose()


async def test_an_answer_in_the_same_turn_as_the_deadline_counts() -> None:
    """Whichever of both the loop runs first: it is heard once, and who leaves leaves one call."""
    for first in (True, False):
        inner = Beginning()
        store = ladder(inner)
        await asked(store)
        inner.delay = 9.0
        heard: list[Verdict] = []
        assert store.put(one(), heard.append)
        await asyncio.sleep(0.0495)  # the last look is on its way
        (handle,) = [
            timer
            for timer in asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            if getattr(timer._callback, "__name__", "") == "_expire"
        ]
        put, running = handle._callback.__self__, asyncio.get_running_loop()

        def expires(handle: Any = handle) -> None:
            if not handle.cancelled():
                handle._run()
                handle.cancel()

        def answers(put: Any = put, inner: Any = inner) -> None:
            inner.tell(put, one())

        for call in (answers, expires) if first else (expires, answers):
            running.call_soon(call)
        await asyncio.sleep(0.1)
        (verdict,) = heard
        assert verdict.degraded is not first
        assert (inner.left, store.statistics().failures) == ((0, 0) if first else (1, 1))
        await store.aclose()


async def test_a_loop_that_was_held_up_blames_nobody_and_looks_again() -> None:
    inner = Beginning()
    store = ladder(inner)
    await asked(store)
    held_up(inner)
    began, heard = now(), []
    assert store.put(one(), lambda verdict: heard.append((now() - began, verdict.degraded)))
    await asyncio.sleep(1.0)
    assert heard == [(pytest.approx(0.12 + LOOK_AGAIN, abs=0.002), True)]
    stood = store.statistics()
    assert (stood.failures, stood.degraded, stood.up, inner.left) == (0, 1, True, 1)
    await store.aclose()


async def test_a_hiccup_counts_once_however_many_it_meets() -> None:
    """As of questions that are waited for, and together with them."""
    inner = Beginning()
    store = ladder(inner)
    await asked(store)
    inner.delay = 5.0
    for number in range(FAILURES):
        assert store.up, number
        heard: list[Verdict] = []
        for key in range(25):
            assert store.put(one(str(key)), heard.append)
        waited = await asyncio.gather(*(store.ask(one(f"w{key}")) for key in range(25)))
        await asyncio.sleep(0.001)
        assert [verdict.degraded for verdict in (*heard, *waited)] == [True] * 50
    assert (store.up, store.statistics().failures) == (False, 50 * FAILURES)
    await store.aclose()


async def test_nothing_is_put_before_the_first_question_or_while_the_store_is_down() -> None:
    inner = Beginning()
    store = ladder(inner)
    assert not store.put(one(), _nobody)
    await asked(store)
    inner.error = StoreDown("gone")
    for _ in range(FAILURES):
        assert (await put(store, one(), waits=0.01)).degraded
    assert not store.up
    assert not store.put(one(), _nobody)
    inner.error = None
    await asyncio.sleep(5.0)
    assert store.up
    assert not store.put(one(), _nobody), "whoever asks first begins it again"
    await asked(store)
    assert not (await put(store, one())).degraded
    await store.aclose()


def _nobody(verdict: Verdict) -> None:
    raise AssertionError("nothing was put, and nobody hears anything")


@pytest.mark.parametrize(
    "question",
    [one(horizon=1.0), one(gate=GATE), one(pod="p", demand=1.0)],
    ids=["horizon", "gate", "demand"],
)
async def test_what_is_for_tasks_is_not_put(question: Question) -> None:
    inner = Beginning()
    store = ladder(inner)
    await asked(store)
    for outer in (store, DenyCache(store)):
        assert not outer.put(question, _nobody)
    await asyncio.sleep(1.0)
    assert (inner.begun, store.statistics().questions) == (0, 1)
    await store.aclose()


async def test_those_who_are_out_when_the_store_is_closed_hear_once() -> None:
    """Those on their way and those behind them; and who puts after that hears, too."""
    inner = ValkeyStore(HeldLink(), in_flight=1)
    store = LadderStore(inner, rng=random.Random(1), decision_timeout=0.5)
    store._asking = True  # as after the first question; without its heartbeat
    heard: list[Verdict] = []
    assert store.put(one("sent"), heard.append)
    await asyncio.sleep(0.1)
    assert store.put(one("queued"), heard.append)
    await store.aclose()
    await asyncio.sleep(5.0)
    assert [verdict.degraded for verdict in heard] == [True, True]
    assert not store._deciding.waiting


async def test_the_last_to_be_late_gives_the_call_up() -> None:
    link = HeldLink()
    link.seconds = 60.0
    store = LadderStore(ValkeyStore(link, in_flight=1), rng=random.Random(1))
    store._asking = True
    heard: list[Verdict] = []
    for key in ("a", "b"):
        assert store.put(one(key), heard.append)
    await asyncio.sleep(0.01)
    link.seconds = 0.0
    assert store.put(one("c"), heard.append)
    await asyncio.sleep(0.045)
    assert (len(heard), link.given_up) == (3, 1)
    assert [verdict.degraded for verdict in heard] == [True, True, False]
    assert len(link.calls) == 2
    await store.aclose()


async def test_one_who_is_late_before_the_call_is_sent_is_not_sent() -> None:
    link = HeldLink()
    link.seconds = 10.0
    inner = ValkeyStore(link, in_flight=1)
    store = LadderStore(inner, rng=random.Random(1))
    store._asking = True
    patient = asyncio.create_task(inner.ask(one("patient")))
    await asyncio.sleep(0.01)
    assert (await put(store, one("late"))).degraded
    assert (await patient).allowed
    await asyncio.sleep(1.0)
    assert (len(link.calls), link.given_up) == (1, 0)
    await store.aclose()


def quick(reply: list[Any] | None = None, *, in_flight: int | None = None) -> LadderStore:
    """Over a server that answers each call soon; with `reply`, where it is not to be what was asked."""
    link = HeldLink()
    link.seconds = 0.01
    if reply is not None:
        link.reply = reply
    store = LadderStore(ValkeyStore(link, in_flight=in_flight), rng=random.Random(1))
    store._asking = True
    return store


async def test_one_that_cannot_be_written_spoils_it_for_nobody() -> None:
    store = quick()
    heard: dict[str, list[bool]] = {"a": [], "\ud800": [], "b": []}
    for key, told in heard.items():
        assert store.put(one(key), lambda verdict, told=told: told.append(verdict.degraded))
    await asyncio.sleep(1.0)
    assert heard == {"a": [False], "\ud800": [True], "b": [False]}
    await store.aclose()


async def test_a_reply_that_cannot_be_read_is_heard_of_by_all() -> None:
    store = quick([b"\0" * 8])
    heard: list[Verdict] = []
    for key in ("a", "b", "c"):
        assert store.put(one(key), heard.append)
    await asyncio.sleep(1.0)
    assert [verdict.degraded for verdict in heard] == [True] * 3
    assert store.up, "a hiccup, which counts once"
    await store.aclose()


async def test_what_one_raises_is_nobody_elses_loss() -> None:
    """Of several in one call; and one whose `first` raises hears all the same."""
    store = quick()
    heard: list[Verdict] = []

    def raises(*_: object) -> None:
        raise RuntimeError("a bug")

    with complaints() as said:
        assert store.put(one("a"), raises)
        assert store.put(one("b"), heard.append, raises)
        assert store.put(one("c"), heard.append)
        await asyncio.sleep(1.0)
    assert (len(heard), said) == (2, ["a bug", "a bug"])
    assert not store._deciding.waiting
    assert store.up
    await store.aclose()


@pytest.mark.parametrize("raised", [IndexError("a bug"), asyncio.CancelledError("a bug")])
async def test_what_one_raises_is_neither_the_replys_fault_nor_the_connections(
    raised: BaseException,
) -> None:
    """An `IndexError` is what a reply that cannot be read raises, too."""
    store = quick()
    heard: list[Verdict] = []

    def raises(verdict: Verdict) -> None:
        raise raised

    with complaints() as said:
        for to in (heard.append, raises, heard.append):
            assert store.put(one(), to)
        await asyncio.sleep(1.0)
    assert ([verdict.degraded for verdict in heard], said) == ([False, False], ["a bug"])
    assert (store.statistics().failures, store.statistics().trips) == (0, 1)
    await store.aclose()


async def test_who_is_told_may_put_the_next_question() -> None:
    """Into the calls that its own came back from, with others of its call still to be told."""
    store = quick()
    heard: list[tuple[str, bool]] = []

    def again(verdict: Verdict) -> None:
        heard.append(("first", verdict.degraded))
        assert store.put(one("next"), lambda verdict: heard.append(("next", verdict.degraded)))
        assert len(heard) == 1, "in a later turn of the loop"

    assert store.put(one("a"), again)
    assert store.put(one("b"), lambda verdict: heard.append(("other", verdict.degraded)))
    await asyncio.sleep(1.0)
    assert heard == [("first", False), ("other", False), ("next", False)]
    assert not store._deciding.waiting
    await store.aclose()


async def test_who_is_told_may_close_the_store() -> None:
    """Those of its call hear what the store has said; those behind it that there is no answer."""
    store = quick(in_flight=1)
    heard: list[tuple[str, bool]] = []

    def closes(verdict: Verdict) -> None:
        heard.append(("closes", verdict.degraded))
        store._inner._batches.close()  # type: ignore[attr-defined]  # the test's own view
        assert len(heard) == 1, "those behind in a later turn of the loop"

    assert store.put(one("a"), closes)
    assert store.put(one("b"), lambda verdict: heard.append(("beside", verdict.degraded)))
    await asyncio.sleep(0.005)
    assert store.put(one("c"), lambda verdict: heard.append(("behind", verdict.degraded)))
    await asyncio.sleep(1.0)
    assert heard == [("closes", False), ("beside", False), ("behind", True)]
    assert not store._deciding.waiting
    await store.aclose()


async def test_nobody_hears_within_the_closing_of_the_store() -> None:
    """In a later turn of the loop than the one in which it was put, which may be that of the closing."""
    store = quick()
    heard: list[Verdict] = []
    assert store.put(one(), heard.append)
    store._inner._batches.close()  # type: ignore[attr-defined]  # the test's own view
    assert not heard
    await asyncio.sleep(0)
    assert [verdict.degraded for verdict in heard] == [True]
    await store.aclose()


async def test_a_reply_after_the_deadline_is_heard_by_those_who_still_wait() -> None:
    """Of one call; who was late is not told again."""
    link = HeldLink()
    link.seconds = 0.06
    store = LadderStore(ValkeyStore(link), rng=random.Random(1))
    store._asking = True
    heard: list[bool] = []
    waited = asyncio.create_task(store._inner.ask(one("patient")))
    await asyncio.sleep(0)
    assert store.put(one("late"), lambda verdict: heard.append(verdict.degraded))
    await asyncio.sleep(0.055)
    assert heard == [True]
    assert (await waited).allowed
    await asyncio.sleep(1.0)
    assert (heard, len(link.calls), link.given_up) == ([True], 1, 0)
    await store.aclose()


WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


@pytest.mark.parametrize("seconds", [0.01, 60.0])
@pytest.mark.parametrize("error", [None, StoreDown("gone")])
async def test_who_put_hears_in_its_own_context(seconds: float, error: Exception | None) -> None:
    """And not in that of whoever reads the reply, or set the timer: a request becomes a task there."""
    link = HeldLink()
    link.seconds, link.error = seconds, error
    store = LadderStore(ValkeyStore(link), rng=random.Random(1))
    store._asking = True
    heard: list[str] = []

    def first(*_: object) -> None:
        heard.append(WHOSE.get())

    for whose in ("a", "b"):
        context = copy_context()
        context.run(WHOSE.set, whose)
        assert context.run(store.put, one(), lambda verdict: heard.append(WHOSE.get()), first)
    await asyncio.sleep(10.0)
    assert heard == ["a", "a", "b", "b"]
    await store.aclose()


async def test_the_deny_cache_remembers_with_the_time_it_was_put() -> None:
    """As of a question that was asked: not a moment longer than the store would refuse."""
    refused = Question((FinalAsk("limit", "k", Window.of(1, 60), 1),))
    found = []
    for way in (put_or_ask, ask):
        inner = Beginning()
        store = DenyCache(ladder(inner))
        await asked(store)
        assert (await way(store, refused)).allowed
        assert store.known_nowait(refused.asks) is None
        await asyncio.sleep(1.0)
        inner.delay = 0.04
        began = now()
        assert not (await way(store, refused)).allowed
        ((*_, retry_after, at),) = store._young.values()
        assert store.known_nowait(refused.asks) is not None
        found.append((at - began, round(retry_after, 6)))
        await store.aclose()
    assert found[0] == found[1]
    assert found[0][0] == 0.0


async def test_the_deny_cache_remembers_no_verdict_that_was_reached_alone() -> None:
    inner = Beginning()
    store = DenyCache(ladder(inner, when_down="closed"))
    await asked(store)
    inner.error = StoreDown("gone")
    verdict = await put(store, Question((FinalAsk("limit", "k", TEN, 1),)))
    assert (verdict.allowed, verdict.degraded, len(store)) == (False, True, 0)
    assert not DenyCache(store).put(one(), _nobody), "only one can learn"
    await store.aclose()


@pytest.mark.parametrize("mood", ["well", "lost", "unforeseen", "late", "held up"])
@pytest.mark.parametrize("travels", [False, True])
async def test_nothing_is_left_to_the_collector(mood: str, travels: bool) -> None:
    """travels: with others of its call, over a link."""
    inner = Beginning()
    store: Store = DenyCache(ladder(inner))
    await asked(store)
    MOODS[mood](inner)
    if isinstance(inner.error, UnicodeEncodeError):
        inner.error = RuntimeError("a bug")
    if travels:
        link = SilentLink() if inner.delay > 1.0 else HeldLink()
        link.seconds, link.error = 0.01, inner.error
        over_it = LadderStore(ValkeyStore(link), rng=random.Random(1))
        over_it._asking = True
        store = DenyCache(over_it)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert (await put(store, one())).degraded is (mood != "well")
        gc.collect()
        left = [found for found in gc.garbage if type(found).__name__ in ("Put", "Future", "Context")]
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert not left
    await store.aclose()


class SilentLink(HeldLink):
    """Never answers, and has no task that would end with its loop: as a socket does."""

    def post(self, script: Script, keys: Sequence[Any], args: Sequence[Any], to: Receiver) -> GiveUp:
        return lambda: None


@pytest.mark.parametrize("asks", [False, True])
def test_what_an_ended_loop_has_left_is_in_nobodys_way(asks: bool) -> None:
    """A question that was out when its loop ended is forgotten by the next: closing the store there once
    raised that the loop was closed."""
    store = LadderStore(ValkeyStore(SilentLink()), rng=random.Random(1))
    store._asking = True
    heard: list[Verdict] = []

    async def leave() -> None:
        assert store.put(one(), heard.append)
        await asyncio.sleep(0.01)

    async def go_on() -> None:
        if asks:
            assert (await put(store, one())).degraded
        await store.aclose()

    loop.run(leave())
    loop.run(go_on())
    assert heard == []


async def test_neither_a_cluster_nor_a_memory_is_put_anything() -> None:
    link = HeldLink(slots=3)
    store = LadderStore(ValkeyStore(link), rng=random.Random(1))
    store._asking = True
    assert not store.put(one(), _nobody)
    assert not Moody().put(one(), _nobody)
    assert not ValkeyStore(HeldLink()).put(one(), _nobody), "it has no deadline to give"
    await asyncio.sleep(1.0)
    assert (link.calls, store.statistics().questions) == ([], 0)
    await store.aclose()


@pytest.mark.real
class TestOverARealServer:
    """The same, over a socket."""

    async def test_what_is_put_and_what_is_asked_share_their_limits(self, server: Server) -> None:
        """The script is not known to a server that was emptied, and is given its source on the way."""
        server.client.script_flush()
        async with opened(server.url) as store:
            await asked(store)
            server.client.script_flush()
            heard: list[Verdict] = []
            for _ in range(12):
                assert store.put(one(), heard.append)
            await until(lambda: len(heard) == 12)
            assert [verdict.allowed for verdict in heard] == [True] * 10 + [False] * 2
            assert not any(verdict.degraded for verdict in heard)
            assert not (await store.ask(one())).allowed

    async def test_half_a_surrogate_beside_good_ones(self, server: Server) -> None:
        async with opened(server.url) as store:
            await asked(store)
            heard: list[tuple[str, bool]] = []
            for key in ("a", "\ud800", "b"):
                question = one(key)
                assert store.put(
                    question, lambda verdict, key=key: heard.append((key, verdict.degraded))
                )
            await until(lambda: len(heard) == 3)
            assert sorted(heard) == [("a", False), ("b", False), ("\ud800", True)]

    async def test_a_server_that_takes_no_writing_is_down_after_three(self, own_server: Server) -> None:
        """READONLY: an error reply, as LOADING is."""
        async with opened(own_server.url) as store:
            await asked(store)
            own_server.client.replicaof("127.0.0.1", 1)
            for _ in range(FAILURES):
                heard: list[Verdict] = []
                assert store.put(one(), heard.append)
                await until(lambda heard=heard: heard)
                assert [verdict.degraded for verdict in heard] == [True]
            assert (store.up, store.statistics().failures) == (False, FAILURES)
            own_server.client.replicaof("NO", "ONE")
            await until(lambda: store.up)
            await asked(store)
            heard = []
            assert store.put(one("other"), heard.append)
            await until(lambda: heard)
            assert [verdict.degraded for verdict in heard] == [False]

    async def test_a_server_that_is_frozen_and_then_gone(self, own_server: Server) -> None:
        """Those who are out hear at their deadline, those of a lost connection at once; each once."""
        async with opened(own_server.url) as store:
            await asked(store)
            own_server.freeze()
            heard: list[Verdict] = []
            for key in range(200):
                assert store.put(one(str(key)), heard.append)
            await until(lambda: len(heard) == 200)
            own_server.thaw()
            assert all(verdict.degraded for verdict in heard)
            await until(lambda: own_server.client.ping())
            await asked(store)
            assert store.up, "a hiccup counts once"
            own_server.freeze()
            again: list[Verdict] = []
            assert store.put(one(), again.append)
            await asyncio.sleep(0)
            own_server.kill()
            await until(lambda: again)
            await asyncio.sleep(0.1)
            assert (len(heard), [verdict.degraded for verdict in again]) == (200, [True])

    async def test_a_cluster_is_for_tasks(self, cluster: ClusterOfThree) -> None:
        async with opened(cluster.url) as store:
            await asked(store)
            assert not store.put(one(), _nobody)
            assert not (await store.ask(one())).degraded


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[LadderStore]:
    """A ladder over a server, which decides within so long that no stall of the machine matters."""
    store = LadderStore(ValkeyStore(url), rng=random.Random(1), decision_timeout=5.0)
    try:
        yield store
    finally:
        await store.aclose()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # nothing tells when
            await asyncio.sleep(0.005)
