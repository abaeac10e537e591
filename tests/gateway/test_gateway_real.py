"""The rendered gateways, as the real nginx and Envoy run them. Counts and bounds, no tight timing."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import Any

import pytest

from headworks.local.probe import wait_until

pytestmark = pytest.mark.real

PATIENCE = 30.0
"""Seconds after which something has not happened."""
on_both = pytest.mark.parametrize("open_edge", ["nginx", "envoy"], indirect=True)


async def burst(edge: Any, address: str, count: int) -> Counter[int]:
    """So many GETs at once from one address, by status."""
    client = await edge.client(address)
    answers = await asyncio.gather(*(client.get("/x") for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


@on_both
async def test_one_address_gets_its_burst_and_then_429(open_edge: Any) -> None:
    loop = asyncio.get_running_loop()
    async with open_edge(per_ip_rate="10/s burst 10", per_ip_connections=100) as edge:
        began = loop.time()
        seen = await burst(edge, "127.0.0.2", 40)
        allowed = 10 + 10 * (loop.time() - began) + 1
        assert 10 <= seen[200] <= allowed
        assert seen[429] == 40 - seen[200]
        assert (await burst(edge, "127.0.0.3", 5))[200] == 5, "another address has its own rate"


@on_both
async def test_in_shadow_nothing_is_refused_and_what_would_be_is_marked(open_edge: Any) -> None:
    async with open_edge(mode="shadow", per_ip_rate="60/h burst 5") as edge:
        assert await burst(edge, "127.0.0.2", 12) == {200: 12}
        marks = Counter(headers.get("x-headworks-shadow") for _, headers in edge.pods[0].requests)
        assert marks == {None: 5, "rate": 7}
        body = await (await edge.client()).post("/x", content=b"a" * 2_000_000)
        assert body.status_code == 413, "sizes and times are bounded all the same"


@on_both
async def test_all_addresses_together_get_the_total(open_edge: Any) -> None:
    """As many as a leaky bucket of the policy's numbers lets through while more are offered: no more,
    and no fewer but for the longest time that one burst took."""
    loop = asyncio.get_running_loop()
    served, longest = Counter[int](), 0.0
    async with open_edge(total_rate="1200/min burst 50", per_ip_rate="1200/min burst 50") as edge:
        addresses = [f"127.0.0.{number}" for number in range(2, 22)]
        for address in addresses:
            await edge.client(address)
        began = loop.time()
        for address in itertools.cycle(addresses):
            asked = loop.time()
            served += await burst(edge, address, 5)
            longest = max(longest, loop.time() - asked)
            elapsed = loop.time() - began
            if served[200] >= 100 or elapsed > PATIENCE:
                break
    assert served[429] > 100, "the total was not exceeded, so nothing is shown"
    assert served[200] <= (50 + 20 * elapsed) * 1.03 + 2
    assert served[200] >= (50 + 20 * (elapsed - longest)) * 0.94 - 5


@on_both
async def test_a_polite_client_is_served_beside_flooders(open_edge: Any) -> None:
    statuses: list[int] = []
    async with open_edge(total_rate="60/s burst 10", per_ip_rate="10/s burst 2") as edge:
        refused, flooding = dict.fromkeys(("127.0.0.2", "127.0.0.3", "127.0.0.4"), 0), True

        async def flood(address: str) -> None:
            while flooding:
                refused[address] += (await burst(edge, address, 5))[429]

        flooders = [asyncio.create_task(flood(address)) for address in refused]
        polite = await edge.client("127.0.0.99")
        async with asyncio.timeout(PATIENCE):
            while len(statuses) < 8 or min(refused.values()) <= 20:
                statuses.append((await polite.get("/x")).status_code)
                await asyncio.sleep(0.12)  # its pace: below its own rate
        flooding = False
        await asyncio.gather(*flooders)
    assert set(statuses) == {200}


@on_both
async def test_a_refusal_is_a_problem_that_names_layer_reason_and_time(open_edge: Any) -> None:
    async with open_edge(per_ip_rate="10/min burst 1") as edge:
        client = await edge.client()
        await client.get("/x")
        answer = await client.get("/x", headers={"X-Request-ID": "mine-7"})
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "6"
        assert answer.headers["x-request-id"] == "mine-7"
        problem = answer.json()
        assert (problem["status"], problem["layer"], problem["reason"]) == (429, "gateway", "rate")


async def test_requests_in_progress_per_address_are_bounded(open_edge: Any) -> None:
    async with open_edge(per_ip_connections=2) as edge:
        edge.pods[0].gate.clear()
        client = await edge.client()
        held = [asyncio.create_task(client.get("/x")) for _ in range(2)]
        assert await wait_until(lambda: _true(len(edge.pods[0].requests) == 2), timeout=PATIENCE)
        third = asyncio.create_task(client.get("/x"))
        await asyncio.wait((third,), timeout=PATIENCE)
        edge.pods[0].gate.set()
        refused = await third
        assert refused.status_code == 429
        assert refused.json()["reason"] == "connections"
        assert [(await task).status_code for task in held] == [200, 200]


@on_both
async def test_oversized_bodies_and_heads_end_at_the_gateway(open_edge: Any) -> None:
    async with open_edge(max_body="1KiB", max_header="4KiB") as edge:
        client = await edge.client()
        body = await client.post("/x", content=b"a" * 2000)
        assert body.status_code == 413
        assert body.json()["reason"] == "body-too-large"
        for long in ({"X-Long": "a" * 5000}, {"X-More": "b" * 9000}):
            head = await client.get("/x", headers=long)
            assert head.status_code in (400, 431)
            assert (head.json()["status"], head.json()["reason"]) == (head.status_code, "malformed")
        line = await client.get("/" + "a" * 5000)
        assert line.status_code in (414, 431)
        assert line.json()["reason"] == "malformed"
        assert (await client.post("/x", content=b"a" * 1000)).status_code == 200
        assert [what for what, _ in edge.pods[0].requests] == ["POST /x"]


@on_both
async def test_a_body_larger_than_a_buffer_passes_whole(open_edge: Any) -> None:
    async with open_edge(max_body="1MiB") as edge:
        client = await edge.client()
        assert (await client.post("/x", content=b"a" * 600_000)).status_code == 200
        assert edge.pods[0].requests[0][1]["content-length"] == "600000"


@on_both
async def test_a_spoofed_forwarding_header_neither_reaches_the_pod_nor_buys_a_rate(
    open_edge: Any,
) -> None:
    async with open_edge(per_ip_rate="10/min burst 1") as edge:
        client = await edge.client("127.0.0.5")
        spoof = {"X-Forwarded-For": "9.9.9.9", "Forwarded": "for=9.9.9.9", "X-Real-IP": "9.9.9.9"}
        assert (await client.get("/x", headers=spoof)).status_code == 200
        other = spoof | {"X-Forwarded-For": "8.8.8.8"}
        assert (await client.get("/x", headers=other)).status_code == 429
        _, headers = edge.pods[0].requests[0]
        assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.5"
        assert "forwarded" not in headers


@on_both
async def test_a_trusted_proxys_header_names_the_client_and_an_ipv6_client_is_its_64(
    open_edge: Any,
) -> None:
    async with open_edge(per_ip_rate="10/min burst 1", trust=["127.0.0.6/32"]) as edge:
        proxy, stranger = await edge.client("127.0.0.6"), await edge.client("127.0.0.7")

        async def status(client: Any, chain: str) -> int:
            return int((await client.get("/x", headers={"X-Forwarded-For": chain})).status_code)

        assert await status(proxy, "6.6.6.6, 203.0.113.1") == 200
        assert edge.pods[0].requests[-1][1]["x-forwarded-for"] == "203.0.113.1"
        assert await status(proxy, "203.0.113.1") == 429
        assert await status(proxy, "2001:db8:0:1::1") == 200
        assert await status(proxy, "2001:db8:0:1:ffff::2") == 429, "the same /64"
        assert await status(proxy, "2001:db8:0:2::1") == 200, "another /64"
        assert await status(stranger, "203.0.113.50") == 200
        assert edge.pods[0].requests[-1][1]["x-forwarded-for"] == "127.0.0.7"


@pytest.mark.parametrize("path", ["/metrics", "/ready", "/live", "/health", "/%6detrics", "/metrics/x"])
@on_both
async def test_what_pods_say_to_probes_is_not_for_the_world(open_edge: Any, path: str) -> None:
    async with open_edge() as edge:
        answer = await (await edge.client()).get(path)
        assert (answer.status_code, answer.json()["layer"]) == (404, "gateway")
        assert edge.pods[0].requests == []


@on_both
async def test_a_pod_that_says_it_is_not_ready_gets_no_more_traffic(open_edge: Any) -> None:
    async with open_edge(pods=2) as edge:
        client = await edge.client()

        async def both() -> bool:
            return {(await client.get("/x")).text for _ in range(6)} == {"pod-0", "pod-1"}

        assert await wait_until(both, timeout=PATIENCE)
        edge.pods[0].ready = False

        async def only_the_other() -> bool:
            answers = [await client.get("/x") for _ in range(6)]
            assert {answer.status_code for answer in answers} == {200}, "no request is lost meanwhile"
            return {answer.text for answer in answers} == {"pod-1"}

        assert await wait_until(only_the_other, timeout=PATIENCE)
        edge.pods[0].ready = True
        assert await wait_until(both, timeout=PATIENCE)


@on_both
async def test_without_a_ready_pod_the_gateway_says_so_and_when_to_come_back(open_edge: Any) -> None:
    async with open_edge(panic=0) as edge:
        edge.pods[0].ready = False
        assert await wait_until(lambda: _equals(edge.health, 503), timeout=PATIENCE)
        answer = await (await edge.client()).get("/x")
        assert (answer.status_code, answer.json()["reason"]) == (503, "no-ready-pod")
        assert answer.headers["retry-after"] == "1"


@on_both
async def test_a_write_is_never_sent_twice(open_edge: Any) -> None:
    async with open_edge(pods=2) as edge:
        for pod in edge.pods:
            pod.breaks = True
        client = await edge.client()
        written = await client.post("/x", content=b"once")
        assert (written.status_code, written.json()["reason"]) == (502, "pod-unreachable")
        assert sum(len(pod.requests) for pod in edge.pods) == 1
        assert (await client.get("/x")).status_code == 502
        reads = [[what for what, _ in pod.requests].count("GET /x") for pod in edge.pods]
        assert min(reads) >= 1, "a read is offered to both"
        assert sum(reads) <= 3, "and not more often than gateway.attempts"


@on_both
async def test_chunks_pass_as_they_come(open_edge: Any) -> None:
    async with open_edge() as edge:
        edge.pods[0].gate.clear()
        client = await edge.client()
        async with asyncio.timeout(PATIENCE), client.stream("GET", "/stream") as answer:
            chunks = answer.aiter_bytes()
            assert await anext(chunks) == b"data: 1\n\n", "before the pod has sent the rest"
            edge.pods[0].gate.set()
            assert await anext(chunks) == b"data: 2\n\n", "before the pod has ended it"
            edge.pods[0].last.set()


async def test_the_gateways_own_health_counts_its_ready_pods(open_edge: Any) -> None:
    async with open_edge(pods=2) as edge:
        client = await edge.client()

        async def both() -> bool:
            return bool(
                json.loads((await client.get("/-/gateway-health")).text) == {"ready": 2, "pods": 2}
            )

        assert await wait_until(both, timeout=PATIENCE)


async def _true(value: bool) -> bool:
    return value


async def _equals(ask: Any, wanted: int) -> bool:
    return bool(await ask() == wanted)


@on_both
async def test_many_addresses_are_each_held_to_their_own_rate(open_edge: Any) -> None:
    """Sixty at once: an edge that remembers only a few of them would let everybody through."""
    async with open_edge(per_ip_rate="60/h burst 5", total_rate="50000/s") as edge:
        addresses = [f"127.0.1.{number}" for number in range(1, 61)]
        for _ in range(3):  # round after round, so that each is forgotten where memory is short
            seen = [await burst(edge, address, 3) for address in addresses]
        assert {got[200] for got in seen} == {0}
        assert all(got[429] == 3 for got in seen)
        paths = [what for what, _ in edge.pods[0].requests]
        assert len(paths) == 60 * 5, "five each, and no more"


async def drip(port: int, head: bytes, pieces: int) -> float:
    """Send a byte every 100 ms until the gateway ends it; seconds until it did, inf when it did not."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.create_task(reader.read(1))
    try:
        writer.write(head)
        for _ in range(pieces):
            writer.write(b"a")
            done, _ = await asyncio.wait((ended,), timeout=0.1)
            if done:
                return loop.time() - began
        return float("inf")
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        writer.close()


