"""A real server that is frozen, killed, and cut off from some of its pods, under load."""

from __future__ import annotations

import asyncio
import gc
import random
import select
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headworks.limits.shapes import Bucket, Window
from headworks.store.ladder import LadderStore
from headworks.store.protocol import Ask, Question
from headworks.store.valkey import ValkeyStore

pytestmark = pytest.mark.real

PLENTY = Question((Ask("limit", "k", Window.of(1_000_000, 60)),))
DEADLINE = 0.5
"""Seconds for a decision: a server that is held up for a moment does not miss three of them in a row."""
PATIENCE = 60.0
"""Seconds after which something has not happened."""
SCHEDULING = 0.3
"""Seconds by which a machine with two cores, used by others too, may be late; see `Lag` for more."""


@dataclass
class Load:
    """What one pod's callers saw: how long it took, and when what passed had been decided."""

    store: LadderStore
    question: Question
    slowest: float = 0.0
    answers: int = 0
    """How often the store itself decided."""
    shared: list[float] = field(default_factory=list)
    """When it let somebody pass, by its clock, which is the system's."""
    alone: list[float] = field(default_factory=list)
    """When the pod alone did, by the same clock."""

    async def run(self, pause: float, rng: random.Random) -> None:
        loop = asyncio.get_running_loop()
        system = time.time() - loop.time()
        while True:
            began = loop.time()
            verdict = await self.store.ask(self.question)
            self.slowest = max(self.slowest, loop.time() - began)
            self.answers += not verdict.degraded
            if verdict.allowed and verdict.degraded:
                self.alone.append(verdict.at_us / 1e6 + system)
            elif verdict.allowed:
                self.shared.append(verdict.at_us / 1e6)
            await asyncio.sleep(pause * rng.uniform(0.5, 1.5))  # lest all ask at the same moment


@dataclass
class Lag:
    """How late the machine let a timer be, at worst: a decision meets a few of them."""

    worst: float = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, loop.time() - due)

    @property
    def scheduling(self) -> float:
        return max(SCHEDULING, 3 * self.worst)


@asynccontextmanager
async def load(*loads: Load, tasks: int, pause: float) -> AsyncIterator[Lag]:
    """So many callers of each, until the block ends; what they raise, it raises."""
    lag, rng = Lag(), random.Random(1)
    running = [asyncio.create_task(one.run(pause, rng)) for one in loads for _ in range(tasks)]
    running.append(asyncio.create_task(lag.run()))
    try:
        yield lag
    finally:
        failed = [task.exception() for task in running if task.done()]
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    assert failed == []


