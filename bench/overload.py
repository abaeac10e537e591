"""The claim that a pod serves its capacity under ten times its capacity: in virtual time, and refusals
once more over a real server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette

from bench import goodput
from bench.claims import Claim, Control, Figure
from bench.stage import ROOT, Missing, Stage, stop

ASKED = 200
"""How often a full pod is asked over a real server, one after the other."""
GIVE_UP = 1.0
"""Seconds after which they no longer wait for an answer."""


async def overload(stage: Stage) -> Claim:
    """Critical demand at half of the capacity, the rest raised until the total is ten times."""
    cells = await _cells(stage)
    ours = [cell for cell in cells if cell["defence"] == "headworks"]
    semaphore, server = _at_most(cells, "semaphore"), _at_most(cells, "limit_concurrency")
    full = goodput.headworks(patience=0.0)
    return Claim(
        "overload",
        "at ten times its capacity a pod serves its capacity, the critical all of it that they ask for, "
        "and tells everybody else at once",
        (
            Figure(
                "critical served in time, least of all loads",
                min(cell["critical"] for cell in ours),
                ">=",
                0.99,
                Control("uvicorn's limit_concurrency alone, 10×", server["critical"]),
            ),
            Figure(
                "goodput of what could be served, least of all loads",
                min(cell["goodput"] for cell in ours),
                ">=",
                0.95,
                Control("a bare semaphore, 10×", semaphore["goodput"]),
            ),
            Figure(
                "of those not served, told in the same moment",
                _told(ours),
                ">=",
                0.99,
                Control("a bare semaphore, 10×", _told([semaphore])),
            ),
            Figure(
                "over a real server, median of a refusal, ms",
                await _median(*full),
                "<=",
                25,
                Control("a bare semaphore, given up on", await _median(*goodput.semaphore())),
            ),
        ),
        {"cells": cells},
    )


def _at_most(cells: list[dict[str, Any]], defence: str) -> dict[str, Any]:
    """A defence under the heaviest load."""
    return max((cell for cell in cells if cell["defence"] == defence), key=lambda cell: cell["load"])


def _told(cells: list[dict[str, Any]]) -> float:
    told = sum(cell["at_once"] for cell in cells)
    return round(told / sum(cell["offered"] - cell["served"] for cell in cells), 4)


async def _cells(stage: Stage) -> list[dict[str, Any]]:
    """The experiment, in a process of its own, because virtual time takes a whole processor."""
    options = ("--seed", str(stage.seed), *(("--quick",) if stage.quick else ()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.goodput", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ),
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        out, said = await process.communicate()
    finally:
        await stop(process)
    if process.returncode != 0:
        raise Missing(f"the experiment ended with {process.returncode}: {said.decode().strip()[-300:]}")
    cells: list[dict[str, Any]] = json.loads(out)
    return cells


async def _median(app: goodput.App, inner: Starlette) -> float:
    """Milliseconds that one in two waits at most for the refusal of a full pod."""
    # By its name: asyncio switches Nagle's algorithm off only where the socket says that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    many = httpx2.Limits(max_connections=None)
    try:
        async with (
            inner.router.lifespan_context(inner),
            httpx2.AsyncClient(base_url=base, limits=many, timeout=60.0) as asking,
        ):
            work = {"x-work": "30", "x-api-key": "critical-1"}
            held = [
                asyncio.create_task(asking.get("/work", headers=work)) for _ in range(goodput.PLACES)
            ]
            await asyncio.sleep(GIVE_UP)
            times = await _ask(base)
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            server.should_exit = server.force_exit = True
            await asyncio.wait((serving,), timeout=5.0)
    finally:
        serving.cancel()
    return round(statistics.median(times) * 1000, 2)


async def _ask(base: str) -> list[float]:
    """Seconds until each answer; a client that was not answered asks no more."""
    now, times = asyncio.get_running_loop().time, []
    async with httpx2.AsyncClient(base_url=base, timeout=GIVE_UP) as asking:
        for _ in range(ASKED):
            began = now()
            try:
                answer = await asking.get("/work", headers={"x-work": "0", "x-api-key": "sheddable-1"})
            except httpx2.TimeoutException:
                return [*times, now() - began]
            if answer.status_code != 503:
                raise Missing(f"a full pod answered {answer.status_code}")
            times.append(now() - began)
    return times
