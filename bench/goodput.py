"""Goodput against load: one pod, critical demand at half of its capacity, the rest raised to ten times.

    python -m bench.goodput [--quick] [--seed N] [--json PATH] [--plot PATH]

The pod has 50 places; a request takes 10 s on average (log-normal, coefficient of variation 0.5), so the
capacity is 5/s, and an answer counts if it comes within 60 s. Arrivals are Poisson; every defence meets
the same requests at the same times. All in virtual time, through the whole application:

    headworks          `Headworks.protect` with a line of 10 s
    semaphore          the application behind a bare `asyncio.Semaphore(50)`
    limit_concurrency  uvicorn's own limit alone, as a model: the 51st connection is answered 503

Figures of a cell, over the requests that arrive after the first minute:

    goodput   work in answers that count / min(work offered, places · seconds)
    critical  of the critical requests, answered 200 in time
    at_once   refusals answered in the same moment
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from bench.plot import chart
from headworks import Headworks
from headworks.policy.load import parse
from headworks.testing import loop

PLACES, MEAN, SPREAD, DEADLINE, PATIENCE = 50, 10.0, 0.5, 60.0, 10.0
CAPACITY = PLACES / MEAN
CRITICAL = 0.5
"""Critical demand, in capacities."""
LOADS = (0.5, 1.0, 2.0, 5.0, 10.0)
WARM = 60.0
"""Seconds before anything counts."""
USERS = 20
"""Keys of each class."""

App = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One request: when it arrives, whose it is, and how long its work takes."""

    at: float
    key: str
    critical: bool
    work: float


@dataclass(slots=True)
class Outcome:
    """What became of a job: its status and how many seconds that took."""

    job: Job
    status: int = 0
    seconds: float = math.inf

    @property
    def good(self) -> bool:
        return self.status == 200 and self.seconds <= DEADLINE


@dataclass(frozen=True, slots=True)
class Cell:
    """The figures of one defence under one load; see above."""

    defence: str
    load: float
    offered: int
    served: int
    refused: int
    goodput: float
    critical: float
    at_once: int


def jobs(load: float, seconds: float, seed: int) -> Iterator[Job]:
    """The arrivals of `WARM + seconds` seconds, in order."""
    rng = random.Random(f"{seed} {load}")
    variance = math.log(1 + SPREAD**2)
    at = 0.0
    while (at := at + rng.expovariate(load * CAPACITY)) < WARM + seconds:
        critical = rng.random() < CRITICAL / load
        key = f"{'critical' if critical else 'sheddable'}-{rng.randrange(USERS)}"
        work = rng.lognormvariate(math.log(MEAN) - variance / 2, math.sqrt(variance))
        yield Job(at, key, critical, work)


async def _work(request: Request) -> PlainTextResponse:
    await asyncio.sleep(float(request.headers["x-work"]))
    return PlainTextResponse("done")


def _application() -> Starlette:
    return Starlette(routes=[Route("/work", _work)])


def headworks(patience: float = PATIENCE) -> tuple[App, Starlette]:
    """The application under the whole stack, with a line of so many seconds."""
    names = ("critical", "sheddable")
    policy = {
        "schema": 1,
        "service": {"name": "goodput", "sla": DEADLINE},
        "admission": {"max_in_flight": PLACES, "queue_timeout": patience},
        "fairness": {
            "default_tier": "sheddable",
            "tiers": {name: {"rate": "1000000/min", "class": name} for name in names},
            "keys": {f"{name}-{user}": name for name in names for user in range(USERS)},
        },
    }
    app = Headworks(parse(policy, environ={}), rng=random.Random(1)).protect(_application())
    return app, app


def semaphore() -> tuple[App, Starlette]:
    """The application behind a semaphore, and nothing else."""
    app, places = _application(), asyncio.Semaphore(PLACES)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async with places:
            await app(scope, receive, send)

    return guarded, app


