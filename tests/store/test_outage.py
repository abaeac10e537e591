"""A real server that is frozen, killed, and cut off from some of its pods, under load."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from headworks.limits.shapes import Bucket, Window
from headworks.store.ladder import LadderStore
from headworks.store.protocol import Ask, Question
from headworks.store.valkey import ValkeyStore

pytestmark = pytest.mark.real

PLENTY = Question((Ask("limit", "k", Window.of(1_000_000, 60)),))
DEADLINE = 0.1
SCHEDULING = 0.3
"""Seconds by which a machine with two cores, used by others too, may be late; see `Lag` for more."""


@dataclass
class Load:
    """What one pod's callers saw: when they asked, how long it took, and whether they passed."""

    store: LadderStore
    question: Question
    slowest: float = 0.0
    admitted: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)
    """When the store itself decided."""

    async def run(self, pause: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            verdict = await self.store.ask(self.question)
            now = loop.time()
            self.slowest = max(self.slowest, now - began)
            if verdict.allowed:
                self.admitted.append(now)
            if not verdict.degraded:
                self.shared.append(now)
            await asyncio.sleep(pause)


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
async def load(*loads: Load, tasks: int = 5, pause: float = 0.01) -> AsyncIterator[Lag]:
    """So many callers of each, until the block ends; what they raise, it raises."""
    running = [asyncio.create_task(one.run(pause)) for one in loads for _ in range(tasks)]
    lag = Lag()
    running.append(asyncio.create_task(lag.run()))
    try:
        yield lag
    finally:
        failed = [task.exception() for task in running if task.done()]
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    assert failed == []


async def until(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until it came true."""
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return asyncio.get_running_loop().time() - began
            await asyncio.sleep(0.005)


def pods(url: str, count: int, told: list[str]) -> list[LadderStore]:
    """Pods that were told nothing of one another: they count themselves."""
    return [
        LadderStore(
            ValkeyStore(url),
            decision_timeout=DEADLINE,
            rng=random.Random(),
            on_change=lambda state, _: told.append(state),
        )
        for _ in range(count)
    ]


def all_counted(stores: list[LadderStore]) -> bool:
    return all(store.statistics().processes == len(stores) for store in stores)


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_five_seconds_without_a_server(own_server: Any, how: str) -> None:
    """No exception, no late decision, no more than L·(1 + 4/4), the store within a second of its
    return, and no stampede of commands or connections."""
    told: list[str] = []
    stores = pods(own_server.url, 4, told)
    loads = [Load(store, PLENTY) for store in stores]
    limited = [Load(store, Question((Ask("limit", "few", Window.of(200, 2)),))) for store in stores]
    async with load(*loads, *limited) as lag:
        await until(lambda: all(one.shared for one in loads) and all_counted(stores), 8)
        began, _ = commands(own_server)
        await asyncio.sleep(1)
        usual = commands(own_server)[0] - began
        own_server.freeze() if how == "frozen" else own_server.kill()
        gone = asyncio.get_running_loop().time()
        await asyncio.sleep(5)
        assert sorted(told) == ["down"] * 4
        own_server.thaw() if how == "frozen" else own_server.start()
        back = asyncio.get_running_loop().time()
        before, connected = commands(own_server)
        await until(lambda: all(one.shared[-1] > back for one in loads), 1 + SCHEDULING)
        await asyncio.sleep(back + 1 - asyncio.get_running_loop().time())
        after, connected_since = commands(own_server)
        assert after - before <= 1.5 * usual + 4 * 20, "as in any second, and a few looks"
        assert connected_since - connected <= 4 * 3, "two for each pod, and a look"
        await asyncio.sleep(2)
    assert max(one.slowest for one in [*loads, *limited]) < DEADLINE + lag.scheduling
    assert sorted(told) == ["down"] * 4 + ["up"] * 4
    admitted = [at for one in limited for at in one.admitted]
    assert most_in_any(2 - DEADLINE, admitted) <= 200 * (1 + 4 / 4) + 4
    alone = sum(gone + 1 < at < back for at in admitted)
    assert 200 <= alone <= 400 + 4, "their shares together are the limit: 400 in four seconds"
    for store in stores:
        await store.aclose()


def commands(server: Any) -> tuple[int, int]:
    """Scripts asked for, and connections made, since the server started."""
    stats = server.client.info("commandstats")
    asked = sum(
        row["calls"] for name, row in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval")
    )
    return asked, server.client.info("stats")["total_connections_received"]


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
        await until(lambda: not self._streams, 5)


def most_in_any(window: float, times: list[float]) -> int:
    """The most of them that lie in any stretch of that length."""
    times, most, first = sorted(times), 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - window:
            first += 1
        most = max(most, last - first + 1)
    return most


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
        await until(lambda: all(one.shared for one in loads) and all_counted(stores), 8)
        for _ in range(2):
            await asyncio.sleep(0.5)
            proxy.stall()
            await until(lambda: not stores[2].up and not stores[3].up, 5)
            cut = asyncio.get_running_loop().time()
            await asyncio.sleep(2.2)
            assert stores[0].up
            assert stores[1].up
            alone = sum(at > cut for one in loads[2:] for at in one.admitted)
            assert alone >= 60, "about 110 come due in that time"
            proxy.resume()
            await until(lambda: stores[2].up and stores[3].up, 1 + SCHEDULING)
    admitted = [at for one in loads for at in one.admitted]
    extra = shape.burst if isinstance(shape, Bucket) else 0
    # Callers see a decision up to a scheduling delay after the store made it.
    assert most_in_any(2 - DEADLINE, admitted) <= (200 + extra) * (1 + 2 / 4) + 2
    assert max(one.slowest for one in loads) < DEADLINE + lag.scheduling
    for one in loads:
        await one.store.aclose()
    await proxy.close()


@pytest.mark.parametrize("way", [0.0, 0.003])
async def test_a_pause_of_the_event_loop_alone_never_trips_the_ladder(
    own_server: Any, way: float
) -> None:
    """A tenth of a second, and about as long as the deadline, again and again; whether the server is
    near, or so far away that what was sent only after the pause is answered after the deadline."""
    proxy = Proxy(own_server.port, way)
    (store,) = pods(await proxy.start(), 1, [])
    async with asyncio.timeout(5):
        while (await store.ask(PLENTY)).degraded:
            pass
    failures, loop, alone = store.statistics().failures, asyncio.get_running_loop(), 0
    for i in range(24):
        asks = [asyncio.create_task(store.ask(PLENTY)) for _ in range(20)]
        pause = 0.1 if i % 2 else DEADLINE - 0.006 + i * 0.0005
        loop.call_later(i % 3 * 0.0005, time.sleep, pause)
        verdicts = await asyncio.gather(*asks)
        alone += sum(verdict.degraded for verdict in verdicts)
    assert alone <= 24 * 20 / 10, "the server, too, has but a share of a busy machine"
    assert (store.up, store.statistics().failures) == (True, failures)
    await store.aclose()
    await proxy.close()


async def test_a_hiccup_does_not_take_the_store_down(own_server: Any) -> None:
    """Fifty questions under way when the server stands still for one deadline are one failure."""
    told: list[str] = []
    store = pods(own_server.url, 1, told)[0]
    async with asyncio.timeout(5):
        while (await store.ask(PLENTY)).degraded:
            pass
    own_server.freeze()
    verdicts = await asyncio.gather(*(store.ask(PLENTY) for _ in range(50)))
    own_server.thaw()
    assert all(verdict.degraded for verdict in verdicts)
    assert store.up
    await until(lambda: own_server.client.ping(), 5)
    assert not (await store.ask(PLENTY)).degraded
    assert told == []
    await store.aclose()


async def test_starting_without_a_server_is_normal(own_server: Any) -> None:
    own_server.kill()
    (store,) = pods(own_server.url, 1, [])
    for _ in range(5):
        assert (await store.ask(PLENTY)).degraded
    own_server.start()
    await until(lambda: store.up, 2)
    assert not (await store.ask(PLENTY)).degraded
    await store.aclose()


class Ahead(asyncio.SelectorEventLoop):
    """A pod whose clock is an hour ahead."""

    def time(self) -> float:
        return super().time() + 3600


def test_pods_an_hour_apart_get_the_same_verdicts(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is the server's: they share one window, and are told the same time to come back."""
    question = Question((Ask("limit", "k", Window.of(10, 60)),))

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
    assert all(59 < verdict.retry_after <= 60 for verdict in verdicts[10:])
    assert threading.active_count() == 1
