"""The gateways, rendered from a 200/s variant of the shipped policy and really run: what they hold.

Beside each, as controls: the same gateway with that protection taken out, and nginx with the
annotations that are often proposed instead.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bench import annotations
from bench.claims import Claim, Control, Figure
from bench.edge_stage import Client, Cut, Edge, gateway, paced, plain_nginx
from bench.stage import Stage
from headworks.local.parts import LOOPBACK

TOTAL, BURST, OWN = 200, 40, 20
RATES = {"total_rate": f"{TOTAL}/s burst {BURST}", "per_ip_rate": f"{OWN}/s burst {OWN}"}
WIDE = {"total_rate": "50000/s", "per_ip_rate": "50000/s", "per_ip_connections": "1000"}
SECONDS = 5.0
SLOW = {"header_timeout": "1s", "body_timeout": "600ms", "upload_timeout": "1s"}
AWAY = {"nginx": 0.5, "envoy": 0.3}
"""Seconds after which a pod that says no must have had its last request."""
CUTS: dict[str, dict[str, tuple[str, str, str]]] = {
    "nginx": {
        "address": ("nginx.conf", r"limit_req zone=headworks_ip[^\n]*", ""),
        "ready": ("edge.js", r"reply\.status === 200", "true"),
        "reads": ("nginx.conf", "proxy_next_upstream error timeout;", "proxy_next_upstream off;"),
        "upload": ("nginx.conf", "js_access edge.upload;", ""),
    },
    "envoy": {
        "address": ("listener.yaml", r"(?s)(stat_prefix: address.*?max_tokens): \d+", r"\1: 1000000"),
        "ready": (
            "cluster.yaml",
            r"http_health_check:\n *path: /ready",
            "http_health_check: {path: /ready, expected_statuses: [{start: 200, end: 600}]}",
        ),
        "reads": ("listener.yaml", r"num_retries: \d+", "num_retries: 0"),
        "upload": ("listener.yaml", r"\n *request_timeout: [^\n]*", ""),
    },
}


async def nginx(stage: Stage) -> Claim:
    """What nginx holds, and that per-address annotations hold no total."""
    return await _edge(stage, "nginx")


async def envoy(stage: Stage) -> Claim:
    """The same of Envoy."""
    return await _edge(stage, "envoy")


def without(product: str, protection: str) -> Cut:
    """Takes one protection out of the rendered files."""
    file, pattern, instead = CUTS[product][protection]

    def cut(files: dict[str, str]) -> dict[str, str]:
        text, found = re.subn(pattern, instead, files[file])
        assert found, f"{protection} was not there to be taken out"
        return {**files, file: text}

    return cut


async def _edge(stage: Stage, product: str) -> Claim:
    async with gateway(product, settings=RATES) as edge:
        served, allowed = await _crowd(edge, 30, TOTAL * 3 / 30)
    async with plain_nginx(_annotated) as edge:
        annotated, would_allow = await _crowd(edge, 30, TOTAL * 3 / 30)
    away, lost = await _leaves(product, None)
    stays, _ = await _leaves(product, without(product, "ready"))
    return Claim(
        f"edge-{product}",
        f"{product}, rendered from the policy at {TOTAL}/s, holds the total and every address, starves "
        "nobody, ends who drips, and loses no request when pods leave, die or are replaced",
        (
            Figure(
                "total over 5 s from 30 addresses, off by",
                abs(served / allowed - 1),
                "<=",
                0.03,
                Control(
                    f"annotations limit-rps {TOTAL}: served {annotated}",
                    abs(annotated / would_allow - 1),
                ),
            ),
            Figure(
                "of 60 addresses, let through beyond their own rate",
                await _beyond(gateway(product, settings=_narrow())),
                "==",
                0,
                Control("annotations", await _beyond(plain_nginx(_annotated))),
            ),
            Figure(
                "polite client beside three flooders, share served",
                await _polite(gateway(product, settings=RATES)),
                ">=",
                0.99,
                Control(
                    "with a total alone",
                    await _polite(gateway(product, settings=RATES, cut=without(product, "address"))),
                ),
            ),
            Figure(
                "seconds until a pod that says no had its last request",
                away,
                "<=",
                AWAY[product],
                Control("readiness not heard", stays),
            ),
            Figure("requests lost meanwhile", lost, "==", 0),
            Figure(
                "reads lost to kill -9 of a pod",
                await _killed(product, None),
                "==",
                0,
                Control("not offered again", await _killed(product, without(product, "reads"))),
            ),
            Figure(
                "requests lost in a rolling restart of three pods",
                await _rolled(product, polite=True),
                "==",
                0,
                Control("pods that do not say so first", await _rolled(product, polite=False)),
            ),
            Figure(
                "seconds until a dripping head and body are ended, after 1 s",
                await _dripped(product, None),
                "<=",
                2.5,
                Control("each byte in time", await _dripped(product, without(product, "upload"))),
            ),
            Figure(
                "5 MB body, status",
                await _large(product, "1MiB"),
                "==",
                413,
                Control("with room for it", await _large(product, "8MiB")),
            ),
        ),
        {"served": served, "allowed": round(allowed), "annotations served": annotated},
    )


def _annotated(port: int, pods: list[Any]) -> str:
    return annotations.conf(port=port, pods=pods, rps=TOTAL, connections=500, rpm=100)


def _narrow() -> dict[str, str]:
    return {"total_rate": "50000/s", "per_ip_rate": "60/h burst 5"}


async def _crowd(edge: Edge, addresses: int, rate: float) -> tuple[int, float]:
    """Served, and what the rate allows over the time that it really took: rate × time + burst."""
    loop = asyncio.get_running_loop()
    clients = [await edge.client(f"127.0.2.{n}") for n in range(1, addresses + 1)]
    began = loop.time()
    seen = await asyncio.gather(
        *(paced(c, rate, SECONDS, phase=n / addresses) for n, c in enumerate(clients))
    )
    took = loop.time() - began
    return sum(s[200] for s in seen), TOTAL * took + BURST


async def _beyond(running: Any) -> int:
    """Requests of sixty addresses that passed beyond five of each."""
    async with running as edge:
        clients = [await edge.client(f"127.0.3.{n}") for n in range(1, 61)]
        passed = Counter[int]()
        for _ in range(10):
            for number, client in enumerate(clients):
                passed[number] += await client.ask() == 200
        return sum(max(0, count - 5) for count in passed.values())


async def _polite(running: Any) -> float:
    """Share served of ten requests a second, beside three addresses that ask without a pause."""
    async with running as edge:
        flooders = [await edge.client(f"127.0.4.{n}") for n in (1, 2, 3) for _ in range(4)]
        tasks = [asyncio.create_task(_without_pause(client)) for client in flooders]
        await asyncio.sleep(1.0)
        try:
            seen = await paced(await edge.client("127.0.4.99"), 10, SECONDS)
        finally:
            await _cancelled(tasks)
        return seen[200] / seen.total()


async def _without_pause(client: Client, seen: Counter[int] | None = None, method: str = "GET") -> None:
    while True:
        status = await client.ask(method)
        if seen is not None:
            seen[status] += 1
        if status == 0:
            await asyncio.sleep(0.01)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _flow(edge: Edge, method: str, clients: int, act: Callable[[], Any]) -> Counter[int]:
    """Statuses of clients that ask without a pause while something happens."""
    seen = Counter[int]()
    asking = [await edge.client(f"127.0.5.{n}") for n in range(1, clients + 1)]
    tasks = [asyncio.create_task(_without_pause(client, seen, method)) for client in asking]
    await asyncio.sleep(0.3)
    await act()
    await asyncio.sleep(0.5)
    await _cancelled(tasks)
    return seen


def _failed(seen: Counter[int]) -> int:
    return seen.total() - seen[200]


async def _leaves(product: str, cut: Cut | None) -> tuple[float, int]:
    """Seconds from a pod's turning unready to its last request, and requests lost."""
    async with gateway(product, pods=3, settings=WIDE, cut=cut) as edge:
        loop = asyncio.get_running_loop()
        said = loop.time()

        async def turn() -> None:
            nonlocal said
            edge.pods[0].ready, said = False, loop.time()
            await asyncio.sleep(1.5)

        seen = await _flow(edge, "GET", 4, turn)
        return round(max(0.0, edge.pods[0].last - said), 3), _failed(seen)


