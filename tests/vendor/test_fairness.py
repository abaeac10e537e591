"""Who gets the quota of a whole fleet: tenants, classes, and who alone asks for more than there is."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from headworks.current import Criticality, Current, enter
from headworks.vendor import Vendor

QUOTA = 10.0
"""Calls a second."""


def fleet(house: Any, pods: int = 4) -> list[Vendor]:
    house.server.latency = 0.5
    settings = {"quota": ["600/min"], "queue_timeout": "5s", "expected_latency": "500ms"}
    return [house.vendor(pod=f"pod-{n}", replicas=pods, **settings) for n in range(pods)]


class Demand:
    """Calls of several tenants at several rates, spread over the pods; what became of them."""

    def __init__(self, pods: list[Vendor], seed: int = 5) -> None:
        self._pods, self._rng = pods, random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {}

    async def drive(self, rates: dict[str, tuple[float, Criticality]], seconds: float) -> None:
        """For so many seconds; what the first fifth of them brought is left out."""
        loop = asyncio.get_running_loop()
        began, total = loop.time(), sum(rate for rate, _ in rates.values())
        names, weights = list(rates), [rate for rate, _ in rates.values()]
        async with asyncio.TaskGroup() as group:
            while loop.time() < began + seconds:
                (tenant,) = self._rng.choices(names, weights)
                counts = loop.time() > began + seconds / 5
                group.create_task(self._one(tenant, rates[tenant][1], counts))
                await asyncio.sleep(self._rng.expovariate(total))

    async def _one(self, tenant: str, criticality: Criticality, counts: bool) -> None:
        enter(Current(tenant=tenant, criticality=criticality))
        began = asyncio.get_running_loop().time()
        answer = await self._rng.choice(self._pods).client.post("/x", json={"model": "m"})
        if counts:
            self.asked[tenant] += 1
            self.served[tenant] += answer.status_code == 200
            if answer.status_code == 200:
                self.waits.setdefault(tenant, []).append(asyncio.get_running_loop().time() - began)


@pytest.mark.parametrize("part", [0.8, 0.95, 1.0])
async def test_nine_polite_tenants_beside_a_flooder_get_their_demand(house: Any, part: float) -> None:
    """Each of the nine asks for so much of an equal part, the flooder for four times all of it.

    Their arrivals are random: who happened to ask for more than its part is owed its part. From a line
    without `CREDIT` the nine get 88 % at 1.0, however well it is foreseen who is served in time.
    """
    pods = fleet(house)
    demand = Demand(pods)
    polite = {f"polite-{n}": (part * 0.1 * QUOTA, Criticality.DEFAULT) for n in range(9)}
    await demand.drive(polite | {"flooder": (4 * QUOTA, Criticality.DEFAULT)}, 200)
    served, asked = (sum(count[name] for name in polite) for count in (demand.served, demand.asked))
    assert served / asked >= 0.9
    owed = {name: min(demand.asked[name], 0.1 * QUOTA * 160) for name in polite}
    assert min(demand.served[name] / owed[name] for name in polite) >= 0.9
    assert sum(demand.served.values()) >= 0.99 * QUOTA * 160, "and all of the quota is used"
    assert demand.served["flooder"] >= 0.9 * (QUOTA * 160 - asked), "also by the flooder"


async def test_where_all_ask_for_far_too_much_nobody_lets_the_others_catch_up(house: Any) -> None:
    """Twenty tenants who all ask for five times their part have let nothing pass: were their calls to go
    first whenever they have none in line, one in ten of those who are served would wait for 3.2 s."""
    demand = Demand(fleet(house, pods=10))
    await demand.drive({f"t{n}": (0.25 * QUOTA, Criticality.DEFAULT) for n in range(20)}, 200)
    waits = sorted(wait for each in demand.waits.values() for wait in each)
    assert waits[int(0.9 * len(waits))] <= 2.9, "half a second of them at the vendor"
    assert sum(demand.served.values()) >= 0.985 * QUOTA * 160


async def test_interactive_calls_are_served_as_if_alone_and_batch_uses_the_rest(house: Any) -> None:
    """Ten times as much batch as interactive demand, more than there is of quota."""
    interactive = {"people": (QUOTA * 0.3, Criticality.CRITICAL)}
    batch = {"batch": (QUOTA * 3.0, Criticality.BACKGROUND)}
    alone = Demand(fleet(house))
    await alone.drive(interactive, 200)
    pods = fleet(house)
    both = Demand(pods)
    await both.drive(interactive | batch, 200)
    assert both.served["people"] / both.asked["people"] >= 0.99
    assert sum(both.served.values()) >= 0.985 * QUOTA * 160, "batch uses all that is left"
    median = [
        sorted(demand.waits["people"])[len(demand.waits["people"]) // 2] for demand in (alone, both)
    ]
    ahead = 10 / QUOTA
    assert median[1] - median[0] <= ahead, "up to what is booked ahead"


async def test_how_long_the_critical_may_wait_is_not_decided_by_others(
    house: Any,
) -> None:
    """Critical demand below the pace has the whole of `queue_timeout`, though the rest is a flood."""
    demand = Demand(fleet(house, pods=10))
    people = {f"p{n}": (0.08 * QUOTA, Criticality.CRITICAL) for n in range(10)}
    await demand.drive(people | {f"b{n}": (0.3 * QUOTA, Criticality.DEFAULT) for n in range(10)}, 200)
    served, asked = (sum(count[name] for name in people) for count in (demand.served, demand.asked))
    assert served / asked >= 0.94
    assert sum(demand.served.values()) >= 0.985 * QUOTA * 160