def limit_concurrency() -> tuple[App, Starlette]:
    """The application behind what uvicorn does with `limit_concurrency = PLACES + 1`."""
    app, tasks = _application(), set[int]()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if len(tasks) + 1 >= PLACES + 1:  # its own connection counts
            await PlainTextResponse("Service Unavailable", 503)(scope, receive, send)
            return
        tasks.add(id(scope))
        try:
            await app(scope, receive, send)
        finally:
            tasks.discard(id(scope))

    return guarded, app


DEFENCES: dict[str, Callable[[], tuple[App, Starlette]]] = {
    "headworks": headworks,
    "semaphore": semaphore,
    "limit_concurrency": limit_concurrency,
}


def run(defence: str, load: float, seconds: float, seed: int) -> Cell:
    """One cell."""
    outcomes = [Outcome(job) for job in jobs(load, seconds, seed)]
    loop.run(_play(defence, outcomes))
    counted = [outcome for outcome in outcomes if outcome.job.at >= WARM]
    good = [outcome for outcome in counted if outcome.good]
    refused = [outcome for outcome in counted if outcome.status == 503]
    offered = sum(outcome.job.work for outcome in counted)
    critical = [outcome for outcome in counted if outcome.job.critical]
    return Cell(
        defence,
        load,
        len(counted),
        len(good),
        len(refused),
        round(sum(outcome.job.work for outcome in good) / min(offered, PLACES * seconds), 4),
        round(sum(outcome.good for outcome in critical) / len(critical), 4),
        sum(outcome.seconds == 0.0 for outcome in refused),
    )


async def _play(defence: str, outcomes: list[Outcome]) -> None:
    """Send every job at its time; what is unanswered a deadline after the last one stays unanswered."""
    app, inner = DEFENCES[defence]()
    now, tasks = asyncio.get_running_loop().time, set[asyncio.Task[None]]()
    async with inner.router.lifespan_context(inner):
        began = now()
        for outcome in outcomes:
            await asyncio.sleep(began + outcome.job.at - now())
            tasks.add(task := asyncio.create_task(_send(app, outcome)))
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(set(tasks), timeout=DEADLINE)
        for task in set(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(app: App, outcome: Outcome) -> None:
    job, now = outcome.job, asyncio.get_running_loop().time
    began, asked = now(), asyncio.get_running_loop().create_future()
    headers = [(b"x-api-key", job.key.encode()), (b"x-work", repr(job.work).encode())]

    async def receive() -> MutableMapping[str, Any]:
        if not asked.done():
            asked.set_result(None)
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.get_running_loop().create_future()  # the client stays
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            outcome.status, outcome.seconds = message["status"], now() - began

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/work",
        "raw_path": b"/work",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("192.0.2.1", 1),
        "server": ("pod", 80),
    }
    await app(scope, receive, send)


def plot(cells: list[Cell]) -> str:
    """Both curves as SVG."""
    panels = {
        heading: {
            defence: [getattr(cell, figure) for cell in cells if cell.defence == defence]
            for defence in DEFENCES
        }
        for heading, figure in (
            ("Goodput, of what could be served", "goodput"),
            ("Critical requests served in time", "critical"),
        )
    }
    last = {cell.defence: cell for cell in cells if cell.load == max(LOADS)}
    says = "; ".join(
        f"{defence}: goodput {cell.goodput:.0%}, of the critical {cell.critical:.0%}"
        for defence, cell in last.items()
    )
    return chart(
        "Goodput against load",
        f"At {max(LOADS):g} times the capacity: {says}",
        panels,
        LOADS,
        below="demand, in capacities of the pod",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.goodput", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="five minutes a cell instead of twenty")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="default: standard output")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    seconds = 300.0 if options.quick else 1200.0
    cells = [run(defence, load, seconds, options.seed) for defence in DEFENCES for load in LOADS]
    result = json.dumps([asdict(cell) for cell in cells], indent=1) + "\n"
    if options.json is not None:
        options.json.write_text(result, encoding="utf-8")
    else:
        sys.stdout.write(result)
    if options.plot is not None:
        options.plot.write_text(plot(cells), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