@on_both
async def test_a_head_or_a_body_that_drips_in_is_ended_as_a_whole(open_edge: Any) -> None:
    """Each byte comes in time; together they take too long."""
    limits = {"header_timeout": "1s", "upload_timeout": "1s", "body_timeout": "600ms"}
    post = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    chunked = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n"
    async with open_edge(**limits) as edge:
        head = b"GET /x HTTP/1.1\r\nHost: x\r\nX-Slow: "
        took = await asyncio.gather(*(drip(edge.port, part, 40) for part in (head, post, chunked)))
        assert all(0.9 < seconds < 8 for seconds in took), took
        assert edge.pods[0].requests == [], "no pod heard of any of them"


@on_both
async def test_twenty_connections_of_one_address(open_edge: Any) -> None:
    """nginx holds an address to its requests in progress; Envoy bounds all connections together."""
    bounds = {"nginx": {"per_ip_connections": 20}, "envoy": {"connections": 64}}
    async with open_edge(**bounds[open_edge.product]) as edge:
        pod, most = edge.pods[0], {"nginx": 20, "envoy": 64}[open_edge.product]
        pod.gate.clear()
        answers: list[asyncio.Task[bytes]] = []

        async def ask(count: int) -> int:
            """So many more at once; how many are with the pod when each has arrived or is refused."""
            for _ in range(count):
                reader, writer = await edge.connect("127.0.0.1")
                writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
                answers.append(asyncio.create_task(_first_line(reader)))

            async def settled() -> bool:
                return len(pod.requests) + sum(answer.done() for answer in answers) >= len(answers)

            assert await wait_until(settled, timeout=PATIENCE)
            return len(pod.requests)

        held = await ask(most)
        while held < most:  # who asked for its health a moment ago still had a connection
            held = await ask(most - held)
        assert await ask(10) == most
        pod.gate.set()
        lines = Counter(await asyncio.gather(*answers))
        assert lines[b"HTTP/1.1 200 OK\r\n"] == most


async def _first_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ConnectionError:
        return b""
