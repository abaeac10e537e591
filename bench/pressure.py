"""The stack under load: a flood that must starve nobody, and parts killed while customers are served."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from bench.claims import Claim, Control, Figure
from bench.stage import POLICY, Missing, Stack, Stage, chat, client, headworks, stop
from headworks.local import parts, probe
from headworks.local.load.profiles import CHAT, FLOOD, STREAM
from headworks.policy.load import load

FLOODING = "127.0.1.1"
"""One of the addresses the flood comes from."""
KNOWN = tuple(f"pro-{n}" for n in range(1, 6))
"""Customers who ask while a part is dead."""
BACK = 30.0
"""Seconds within which a killed part must answer again."""


async def flood(stage: Stage) -> Claim:
    """2,000 requests a second from four addresses, beside customers who ask for 140 % of the quota."""
    stack = await stage.shipped()
    seconds = 20 if stage.quick else 45
    neighbour = asyncio.ensure_future(_at_a_flooding_address(stack, seconds - 6))
    try:
        report = await drive(stage, stack, "flood", seconds)
    finally:
        neighbour.cancel()
        shared = (await asyncio.gather(neighbour, return_exceptions=True))[0]
    unlimited = await _without_limiter(stage)
    crowds = {crowd["name"]: crowd for crowd in report["crowds"]}
    vendors = {vendor["name"]: vendor for vendor in report["vendors"]}
    llm = vendors["llm"]
    flooding = crowds["flood"]
    return Claim(
        "flood",
        "the gateway answers the flood, a polite client on another address is served throughout, and "
        "the vendor's own count shows no rejection and at least 90 % of its quota used",
        (
            Figure(
                "polite client, share served",
                crowds["polite"]["share"],
                ">=",
                0.99,
                Control("the same client at a flooding address", _or_none(shared)),
            ),
            Figure(
                "of the flood, refused by the gateway", _share(report, "gateway", "flood"), ">=", 0.5
            ),
            Figure(
                "of the flood, without a signed answer",
                flooding["unsigned"] + flooding["broken"],
                "==",
                0,
            ),
            Figure(
                "calls the vendors rejected",
                _rejected(report),
                "==",
                0,
                Control("without the limiter", unlimited),
            ),
            Figure("of the vendor's quota, used", llm["utilisation"]["requests"], ">=", 0.9),
            Figure("requests answered 500", _count(report, status=500), "==", 0),
        ),
        _beside(report),
    )


async def _at_a_flooding_address(stack: Stack, seconds: float) -> float:
    """Share served of a polite client, one request a second, that shares the flooder's address."""
    served = sent = 0
    ends = asyncio.get_running_loop().time() + seconds
    await asyncio.sleep(3.0)
    async with client(FLOODING, base_url=stack.url) as asking:
        while asyncio.get_running_loop().time() < ends:
            answer = await asking.get(
                "/search", params={"q": "weir"}, headers={"X-API-Key": "enterprise-3"}
            )
            served, sent = served + (answer.status_code == 200), sent + 1
            await asyncio.sleep(0.5)
    return round(served / max(1, sent), 4)


def _or_none(found: float | BaseException) -> float | None:
    return None if isinstance(found, BaseException) else found


async def _without_limiter(stage: Stage) -> int | None:
    """How many of the flood's own chat calls the same vendor rejects when nobody limits them."""
    settings = load(POLICY, {"HEADWORKS_STORE__URL": "valkey://127.0.0.1"}).vendors["llm"]
    wanted = sum(
        crowd.rate * sum(call in (CHAT, STREAM) for call in crowd.mix) / len(crowd.mix)
        for crowd in FLOOD.crowds
        if crowd.name != "flood"
    )
    rng = random.Random(stage.seed)
    async with _judge(settings) as base, client(base_url=base) as asking, asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(round(wanted * 12)):
            message = {"role": "user", "content": "Why do canals have weirs?"}
            call = {"model": "m", "messages": [message], "max_tokens": 256}
            tasks.append(group.create_task(asking.post("chat/completions", json=call)))
            await asyncio.sleep(rng.expovariate(wanted))
        await asyncio.wait(tasks)
    return sum(task.result().status_code == 429 for task in tasks)


@asynccontextmanager
async def _judge(settings: Any) -> AsyncIterator[str]:
    """A fake vendor of its own, with the flags that the stack gives to its own."""
    port = probe.free_ports(parts.LOOPBACK, 1, random.Random())[0]
    command = parts.fake_vendor("control", settings, POLICY.parent, port, {})
    process = await headworks(*command.argv[command.argv.index("fake-vendor") :])
    try:
        if not await probe.wait_until(lambda: _answers(port, "/stats"), timeout=20.0):
            raise Missing("the vendor of the control did not start")
        yield parts.vendor_url(settings, port) + "/"
    finally:
        await stop(process)


async def _answers(port: int, path: str) -> bool:
    return await probe.http_status(parts.LOOPBACK, port, path) == 200


async def drive(stage: Stage, stack: Stack, profile: str, seconds: int, *more: str) -> dict[str, Any]:
    """`headworks load` against the stack, its result as data."""
    options = (
        "--profile",
        profile,
        "--duration",
        f"{seconds}s",
        "--seed",
        str(stage.seed),
        "--json",
        *more,
    )
    process = await headworks("load", "--url", stack.url, *options)
    try:
        out, _ = await process.communicate()
    finally:
        await stop(process)
    if process.returncode != 0:
        raise Missing(f"headworks load --profile {profile} exited with {process.returncode}")
    report: dict[str, Any] = json.loads(out)
    return report


