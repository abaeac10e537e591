"""Leave-permits on a store: few places, and none when many are under pressure."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from headworks.health import Health
from headworks.policy.load import parse
from headworks.policy.settings import HealthSettings
from headworks.store.memory import MemoryStore
from headworks.store.protocol import StoreStatistics
from headworks.telemetry import Telemetry
from headworks.works.permit import LEASE, LeavePermit, permit_of


def place(store: MemoryStore, pod: str, places: int = 3) -> LeavePermit:
    return LeavePermit(store, name="svc", holder=pod, places=lambda: places)


class Pod:
    """A pod that is under pressure or not, and watches itself."""

    def __init__(self, store: MemoryStore, number: int) -> None:
        self.full = False
        self.health = Health(
            HealthSettings(),
            full_for=lambda: 100.0 if self.full else 0.0,
            permit=place(store, f"pod-{number}"),
            facts=dict,
            telemetry=Telemetry(),
            rng=random.Random(number),
        )
        self.health.serve()
        self.watch = asyncio.create_task(self.health.watch())


def away(pods: list[Pod]) -> int:
    return sum(not pod.health.ready for pod in pods)


async def test_a_pod_that_alone_is_full_leaves_and_one_of_many_stays() -> None:
    """Three of ten may be away; when a fourth is full, there is no room to leave to: all come back."""
    store = MemoryStore()
    pods = [Pod(store, number) for number in range(10)]
    pods[0].full = True
    await asyncio.sleep(3.5)
    assert away(pods) == 1
    for pod in pods[1:3]:
        pod.full = True
    await asyncio.sleep(3.5)
    assert away(pods) == 3
    pods[3].full = True
    await asyncio.sleep(2.5)
    assert away(pods) == 0, "there is a crowd"
    for pod in pods:
        pod.full = True
    highest = 0
    for _ in range(120):
        await asyncio.sleep(0.5)
        highest = max(highest, away(pods))
    assert highest == 0, "and as long as there is one, nobody leaves"
    for pod in pods[1:]:
        pod.full = False
    await asyncio.sleep(8.5)
    assert away(pods) == 1, "alone again"
    for pod in pods:
        pod.watch.cancel()
        await pod.health.close()
    assert not store._leases


async def test_a_dead_pod_s_place_is_free_again_after_its_lease() -> None:
    """The watch keeps a lease alive; without it, it ends by itself."""
    store = MemoryStore()
    dead, living = place(store, "dead", 1), place(store, "living", 1)
    assert await dead.hold()
    await asyncio.sleep(LEASE - 0.1)
    assert not await living.hold()
    await asyncio.sleep(0.2)
    assert await store.lease("{health:svc}:leave", holder="living", limit=1, ttl=LEASE)
    await asyncio.sleep(3)
    assert await living.hold(), "the word of a crowd has ended, too"
    assert not await dead.hold(), "it is somebody else's now"


async def test_a_lease_that_is_renewed_every_second_is_never_lost() -> None:
    store = MemoryStore()
    holder, other = place(store, "pod-1", 1), place(store, "pod-2", 1)
    for _ in range(60):
        assert await holder.hold()
        await asyncio.sleep(1)
    assert await store.lease("{health:svc}:leave", holder="pod-2", limit=1, ttl=1) == 0
    await holder.give_back()
    assert await other.hold()


class Counted(MemoryStore):
    """A store that so many processes share."""

    processes = 1

    def statistics(self) -> StoreStatistics:
        return replace(super().statistics(), processes=self.processes)


@pytest.mark.parametrize(("processes", "places"), [(1, 0), (3, 0), (4, 1), (10, 3), (34, 10)])
async def test_so_many_pods_may_be_away(processes: int, places: int) -> None:
    """Three tenths of those that were counted, rounded down, whatever the policy foresees; where that is
    none, no pod ever leaves for load."""
    table = {
        "schema": 1,
        "service": {"name": "svc"},
        "store": {"url": "valkey://valkey"},
        "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
        "deploy": {"replicas": 7},
    }
    store, policy = Counted(), parse(table, "test", {})
    pods = [permit_of(policy, store, f"pod-{number}") for number in range(processes)]
    store.processes = processes  # counted later than the pods were built
    held = [await pod.hold() for pod in pods if pod is not None]
    assert len(held) == processes
    assert len(store._leases.get("{health:svc}:leave", ())) == places
    del table["store"]
    assert permit_of(parse(table, "test", {}), MemoryStore(), "pod-1") is None