async def until(condition: Callable[[], object]) -> None:
    """Look again and again whether it has come true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells when another process is ready
            await asyncio.sleep(0.005)


def pods(url: str, count: int, told: list[str], deadline: float = DEADLINE) -> list[LadderStore]:
    """Pods that were told nothing of one another: they count themselves."""
    return [
        LadderStore(
            ValkeyStore(url),
            decision_timeout=deadline,
            rng=random.Random(),  # tells one process from another
            on_change=lambda state, _: told.append(state),
        )
        for _ in range(count)
    ]


@pytest.fixture
def quickly_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headworks.store.heartbeat.EVERY", 0.5)


def all_counted(stores: list[LadderStore]) -> bool:
    return all(store.statistics().processes == len(stores) for store in stores)


async def connected(store: LadderStore) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await store.ask(PLENTY)).degraded:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.005)


def since(moment: float, times: list[float]) -> int:
    """How many of them are later."""
    return sum(at > moment for at in times)


def trips(stores: list[LadderStore]) -> list[int]:
    return [store.statistics().trips for store in stores]


@pytest.mark.usefixtures("quickly_counted")
@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_a_while_without_a_server(own_server: Any, how: str) -> None:
    """No exception, no late decision, no more than L·(1 + 4/4), the store used again on its return; and
    no stampede: each pod but looks for it now and then, however many are asking."""
    told: list[str] = []
    stores = pods(own_server.url, 4, told)
    loads = [Load(store, PLENTY) for store in stores]
    limited = [Load(store, Question((Ask("limit", "few", Window.of(200, 2)),))) for store in stores]
    async with load(*loads, *limited, tasks=50, pause=0.1) as lag:
        await until(lambda: all(one.answers for one in loads) and all_counted(stores))
        before = connections(own_server)
        own_server.freeze() if how == "frozen" else own_server.kill()
        await until(lambda: told == ["down"] * 4)
        gone, asked = time.time(), trips(stores)
        await until(lambda: all(since(gone, one.alone) >= 50 for one in limited))
        alone = [since(gone, one.alone) for one in limited]
        took = time.time() - gone
        asked = [now - then for now, then in zip(trips(stores), asked, strict=True)]
        own_server.thaw() if how == "frozen" else own_server.start()
        await until(lambda: sorted(told) == ["down"] * 4 + ["up"] * 4)
        made = connections(own_server) - (before if how == "frozen" else 0)
        back = time.time()
        await until(lambda: sum(since(back, one.shared) for one in limited) >= 200)
    assert max(alone) <= 25 * took + 1, "a fourth of the limit each"
    looks = 4 + took / 0.4
    assert max(asked) <= 2 * looks + 1 + took / 0.4, "two questions a look, and the heartbeat"
    assert made <= 4 * (2 + looks) + 1, "two for each pod, those of the looks, and this one"
    assert max(one.slowest for one in [*loads, *limited]) < DEADLINE + lag.scheduling
    admitted = [at for one in limited for at in (*one.shared, *one.alone)]
    assert most_in_any(2, admitted) <= 200 * (1 + 4 / 4) + 4
    for store in stores:
        await store.aclose()


def connections(server: Any) -> int:
    """Those made since the server started."""
    made: int = server.client.info("stats")["total_connections_received"]
    return made


class Proxy:
    """A way to the server that takes its time each way, and can stand still, for whoever uses it."""

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self._target, self._open, self._streams = port, asyncio.Event(), set[asyncio.StreamWriter]()
        self._delay = delay
        self._open.set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"valkey://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._streams |= {writer, back}
        ways = [self._carry(reader, back), self._carry(there, writer)]
        await asyncio.gather(*ways, return_exceptions=True)
        for stream in (writer, back):
            self._streams.discard(stream)
            stream.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            await asyncio.sleep(self._delay)
            writer.write(data)
        writer.close()

    def stall(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    async def close(self) -> None:
        self._server.close()
        self._open.set()
        for stream in list(self._streams):
            stream.close()
        await until(lambda: not self._streams)


def most_in_any(window: float, times: list[float]) -> int:
    """The most of them that lie in any stretch of that length."""
    times, most, first = sorted(times), 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - window:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.usefixtures("quickly_counted")
@pytest.mark.parametrize("shape", [Window.of(200, 2), Bucket.of(200, 2, burst=20)])
async def test_with_some_pods_cut_off_the_total_stays_within_its_bound(
    own_server: Any, shape: Any
) -> None:
    """L·(1 + k/N) in any period, while two of four come and go, N as they counted themselves; and the
    cut ones still get theirs."""
    proxy, told = Proxy(own_server.port), list[str]()
    url = await proxy.start()
    question = Question((Ask("limit", "k", shape),))
    stores = pods(own_server.url, 2, told) + pods(url, 2, told)
    loads = [Load(store, question) for store in stores]
    async with load(*loads, tasks=2, pause=0.004) as lag:
        await until(lambda: all(one.answers for one in loads) and all_counted(stores))
        for _ in range(2):
            proxy.stall()
            await until(lambda: not stores[2].up and not stores[3].up)
            cut = time.time()
            await until(lambda cut=cut: all(since(cut, one.alone) >= 30 for one in loads[2:]))
            assert stores[0].up
            assert stores[1].up
            proxy.resume()
            await until(lambda: stores[2].up and stores[3].up)
            back = time.time()
            await until(lambda back=back: sum(since(back, one.shared) for one in loads) >= 50)
    admitted = [at for one in loads for at in (*one.shared, *one.alone)]
    extra = shape.burst if isinstance(shape, Bucket) else 0
    assert most_in_any(2, admitted) <= (200 + extra) * (1 + 2 / 4) + 2
    assert max(one.slowest for one in loads) < DEADLINE + lag.scheduling
    for one in loads:
        await one.store.aclose()
    await proxy.close()


@pytest.mark.parametrize("way", [0.0, 0.02])
async def test_a_pause_of_the_event_loop_alone_never_trips_the_ladder(
    own_server: Any, way: float
) -> None:
    """A tenth of a second, and about as long as the deadline, again and again; whether the server is
    near, or so far away that what was sent only after the pause is answered after the deadline."""
    proxy = Proxy(own_server.port, way)
    (store,) = pods(await proxy.start(), 1, [], deadline=0.1)
    await connected(store)
    failures, loop = store.statistics().failures, asyncio.get_running_loop()
    for i in range(24):
        asks = [asyncio.create_task(store.ask(PLENTY)) for _ in range(20)]
        loop.call_later(i % 3 * 0.0005, time.sleep, 0.1 if i % 2 else 0.094 + i * 0.0005)
        await asyncio.gather(*asks)
    assert (store.up, store.statistics().failures) == (True, failures)
    await store.aclose()
    await proxy.close()


async def test_an_answer_that_came_during_a_pause_of_the_event_loop_counts(own_server: Any) -> None:
    """Deadline and answer are found together when the loop turns again."""
    (store,) = pods(own_server.url, 1, [], deadline=0.1)
    await connected(store)
    wires, alone = store._inner._link._wires, 0  # type: ignore[attr-defined]  # the test's own view
    sockets = [wire._transport.get_extra_info("socket") for wire in wires]
    for _ in range(10):
        asks = [asyncio.create_task(store.ask(PLENTY)) for _ in range(20)]
        await asyncio.sleep(0)  # they have asked
        await asyncio.sleep(0)  # and it was sent
        assert select.select(sockets, [], [], PATIENCE)[0], "the answer has come"
        time.sleep(0.12)  # noqa: ASYNC251  # the pause
        alone += sum(verdict.degraded for verdict in await asyncio.gather(*asks))
    assert alone <= 2 * 20, "a pause right after the pause"
    await store.aclose()


async def test_a_hiccup_does_not_take_the_store_down(own_server: Any) -> None:
    """Fifty questions under way when the server stands still for one deadline are one failure."""
    told: list[str] = []
    store = pods(own_server.url, 1, told)[0]
    await connected(store)
    own_server.freeze()
    verdicts = await asyncio.gather(*(store.ask(PLENTY) for _ in range(50)))
    own_server.thaw()
    assert all(verdict.degraded for verdict in verdicts)
    assert store.up
    await until(own_server.client.ping)
    assert not (await store.ask(PLENTY)).degraded
    assert told == []
    await store.aclose()


async def test_starting_without_a_server_is_normal(own_server: Any) -> None:
    own_server.kill()
    (store,) = pods(own_server.url, 1, [])
    for _ in range(5):
        assert (await store.ask(PLENTY)).degraded
    own_server.start()
    await until(lambda: store.up)
    assert not (await store.ask(PLENTY)).degraded
    await store.aclose()


class Ahead(asyncio.SelectorEventLoop):
    """A pod whose clock is an hour ahead."""

    def time(self) -> float:
        return super().time() + 3600


def test_pods_an_hour_apart_get_the_same_verdicts(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is the server's: they share one window, and are told the same time to come back."""
    question, threads = Question((Ask("limit", "k", Window.of(10, 7200)),)), threading.active_count()

    async def ask_six() -> list[Any]:
        (store,) = pods(server.url, 1, [])
        verdicts = [await store.ask(question) for _ in range(6)]
        await store.aclose()
        return verdicts

    with asyncio.Runner() as runner:
        first = runner.run(ask_six())
    with monkeypatch.context() as shifted:
        wall = time.time
        shifted.setattr(time, "time", lambda: wall() + 3600)
        with asyncio.Runner(loop_factory=Ahead) as runner:
            second = runner.run(ask_six())
    verdicts = first + second
    assert not any(verdict.degraded for verdict in verdicts)
    assert [verdict.limits[0].remaining for verdict in verdicts] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert [verdict.allowed for verdict in verdicts] == [True] * 10 + [False] * 2
    assert all(7200 - 600 < verdict.retry_after <= 7200 for verdict in verdicts[10:])
    assert threading.active_count() == threads


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_store_is_used_in_one_event_loop_after_the_other(server: Any) -> None:
    """As jobs do that are run by `asyncio.run`, each in its turn; the third once hung."""
    store = LadderStore(ValkeyStore(server.url), decision_timeout=30.0, rng=random.Random(1))
    question = Question((Ask("limit", "k", Window.of(10, 3600), 1),))
    for left in (9, 8, 7, 6):
        verdict = asyncio.run(store.ask(question))
        assert (verdict.degraded, verdict.limits[0].remaining) == (False, left)
    assert (store.statistics().failures, store.statistics().processes) == (0, 1)
    del store
    gc.collect()  # loops that have ended leave their sockets to it


def test_a_store_that_was_down_when_an_event_loop_ended_is_asked_in_the_next(tmp_path: Path) -> None:
    gone = LadderStore(ValkeyStore(f"unix://{tmp_path}/nobody"), rng=random.Random(1))
    question = Question((Ask("limit", "k", Window.of(10, 3600), 1),))

    async def take_down() -> bool:
        for _ in range(3):
            await gone.ask(question)
        return gone.up

    assert asyncio.run(take_down()) is False
    assert gone.up
    assert asyncio.run(take_down()) is False