def _count(report: dict[str, Any], **wanted: Any) -> int:
    """Requests that ended in decisions with these fields."""
    rows = (d for d in report["decisions"] if all(d[name] == value for name, value in wanted.items()))
    return sum(row["count"] for row in rows)


def _share(report: dict[str, Any], layer: str, crowd: str) -> float:
    sent: int = next(one["sent"] for one in report["crowds"] if one["name"] == crowd)
    decided: int = sum(d["crowds"].get(crowd, 0) for d in report["decisions"] if d["layer"] == layer)
    return round(decided / max(1, sent), 4)


def _rejected(report: dict[str, Any]) -> int:
    return sum(sum(vendor["rejected"].values()) for vendor in report["vendors"])


def _beside(report: dict[str, Any]) -> dict[str, Any]:
    """What the run showed otherwise: who was served, who decided, the vendors' own count."""
    decisions = [
        {name: row[name] for name in ("kind", "layer", "reason", "status", "count")}
        for row in report["decisions"]
    ]
    shares = {crowd["name"]: crowd["share"] for crowd in report["crowds"]}
    return {
        "share served": shares,
        "decisions": decisions,
        "vendors": report["vendors"],
        "unsent": report["unsent"],
        "load generator late at worst, seconds": report["late"],
    }


async def deaths(stage: Stage) -> Claim:
    """kill -9, three times, while `headworks load --profile steady` runs."""
    stack = await stage.shipped()
    calm, between = (3.0, 4.0) if stage.quick else (5.0, 8.0)
    seconds = 26 if stage.quick else 45
    loading = asyncio.ensure_future(drive(stage, stack, "steady", seconds))
    figures: list[Figure] = []
    try:
        await asyncio.sleep(calm)
        for name, path in (("pod-1", "/chat"), ("valkey", "/chat"), ("vendor-llm", "/search")):
            figures += await _death(stack, name, path)
            await asyncio.sleep(between)
        report = await loading
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    async with client(base_url=stack.url) as asking:
        after = [(await chat(asking, "pro-7")).status_code for _ in range(5)]
    unsigned = sum(d["count"] for d in report["decisions"] if d["kind"] == "unsigned")
    customers = next(crowd for crowd in report["crowds"] if crowd["name"] == "customers")
    dead_vendor = sum(
        row["crowds"].get("customers", 0)
        for row in report["decisions"]
        if row["reason"] == "vendor-error"
    )
    lost = 1 - (customers["served"] + dead_vendor) / customers["sent"]
    return Claim(
        "deaths",
        "a pod, Valkey and a fake vendor are killed under load: no 500 from our layers, service goes "
        "on, the dead part comes back",
        (
            *figures,
            Figure("requests answered 500", _count(report, status=500), "==", 0),
            Figure("failures that no layer signed", unsigned, "==", 0),
            Figure("customers not served, but for the dead vendor", round(lost, 4), "<=", 0.1),
            Figure("of five calls afterwards, served", after.count(200), "==", 5),
        ),
        _beside(report),
    )


async def _death(stack: Stack, name: str, path: str) -> list[Figure]:
    """Kill one part; ask the service and the part itself meanwhile; wait until it is back."""
    part = stack.part(name)
    if part.pid is None:
        raise Missing(f"{name} was not running")
    port = httpx2.URL(part.url).port or 0
    await _introduce(stack)
    os.kill(part.pid, signal.SIGKILL)
    direct = [_direct(port) for _ in range(3)]
    async with client(base_url=stack.url) as asking:
        reached, answers = await asyncio.gather(
            asyncio.gather(*direct), asyncio.gather(*(_ask(asking, path, key) for key in KNOWN))
        )
    back = await probe.wait_until(lambda: _is_back(stack, name, part.pid or 0, port), timeout=BACK)
    return [
        Figure(
            f"{name} dead: share of {path} served",
            answers.count(200) / len(KNOWN),
            ">=",
            0.8,
            Control("asked directly", sum(reached) / 3),
        ),
        Figure(f"{name} is back, as another process", back, "==", 1),
    ]


async def _introduce(stack: Stack) -> None:
    """Let every pod meet the customers who will ask: a body that is no JSON is counted, and costs no
    vendor call. Without its store, a pod lets customers it has never met wait for their first unit.
    """
    for pod in stack.pods():
        async with client(base_url=pod.url) as asking:
            for key in KNOWN:
                await asking.post("/chat", content=b"{", headers={"X-API-Key": key})
                await asking.get("/search", headers={"X-API-Key": key})


async def _ask(asking: httpx2.AsyncClient, path: str, key: str) -> int:
    if path == "/chat":
        return (await chat(asking, key)).status_code
    return (await asking.get(path, params={"q": "weir"}, headers={"X-API-Key": key})).status_code


async def _direct(port: int) -> bool:
    """Whether anything accepts a connection there."""
    try:
        _, writer = await asyncio.open_connection(parts.LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


async def _is_back(stack: Stack, name: str, old: int, port: int) -> bool:
    return stack.part(name).pid not in (None, old) and await _direct(port)
