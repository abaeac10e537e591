"""The pod's line: who is let into it, in what order it moves, and that nobody in it is lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.admission.pod import App, Client, Message, Pod, answer

from headworks.admission.early import EACH, KEPT
from headworks.admission.waiting import CROWDED, Waiting
from headworks.current import Criticality, Current
from headworks.errors import PodSaturated
from headworks.limits.arrivals import HALF_LIFE
from headworks.limits.caution import CAUTION
from headworks.telemetry import Decided, Queued, Served
from headworks.testing.cancel import cancel_at_every_await


def now() -> float:
    return asyncio.get_running_loop().time()


def working(seconds: float, served: list[str] | None = None) -> App:
    """An application that takes so long, and notes whom it begins to serve."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if served is not None:
            served.append(scope["path"])
        await asyncio.sleep(seconds)
        await answer(send)

    return app


async def learned(pod: Pod) -> Pod:
    """The pod after one request: it knows for how long a place is held."""
    await Client(pod.gate).run()
    return pod


def come(pod: Pod, tier: str = "default", name: str = "/", **scope: Any) -> asyncio.Task[Client]:
    return asyncio.create_task(Client(pod.gate, tier, path=name, **scope).run())


async def test_a_request_waits_for_a_place_and_is_served() -> None:
    """The place goes on in the very moment in which it is free."""
    pod = await learned(Pod(working(4.0), limit=1, patience=10.0))
    first, second = come(pod), come(pod)
    await asyncio.sleep(1)
    assert (pod.now().in_flight, pod.now().waiting) == (1, 1)
    began = now()
    assert [(await task).status for task in (first, second)] == [200, 200]
    assert now() - began == pytest.approx(7.0)
    assert [round(e.seconds, 6) for e in pod.sink.of(Queued) if e.ending == "admitted"] == [4.0]
    assert (pod.now().in_flight, pod.now().running, pod.now().waiting) == (0, 0, 0)


async def test_who_would_wait_too_long_is_refused_at_once() -> None:
    """Four seconds each and one place: two may wait 10 s, the third would need 12."""
    pod = await learned(Pod(working(4.0), limit=1, patience=10.0))
    waiting = [come(pod, name=str(n)) for n in range(3)]
    await asyncio.sleep(0)
    began, refused = now(), await Client(pod.gate).run()
    assert (refused.status, refused.problem["reason"], now() - began) == (503, "pod-saturated", 0.0)
    assert refused.received == 0
    assert [(await task).status for task in waiting] == [200] * 3


async def test_nobody_waits_beyond_the_request_s_own_deadline() -> None:
    """A line that would outlast `sla` is not joined, however long it may be."""
    pod = await learned(Pod(working(4.0), limit=1, patience=3600.0, sla=9.0))
    tasks = [come(pod) for _ in range(4)]
    await asyncio.sleep(0)
    assert pod.now().waiting == 2
    assert sorted([(await task).status for task in tasks]) == [200, 200, 503, 504]


async def test_who_waited_in_vain_is_refused_when_the_patience_is_spent() -> None:
    """Places that turn over more slowly than before: refused then, and not later."""
    pod = await learned(Pod(working(1.0), limit=1, patience=5.0))
    pod.gate.app = working(30.0)
    come(pod)
    await asyncio.sleep(0)
    began, refused = now(), await Client(pod.gate).run()
    assert (refused.problem["reason"], now() - began) == ("pod-saturated", 5.0)
    assert [e.ending for e in pod.sink.of(Queued)] == ["refused"]
    assert (pod.now().waiting, pod.now().saturated) == (0, 1)


async def test_before_anything_is_known_as_many_wait_as_there_are_places() -> None:
    """A flood onto a pod that has just started does not queue up without end."""
    pod = Pod(working(1.0), limit=3, patience=10.0)
    tasks = [come(pod) for _ in range(20)]
    await asyncio.sleep(0.5)
    assert (pod.now().in_flight, pod.now().waiting) == (3, 3)
    await asyncio.gather(*tasks)