async def _killed(product: str, cut: Cut | None) -> int:
    """Reads that failed when one of three pods was killed."""
    async with gateway(product, pods=3, settings=WIDE, cut=cut) as edge:

        async def kill() -> None:
            edge.pods[1].kill()

        return _failed(await _flow(edge, "GET", 4, kill))


async def _rolled(product: str, *, polite: bool) -> int:
    """Writes that failed while every pod was replaced in turn."""
    async with gateway(product, pods=3, settings=WIDE) as edge:

        async def roll() -> None:
            for pod in edge.pods:
                if polite:
                    pod.ready = False
                    await asyncio.sleep(0.8)
                pod.kill()
                await asyncio.sleep(0.2)
                pod.ready = True
                await pod.start()
                await asyncio.sleep(0.8)

        return _failed(await _flow(edge, "POST", 8, roll))


async def _dripped(product: str, cut: Cut | None) -> float:
    """Seconds until the slower of a dripping head and a dripping body was ended; 5 when neither was."""
    post = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    get = b"GET /x HTTP/1.1\r\nHost: x\r\nX-Slow: "
    async with gateway(product, settings=SLOW, cut=cut) as edge:
        return round(max(await asyncio.gather(*(_drip(edge.port, head) for head in (get, post)))), 2)


async def _drip(port: int, head: bytes) -> float:
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    began, ended = loop.time(), asyncio.create_task(reader.read(1))
    try:
        writer.write(head)
        while loop.time() - began < 5 and not ended.done():
            writer.write(b"a")
            await asyncio.wait((ended,), timeout=0.2)
        return min(5.0, loop.time() - began)
    finally:
        ended.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await ended
        writer.close()


async def _large(product: str, most: str) -> int:
    async with gateway(product, settings={"max_body": most}) as edge:
        return await (await edge.client()).ask("POST", b"a" * 5_000_000)
