"""Probes of a pod that has too much to do, and of a plain server in the same place."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from bench.claims import Claim, Control, Figure
from bench.pods import Answers, Pod, ask, hammered, plain, protected
from bench.stage import Stage
from headworks.local.parts import LOOPBACK

PLACES = 20
"""Requests in flight that either server takes: `admission.max_in_flight`, `--limit-concurrency`."""
TIMES = 10
"""Connections that ask at once, for each place."""
PATHS = ("/health", "/ready")
PROBE_TIMEOUT_MS = 1000
"""Milliseconds after which the rendered Deployment's readiness probe counts as lost."""


async def probed(stage: Stage) -> Claim:
    """Probes at ten times the load with the processor used up, and under a full set of long calls."""
    seconds = 4.0 if stage.quick else 8.0
    clock = asyncio.get_running_loop()
    limited = plain("--limit-concurrency", str(PLACES))
    async with protected() as ours, limited as control, plain() as bare:
        async with hammered(ours, "/busy", TIMES * PLACES):
            began, worked = clock.time(), ours.worked
            asked = [(port, path) for port in (ours.management, ours.port) for path in PATHS]
            found = await asyncio.gather(*(ask(port, path, seconds) for port, path in asked))
            processor = (ours.worked - worked) / (clock.time() - began)
        async with hammered(control, "/busy", TIMES * PLACES):
            busy = await ask(control.port, "/health", seconds)
        async with hammered(bare, "/busy", TIMES * PLACES):
            late = await ask(bare.port, "/health", seconds)
        ours_full = await _under_long_calls(ours, seconds / 2)
        control_full = await _under_long_calls(control, seconds / 2)
    named = {
        f"{path} on the {'management' if port == ours.management else 'service'} port": answers
        for (port, path), answers in zip(asked, found, strict=True)
    }
    figures = [
        Figure(
            f"ten times the load: {name}, not answered 200",
            answers.failed,
            "==",
            0,
            Control("limit_concurrency alone, /health", busy.failed),
        )
        for name, answers in named.items()
    ]
    figures += [
        Figure(
            f"ten times the load: {name}, p99 in ms",
            answers.p99_ms,
            "<=",
            PROBE_TIMEOUT_MS,
            Control("no protection, /health", late.p99_ms),
        )
        for name, answers in named.items()
    ]
    figures.append(
        Figure(
            "full of long calls: /health not answered 200",
            ours_full.failed,
            "==",
            0,
            Control("limit_concurrency alone", control_full.failed),
        )
    )
    return Claim(
        "probes",
        "a pod with ten times its load and no processor time to spare answers its probes, and so does "
        "one that is full of long calls",
        tuple(figures),
        {
            "probes": {name: len(answers.statuses) for name, answers in named.items()},
            "seconds of processor time the pod had per second": round(processor, 2),
        },
    )


async def _under_long_calls(pod: Pod, seconds: float) -> Answers:
    """Every place taken by a call that waits."""
    async with AsyncExitStack() as calls:
        for _ in range(PLACES):
            _, writer = await asyncio.open_connection(LOOPBACK, pod.port)
            calls.callback(writer.close)
            writer.write(b"GET /long HTTP/1.1\r\nHost: pod\r\n\r\n")
        await asyncio.sleep(0.5)
        return await ask(pod.management, "/health", seconds)