async def test_the_critical_go_first_and_no_place_is_kept_empty_for_them() -> None:
    """Classes in their order; with a line, even background takes the last place."""
    served: list[str] = []
    pod = await learned(Pod(working(1.0, served), limit=1, patience=30.0))
    served.clear()
    tiers = ("background", "background", "sheddable", "default", "critical")
    await asyncio.gather(*[come(pod, tier, tier) for tier in tiers])
    assert served == ["background", "critical", "default", "sheddable", "background"]


async def test_with_a_line_any_class_may_fill_the_pod() -> None:
    """Ten of background take ten places; without a line they would get eight."""
    for patience, places in ((10.0, 10), (0.0, 8)):
        pod = Pod(working(4.0), limit=10, patience=patience)
        tasks = [come(pod, "background") for _ in range(10)]
        await asyncio.sleep(1)
        assert pod.now().in_flight == places
        await asyncio.gather(*tasks)


async def test_a_flooder_in_line_costs_the_polite_one_round() -> None:
    """Between tenants of a class the line is fair: one of many waits is enough."""
    served: list[str] = []
    pod = await learned(Pod(working(1.0, served), limit=1, patience=60.0))
    served.clear()
    flood = [come(pod, name="flood", headers=[], client=("192.0.2.1", 1)) for _ in range(20)]
    await asyncio.sleep(0)
    polite = come(pod, name="polite", headers=[], client=("192.0.2.2", 1))
    await asyncio.gather(polite, *flood)
    assert served.index("polite") <= 2


async def test_the_critical_who_go_on_coming_are_foreseen() -> None:
    """A class that others overtake all the time is told at once instead of waiting in vain."""
    pod = await learned(Pod(working(1.0), limit=1, patience=5.0))
    tasks = [come(pod, "critical")]
    for _ in range(30):
        await asyncio.sleep(1.1)
        tasks += [come(pod, "critical"), come(pod, "critical"), come(pod, "background")]
    await asyncio.gather(*tasks)
    refused = sum(task.result().status == 503 for task in tasks)
    in_vain = sum(event.ending == "refused" for event in pod.sink.of(Queued))
    assert refused >= 30
    assert in_vain <= 0.25 * refused


class Patient(Client):
    """A client whose messages come at given times; None: it leaves."""

    def __init__(self, pod: Pod, *messages: tuple[float, bytes | None], **scope: Any) -> None:
        super().__init__(pod.gate, **scope)
        self.coming = [(now() + after, body) for after, body in messages]

    async def _receive(self) -> Message:
        if not self.coming:
            await asyncio.get_running_loop().create_future()
        at, body = self.coming[0]
        await asyncio.sleep(max(0.0, at - now()))
        self.coming.pop(0)
        self.received += 1
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": bool(self.coming)}


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it was sent, after a while."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message["more_body"]
    await asyncio.sleep(1.0)
    await answer(send, *parts)


async def test_a_caller_who_leaves_the_line_is_noticed_and_costs_nothing() -> None:
    """The line closes up, the application never hears of it, nobody is answered."""
    entered: list[str] = []
    pod = await learned(Pod(working(4.0, entered), limit=1, patience=10.0))
    held, leaver = come(pod), Patient(pod, (0.0, b"body"), (1.0, None))
    gone = asyncio.create_task(leaver.run())
    await asyncio.sleep(0)
    third = come(pod)
    await asyncio.sleep(2)
    assert gone.done()
    assert (leaver.sent, pod.now().waiting, pod.now().left) == ([], 1, 1)
    began = now()
    assert (await third).status == 200
    assert now() - began == pytest.approx(6.0)
    await held
    assert len(entered) == 3
    assert [e.ending for e in pod.sink.of(Queued)] == ["left", "admitted"]
    assert [e.status for e in pod.sink.of(Served)].count(0) == 1
    assert sum(not e.admitted for e in pod.sink.of(Decided)) == 0


