"""Shedding by lag and memory: who goes, how fast, who comes back; and a gate that only watches."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from tests.admission.pod import Client, Pod

from headworks.admission import Pressure, Slots
from headworks.admission import pressure as module
from headworks.admission.pressure import EVERY, RISE, SINK, container_memory, resident_memory
from headworks.current import Criticality
from headworks.telemetry import Changed, Decided, Shadowed, Telemetry
from headworks.testing.recording import RecordingSink

TENANTS = [f"key:{n:032x}" for n in range(1000)]


def pressed(level: float, **options: object) -> Pressure:
    """A pressure at this level, by a loop that wakes late."""
    pressure = Pressure(lag_high=0.1, **options)  # type: ignore[arg-type]
    for _ in range(round(level / RISE)):
        pressure.sample(0.1)
    return pressure


def shed(pressure: Pressure, criticality: Criticality) -> set[str]:
    return {tenant for tenant in TENANTS if pressure.sheds(criticality, tenant)}


@pytest.mark.parametrize(
    ("level", "parts"),
    [
        (0.0, (0.0, 0.0, 0.0, 0.0)),
        (0.5, (0.5, 0.0, 0.0, 0.0)),
        (1.0, (1.0, 0.0, 0.0, 0.0)),
        (1.75, (1.0, 0.75, 0.0, 0.0)),
        (2.25, (1.0, 1.0, 0.25, 0.0)),
        (9.0, (1.0, 1.0, 1.0, 0.0)),
    ],
)
def test_pressure_sheds_the_least_critical_first_and_the_critical_never(
    level: float, parts: tuple[float, ...]
) -> None:
    pressure = pressed(level)
    assert [len(shed(pressure, kind)) / 1000 for kind in Criticality] == pytest.approx(parts, abs=0.05)


def test_between_the_thresholds_nothing_moves_and_below_them_it_eases_slowly() -> None:
    """Up in a few samples, down in many, and no flapping at the edge."""
    pressure = pressed(1.0)
    for lag in (0.099, 0.091, 0.095):
        pressure.sample(lag)
        assert pressure.level == 1.0
    pressure.sample(0.089)
    assert pressure.level == pytest.approx(1.0 - SINK)
    for _ in range(round(1 / SINK)):
        pressure.sample(0.0)
    assert pressure.level == 0.0


def test_the_same_tenants_are_shed_until_the_hour_is_over() -> None:
    """More pressure adds to those who are shed; another hour meets others."""
    hour = [1]
    half, more = pressed(0.5, hour=lambda: hour[0]), pressed(0.75, hour=lambda: hour[0])
    first = shed(half, Criticality.BACKGROUND)
    assert first < shed(more, Criticality.BACKGROUND)
    hour[0] = 2
    other = shed(pressed(0.5, hour=lambda: hour[0]), Criticality.BACKGROUND)
    assert len(first & other) < 0.7 * len(first)


def test_memory_presses_like_lag_and_what_cannot_be_read_stays_as_it_was() -> None:
    """The harder of the two counts; out of file descriptors, the last reading stands."""
    resident = [100]

    def read() -> int:
        if not resident:
            raise OSError(24, "too many open files")
        return resident[-1]

    pressure = Pressure(lag_high=0.1, memory_high=1000, resident=read)
    pressure.sample(0.0)
    assert pressure.level == 0.0
    resident.append(1000)
    pressure.sample(0.0)
    resident.clear()
    pressure.sample(0.0)
    assert pressure.level == 2 * RISE


def test_it_is_told_when_shedding_begins_and_when_it_is_over() -> None:
    """Once each, with what was measured."""
    sink = RecordingSink()
    pressure = pressed(0.5, telemetry=Telemetry(sink))
    for _ in range(30):
        pressure.sample(0.0)
    assert [(e.subject, e.state) for e in sink.of(Changed)] == [
        ("admission", "shedding"),
        ("admission", "eased"),
    ]


async def test_a_shed_request_is_refused_before_it_is_read_and_told_when_to_come_back() -> None:
    """`load-shed`, though every place is free; the critical are served; websockets too are shed."""
    pod = Pod(pressure=pressed(3.0))
    pod.go.set()
    refused = await Client(pod.gate, "default").run()
    assert (refused.status, refused.problem["reason"], refused.received) == (503, "load-shed", 0)
    assert int(refused.header(b"retry-after") or 0) >= 1
    assert (await Client(pod.gate, "critical").run()).status == 200
    socket = await Client(pod.gate, "default", type="websocket").run()
    assert socket.sent[0]["type"] == "websocket.close"
    assert (pod.now().shed, pod.now().pressure) == (2, 3.0)


async def test_a_shadow_refuses_nobody_and_says_whom_it_would_have() -> None:
    """Full or pressed, requests and websockets pass; each is counted, and places come back."""
    pod = Pod(limit=2, shadow=True)
    held = await pod.occupy(5)
    sockets = [asyncio.create_task(Client(pod.gate, type="websocket").run()) for _ in range(3)]
    await asyncio.sleep(0)
    assert (pod.now().in_flight, pod.now().websockets) == (5, 3)
    assert pod.sink.of(Shadowed) == [Shadowed("admission", False, "pod-saturated")] * 4
    assert [event.admitted for event in pod.sink.of(Decided)] == [True] * 8
    pod.go.set()
    assert [(await task).status for task in held] == [200] * 5
    await asyncio.gather(*sockets)
    assert (pod.now().in_flight, pod.now().running, pod.now().websockets) == (0, 0, 0)


async def test_refused_callers_are_spread_over_the_time_in_which_the_pod_turns_over() -> None:
    """A pod that holds its places for 10 s asks for 11 s on average, not for 1 to 5."""
    pod = Pod(limit=1)
    (held,) = await pod.occupy(1)
    await asyncio.sleep(10)
    pod.go.set()
    await held
    pod.go.clear()
    await pod.occupy(1)
    waits = [(await Client(pod.gate).run()).problem["retry_after"] for _ in range(400)]
    assert min(waits) >= 1.0
    assert max(waits) <= 21.0
    assert sum(waits) / len(waits) == pytest.approx(11.0, abs=1.0)
    pod.go.set()


@pytest.mark.real
async def test_a_loop_that_is_held_up_is_noticed() -> None:
    """A handler that blocks the loop for longer than `lag_high` starts the shedding."""
    pressure = Pressure(lag_high=0.2)
    watch = asyncio.create_task(pressure.watch())
    await asyncio.sleep(EVERY / 2)
    time.sleep(EVERY + 0.3)  # noqa: ASYNC251  # the fault that is looked for
    await asyncio.sleep(0.01)
    assert pressure.level > 0.0
    watch.cancel()
    await asyncio.wait((watch,))


def test_the_memory_of_the_process_is_read_from_the_system() -> None:
    """Fifty more megabytes show."""
    before = resident_memory()
    ballast = bytearray(random.Random(1).randbytes(1024)) * 50 * 1024
    assert resident_memory() - before > 40 * 1024**2
    assert len(ballast) == 50 * 1024**2


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("536870912\n", 536870912), ("9223372036854771712\n", None)]
)
def test_the_container_s_memory_is_read_in_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, limit: int | None
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(text)
    monkeypatch.setattr(module, "CGROUP", (Path("/nowhere/memory.max"), file))
    assert container_memory() == limit
    monkeypatch.setattr(module, "CGROUP", ())
    assert container_memory() is None


def test_without_bounds_nothing_is_sampled() -> None:
    """What is switched off has no task and sheds nobody."""
    assert not Pressure().bounded
    assert not any(shed(Pressure(), kind) for kind in Criticality)
    assert Slots(1, rng=random.Random(1))._pressure.level == 0.0
