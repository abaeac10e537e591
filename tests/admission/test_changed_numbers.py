"""The pod's numbers change while it is full: nobody who is in or in line loses anything by it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.admission.pod import Client, Pod, answer

from headworks.admission import Pressure
from headworks.telemetry import Changed, Queued, Telemetry
from headworks.testing.cancel import cancel_at_every_await
from headworks.testing.recording import RecordingSink


class Shop:
    """An application that serves each request for as long as its path says, noting when each began."""

    def __init__(self) -> None:
        self.served: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name, _, seconds = scope["path"].partition(":")
        self.served.append(name)
        await asyncio.sleep(float(seconds))
        await answer(send)


def come(pod: Pod, path: str, tier: str = "default") -> asyncio.Task[Client]:
    return asyncio.create_task(Client(pod.gate, tier, path=path).run())


async def test_a_lower_limit_ends_nobody_and_lets_nobody_in_until_there_is_room() -> None:
    """Of four places two remain: those in flight end in their own time, and only the third that ends
    leaves its place to the line."""
    shop = Shop()
    pod = Pod(shop, limit=4, patience=100.0)
    inside = [come(pod, f"{n}:{n}") for n in (10, 20, 30, 40)]
    await asyncio.sleep(1)
    waiting = [come(pod, f"{name}:5") for name in ("next", "last")]
    await asyncio.sleep(1)
    pod.slots.change(2, patience=100.0)
    began = []
    for _ in range(3):
        began.append((pod.now().in_flight, pod.now().waiting, shop.served[4:]))
        await asyncio.sleep(10)
    assert began == [(4, 2, []), (3, 2, []), (2, 2, [])]
    assert (pod.now().limit, pod.now().in_flight, shop.served[4:]) == (2, 2, ["next"])
    assert [(await task).status for task in inside + waiting] == [200] * 6
    assert (pod.now().in_flight, pod.now().running, pod.now().waiting) == (0, 0, 0)


async def test_a_higher_limit_lets_the_head_of_the_line_in_at_once() -> None:
    """By class, as many as there are new places, in the step in which there are."""
    shop = Shop()
    pod = Pod(shop, limit=3, patience=100.0)
    tasks = [come(pod, "in:50") for _ in range(3)]
    await asyncio.sleep(1)
    tasks += [come(pod, f"{tier}:5", tier) for tier in ("background", "default", "critical")]
    await asyncio.sleep(1)
    assert pod.now().waiting == 3
    pod.slots.change(5, patience=100.0)
    assert (pod.now().in_flight, pod.now().waiting) == (5, 1)
    await asyncio.sleep(1)
    assert shop.served[3:] == ["critical", "default"]
    assert {(await task).status for task in tasks} == {200}


async def test_who_may_join_the_line_goes_by_the_new_numbers() -> None:
    """While nobody knows for how long a place is held, as many may wait as there are places."""
    pod = Pod(Shop(), limit=1, patience=100.0)
    tasks = [come(pod, "in:5"), come(pod, "waits:5")]
    await asyncio.sleep(1)
    assert (await come(pod, "refused:5")).status == 503
    pod.slots.change(2, patience=100.0)
    tasks += [come(pod, "waits:5"), come(pod, "waits:5")]
    await asyncio.sleep(1)
    assert (pod.now().in_flight, pod.now().waiting) == (2, 2)
    assert (await come(pod, "refused:5")).status == 503
    assert {(await task).status for task in tasks} == {200}


async def test_without_a_line_from_now_on_who_waits_keeps_its_turn_and_nobody_else_joins() -> None:
    """Its patience, too. Newcomers meet the rules of a pod without a line."""
    shop = Shop()
    pod = Pod(shop, limit=10, patience=30.0)
    inside = [come(pod, "in:20") for _ in range(10)]
    await asyncio.sleep(1)
    waits = come(pod, "waits:5")
    await asyncio.sleep(1)
    pod.slots.change(10)
    refused = await come(pod, "late:5")
    assert (refused.status, refused.problem["reason"]) == (503, "pod-saturated")
    assert pod.now().waiting == 1
    assert {(await task).status for task in inside} == {200}
    assert (await waits).status == 200
    assert pod.slots._line is None, "and once it is empty it costs nothing"
    inside = [come(pod, "in:20") for _ in range(9)]
    await asyncio.sleep(1)
    shed = await come(pod, "shed:5", "sheddable")
    assert (shed.status, shed.problem["reason"]) == (503, "load-shed")
    pod.slots.change(10, patience=30.0)
    assert (await come(pod, "sheddable:5", "sheddable")).status == 200
    for task in inside:
        await task


async def test_with_a_line_from_now_on_who_comes_next_waits() -> None:
    pod = Pod(Shop(), limit=1)
    first = come(pod, "first:10")
    await asyncio.sleep(1)
    assert (await come(pod, "refused:5")).status == 503
    pod.slots.change(1, patience=30.0)
    assert (await come(pod, "waits:5")).status == 200
    await first


async def test_a_pod_that_has_room_by_the_new_number_is_not_full_any_more() -> None:
    """And the other way round, from the moment of the change: health is told by this."""
    pod = Pod(Shop(), limit=10)
    tasks = [come(pod, "in:50") for _ in range(10)]
    await asyncio.sleep(7)
    assert pod.now().full_for == 7.0
    pod.slots.change(12)
    assert pod.now().full_for == 7.0, "ten of twelve are more than four fifths"
    pod.slots.change(20)
    assert pod.now().full_for == 0.0
    await asyncio.sleep(3)
    pod.slots.change(8)
    await asyncio.sleep(2)
    assert pod.now().full_for == 2.0
    for task in tasks:
        await task


async def test_everybody_in_line_can_be_let_in_full_or_not() -> None:
    """As a shadow does, in which nobody waits; without a line there is nobody to let in."""
    pod = Pod(Shop(), limit=2, patience=100.0)
    tasks = [come(pod, "in:5") for _ in range(4)]
    await asyncio.sleep(1)
    assert pod.now().waiting == 2
    pod.slots.change(2)
    pod.slots.let_in()
    await asyncio.sleep(1)
    assert (pod.now().in_flight, pod.now().waiting) == (4, 0)
    assert {(await task).status for task in tasks} == {200}
    assert pod.now().in_flight == 0
    Pod(Shop()).slots.let_in()


def test_a_request_cancelled_while_the_numbers_change_costs_nobody_a_place() -> None:
    """Struck at every await, also in the step in which a change has given it a place."""
    pods: list[Pod] = []

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        pod = Pod(Shop(), limit=1, patience=50.0)
        pods.append(pod)
        holder = come(pod, "holder:9")
        await asyncio.sleep(0)

        async def change() -> None:
            await asyncio.sleep(2)
            pod.slots.change(2, patience=50.0)
            await asyncio.sleep(1)
            pod.slots.change(1, patience=50.0)

        changing = asyncio.create_task(change())
        yield
        await changing
        await holder
        assert (await come(pod, "next:1")).status == 200
        assert (pod.now().in_flight, pod.now().running, pod.now().waiting) == (0, 0, 0)

    def snapshot() -> object:
        state = pods[-1].now()
        return state.waiting, max(0, state.in_flight - 1), max(0, state.running - 1)

    async def scenario() -> None:
        await come_and_wait(pods[-1])

    async def come_and_wait(pod: Pod) -> None:
        assert (await Client(pod.gate, path="struck:4").run()).status == 200

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around, settle=20.0) >= 2


async def test_a_storm_of_changes_loses_nobody_and_keeps_no_place_empty() -> None:
    """Whatever the numbers are: who waits does so only because they are all taken, nobody is let in
    while more are taken than there are, everybody is answered, and all places come back."""
    rng = random.Random(5)
    shop = Shop()
    pod = Pod(shop, limit=3, patience=40.0)
    tasks: list[asyncio.Task[Client]] = []
    for n in range(600):
        before = (len(shop.served), pod.now().in_flight)
        if rng.random() < 0.5:
            tier = rng.choice(("background", "default", "critical"))
            tasks.append(come(pod, f"{n}:{rng.uniform(1, 9)}", tier))
            if rng.random() < 0.1:
                tasks[-1].cancel()
        elif rng.random() < 0.5:
            pod.slots.change(rng.randint(1, 6), patience=rng.choice((0.0, 10.0, 40.0)))
        elif tasks and rng.random() < 0.3:
            rng.choice(tasks).cancel()
        await asyncio.sleep(0)
        state = pod.now()
        assert state.waiting == 0 or state.in_flight >= state.limit
        if state.in_flight > state.limit:
            assert len(shop.served) == before[0] or state.in_flight <= before[1]
        await asyncio.sleep(rng.uniform(0, 2))
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    statuses = {end.status for end in ended if isinstance(end, Client)}
    assert statuses == {200, 503}
    assert {type(end) for end in ended if not isinstance(end, Client)} == {asyncio.CancelledError}
    assert "admitted" in {event.ending for event in pod.sink.of(Queued)}
    state = pod.now()
    assert (state.in_flight, state.running, state.waiting) == (0, 0, 0)


async def test_bounds_may_come_change_and_go() -> None:
    """Without any nobody is shed, at once, and the watch over them ends by itself."""
    sink = RecordingSink()
    pressure = Pressure(lag_high=0.1, telemetry=Telemetry(sink))
    for _ in range(4):
        pressure.sample(0.2)
    assert pressure.level == 1.0
    pressure.bound(0.4, None)
    pressure.sample(0.2)
    assert pressure.level == 0.95
    watch = asyncio.create_task(pressure.watch())
    await asyncio.sleep(1)
    assert not watch.done()
    pressure.bound(None, None)
    assert pressure.level == 0.0
    assert [event.state for event in sink.of(Changed)] == ["shedding", "eased"]
    await asyncio.sleep(1)
    assert watch.done()