@pytest.mark.parametrize("waits", [True, False])
async def test_what_a_client_sends_while_it_waits_is_read_in_order(waits: bool) -> None:
    """Before its turn, in the moment of it and after it: nothing is lost, nothing comes twice."""
    pod = await learned(Pod(working(4.0), limit=1, patience=10.0))
    if waits:
        come(pod)
        await asyncio.sleep(0)
    pod.gate.app = reading
    parts = [bytes([65 + n]) * 100 for n in range(12)]
    client = Patient(pod, *((n * 0.8, part) for n, part in enumerate(parts)))
    await client.run()
    assert [message.get("body", b"") for message in client.sent[1:-1]] == parts
    assert client.received == 12


async def test_what_is_read_ahead_of_a_turn_is_bounded() -> None:
    """However much a waiting client sends, only the first part of it is held in memory."""
    pod = await learned(Pod(working(4.0), limit=1, patience=10.0))
    come(pod)
    await asyncio.sleep(0)
    client = Patient(pod, *((0.0, b"x" * 1024) for _ in range(1000)))
    task = asyncio.create_task(client.run())
    await asyncio.sleep(1)
    assert client.received <= KEPT / 1024 + 1
    tiny = Patient(pod, *((0.0, b"") for _ in range(1000)))
    other = asyncio.create_task(tiny.run())
    await asyncio.sleep(1)
    assert tiny.received <= KEPT / EACH
    for one in (task, other):
        one.cancel()


async def test_without_a_wait_nothing_is_read_ahead() -> None:
    """A request that finds a place keeps the server's own `receive`, and its 100-continue."""
    pod = Pod(working(1.0), limit=2, patience=10.0)
    client = await Client(pod.gate).run()
    assert (client.status, client.received) == (200, 0)


async def test_a_body_is_not_read_by_two_at_once() -> None:
    """An application that gives up reading does not lose the message that was under way."""
    got: list[bytes] = []

    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        try:
            async with asyncio.timeout(0.5):
                got.append((await receive())["body"])
        except TimeoutError:
            got.append(b"-")
        got.append((await receive())["body"])
        await answer(send)

    pod = await learned(Pod(working(4.0), limit=1, patience=10.0))
    come(pod)
    await asyncio.sleep(0)
    pod.gate.app = impatient
    client = Patient(pod, (6.0, b"late"))
    await client.run()
    assert got == [b"-", b"late"]


@pytest.mark.parametrize("body", [b"", b"some"])
def test_a_request_cancelled_anywhere_in_line_costs_nobody_a_place(body: bytes) -> None:
    """Struck at every await and in every way, waiting or just served: the places all come back."""
    pods: list[Pod] = []

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        pod = await learned(Pod(reading, limit=1, patience=10.0))
        pods.append(pod)
        holder = asyncio.create_task(Patient(pod, (2.0, b"x")).run())
        await asyncio.sleep(0)
        yield
        await holder
        assert (await Client(pod.gate).run()).status == 200

    def snapshot() -> object:
        state = pods[-1].now()
        return state.waiting, max(0, state.in_flight - 1), max(0, state.running - 1)

    async def scenario() -> None:
        await Patient(pods[-1], (0.5, body), (4.0, b"end")).run()

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around, settle=8.0) >= 3


async def test_a_place_given_to_one_who_is_cancelled_goes_to_the_next() -> None:
    """In the same step, so that the place does not stand empty and is not counted twice."""
    pod = await learned(Pod(working(4.0), limit=1, patience=50.0))
    holder, struck, following = come(pod), come(pod), come(pod)
    await asyncio.sleep(1)
    holder.cancel()
    await asyncio.sleep(0)  # the holder ends: the place is given, its taker has not run yet
    struck.cancel()
    assert (await following).status == 200
    assert struck.cancelled()
    assert (pod.now().in_flight, pod.now().running, pod.now().waiting) == (0, 0, 0)


async def test_a_place_is_not_given_to_one_who_is_gone_already() -> None:
    """Cancelled in the same step in which the place comes free, before it could leave the line."""
    pod = await learned(Pod(working(4.0), limit=1, patience=50.0))
    holder, struck, following = come(pod), come(pod), come(pod)
    await asyncio.sleep(1)
    holder.cancel()  # runs first, and finds the other still standing in line
    struck.cancel()
    assert (await following).status == 200
    assert (pod.now().in_flight, pod.now().running, pod.now().waiting) == (0, 0, 0)


async def test_a_pod_whose_time_is_over_leaves_nobody_standing_in_line() -> None:
    """Who waits is told at once, though the place's holder resists its end; so is who comes then."""

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(100.0)
        finally:
            await asyncio.sleep(20.0)

    pod = await learned(Pod(working(1.0), limit=1, patience=50.0))
    pod.gate.app = stubborn
    holder, *waiting = [come(pod) for _ in range(4)]
    await asyncio.sleep(1)
    began = now()
    pod.answers.end()
    told = [await task for task in waiting] + [await Client(pod.gate).run()]
    assert [(client.status, client.problem["reason"]) for client in told] == [(503, "pod-leaving")] * 4
    assert {client.header(b"retry-after") for client in told} == {"1"}
    assert (now() - began, pod.now().waiting, pod.now().in_flight) == (0.0, 0, 1)
    assert [event.ending for event in pod.sink.of(Queued)] == ["refused"] * 4
    assert [event.status for event in pod.sink.of(Served)][1:] == [503] * 4
    await holder
    assert (pod.now().in_flight, pod.now().running, pod.now().waiting) == (0, 0, 0)
    pod.answers.begin()
    pod.gate.app = working(4.0)
    assert [(await task).status for task in (come(pod), come(pod))] == [200, 200]


def test_who_is_cancelled_as_the_pod_ends_leaves_nothing_in_line() -> None:
    """Struck at every await, before, while and after the pod says that its time is over."""
    pods: list[Pod] = []

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        pod = await learned(Pod(working(4.0), limit=1, patience=50.0))
        pods.append(pod)
        holder = come(pod)
        asyncio.get_running_loop().call_later(2.0, pod.answers.end)
        await asyncio.sleep(0)
        yield
        await holder
        pod.answers.begin()
        assert (await Client(pod.gate).run()).status == 200

    def snapshot() -> object:
        pod = pods[-1]
        return pod.now().waiting, len(pod.answers._queued)

    async def scenario() -> None:
        client = Patient(pods[-1], (1.0, b"part"), (3.0, b"end"))
        client.reads.clear()  # the refusal has to wait, too
        asyncio.get_running_loop().call_later(3.0, client.reads.set)
        await client.run()
        assert client.problem["reason"] == "pod-leaving"

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around, settle=8.0) >= 2


async def test_the_estimate_is_the_formula_and_learns() -> None:
    """(ahead + 1) · holding / places, over what higher classes leave, times what was learned."""
    line = Waiting(patience=100.0, places=10)
    here = Current(criticality=Criticality.SHEDDABLE)
    assert line.estimate(here, 5.0, now()) == pytest.approx(0.5)
    critical = Current(criticality=Criticality.CRITICAL)
    for _ in range(10):
        line.join(critical, 5.0, now(), PodSaturated)
    rate = 10 * math.log(2) / HALF_LIFE  # of the critical, per second
    assert line.estimate(here, 5.0, now()) == pytest.approx(11 * 0.5 / (1.0 - min(rate * 0.5, CROWDED)))
    assert line.estimate(critical, 5.0, now()) == pytest.approx(11 * 0.5)
    await asyncio.sleep(10 * HALF_LIFE)
    before = line.estimate(here, 5.0, now())
    turn = line.join(here, 0.1, now(), PodSaturated)
    turn.spent()
    with pytest.raises(PodSaturated):
        await turn.take()
    assert line.estimate(here, 5.0, now()) == pytest.approx(CAUTION * before)
