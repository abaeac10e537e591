"""While requests flow: pods leave and die, are replaced, and the policy changes. No request is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import policy_with

from headworks.local.parts import LOOPBACK
from headworks.local.probe import wait_until

pytestmark = pytest.mark.real
on_both = pytest.mark.parametrize("open_edge", ["nginx", "envoy"], indirect=True)

PATIENCE = 60.0
"""Seconds after which something has not happened."""
WIDE = {"per_ip_rate": "50000/s", "per_ip_connections": 1000, "total_rate": "50000/s"}


class Flow:
    """Readers and writers that ask without a pause, and what they were answered."""

    def __init__(self) -> None:
        self.gets: Counter[str] = Counter()
        self.posts: Counter[str] = Counter()
        self.flowing = True

    async def ask(self, client: httpx2.AsyncClient, method: str) -> None:
        counted = self.gets if method == "GET" else self.posts
        while self.flowing:
            try:
                answer = await client.request(method, "/x")
                counted[str(answer.status_code)] += 1
            except httpx2.HTTPError as error:
                counted[type(error).__name__] += 1

    async def more(self, requests: int) -> None:
        """Wait until so many more were answered."""
        wanted = self.answered + requests
        assert await wait_until(lambda: _true(self.answered >= wanted), timeout=PATIENCE)

    @property
    def answered(self) -> int:
        return self.gets.total() + self.posts.total()


@asynccontextmanager
async def flow(edge: Any, *, posts: int = 1) -> AsyncIterator[Flow]:
    """Three readers and a writer, while the block runs."""
    flowing = Flow()
    methods = ["GET"] * 3 + ["POST"] * posts
    async with httpx2.AsyncClient(base_url=f"http://{LOOPBACK}:{edge.port}", timeout=PATIENCE) as client:
        tasks = [asyncio.create_task(flowing.ask(client, method)) for method in methods]
        try:
            await flowing.more(50)
            yield flowing
        finally:
            flowing.flowing = False
            await asyncio.gather(*tasks)


@on_both
async def test_a_pod_that_says_no_is_left_at_its_first_answers(open_edge: Any) -> None:
    async with open_edge(pods=3, **WIDE) as edge:
        leaving = edge.pods[0]
        async with flow(edge) as flowing:
            leaving.ready = False
            assert await wait_until(lambda: _true(leaving.said_no >= 8), timeout=PATIENCE)
            await flowing.more(50)
        # The answer to the first check is all that it takes; another check may be under way with it.
        assert max(leaving.sent_after, default=0) <= 2
        assert set(flowing.gets) == set(flowing.posts) == {"200"}


@on_both
async def test_a_pod_killed_outright_costs_no_read(open_edge: Any) -> None:
    async with open_edge(pods=3, **WIDE) as edge:
        async with flow(edge) as flowing:
            edge.pods[1].kill()
            await flowing.more(300)
        assert set(flowing.gets) == {"200"}
        # A write that had been sent is not sent again: it fails, and only those under way can.
        assert flowing.posts.total() - flowing.posts["200"] <= 1


@on_both
async def test_every_read_in_a_dead_pods_hands_finds_the_other_one(open_edge: Any) -> None:
    """Who has nothing in hand is drawn first, and nobody has less in hand than a pod that has died."""
    for _ in range(8):  # an edge that draws too few times loses one now and then
        async with open_edge(pods=2, per_ip_connections=100) as edge:
            client = await edge.client()
            assert await wait_until(lambda c=client: _served_by_both(c), timeout=PATIENCE)
            dead, other = edge.pods
            for pod in edge.pods:
                pod.requests.clear()
                pod.gate.clear()
            reads = [asyncio.create_task(client.get("/x")) for _ in range(20)]
            assert await wait_until(
                lambda a=dead, b=other: _true(len(a.requests) + len(b.requests) == 20), timeout=PATIENCE
            )
            assert dead.requests
            dead.kill()
            other.gate.set()
            answers = await asyncio.gather(*reads)
            assert Counter((a.status_code, a.text) for a in answers) == {(200, "pod-1"): 20}


async def _served_by_both(client: httpx2.AsyncClient) -> bool:
    return {(await client.get("/x")).text for _ in range(6)} == {"pod-0", "pod-1"}


@on_both
async def test_a_rolling_restart_costs_nothing(open_edge: Any) -> None:
    """Each pod says no, serves on until nobody sends to it, ends, and comes back."""
    async with open_edge(pods=3, **WIDE) as edge:
        async with flow(edge, posts=3) as flowing:
            for pod in edge.pods:
                pod.ready = False
                refused = pod.said_no
                assert await wait_until(
                    lambda p=pod, n=refused: _true(p.said_no >= n + 4), timeout=PATIENCE
                )
                pod.kill()
                await flowing.more(30)
                pod.ready = True
                await pod.start()
                before = len(pod.requests)
                assert await wait_until(
                    lambda p=pod, n=before: _true(len(p.requests) > n), timeout=PATIENCE
                )
        assert set(flowing.gets) == set(flowing.posts) == {"200"}


@on_both
async def test_a_changed_policy_is_taken_over_without_losing_a_request(open_edge: Any) -> None:
    async with open_edge(pods=2, **WIDE) as edge:
        strict = await edge.client("127.0.0.77")
        assert [(await strict.get("/x")).status_code for _ in range(5)] == [200] * 5
        async with flow(edge) as flowing:
            narrow = policy_with(**{**WIDE, "max_body": "10B"})
            edge.take_over(narrow)

            async def taken_over() -> bool:
                async with httpx2.AsyncClient(timeout=PATIENCE) as asking:  # a connection of its own
                    url = f"http://{LOOPBACK}:{edge.port}/x"
                    return (await asking.post(url, content=b"a" * 100)).status_code == 413

            assert await wait_until(taken_over, timeout=PATIENCE)
            await flowing.more(100)
        lost = {status: count for status, count in flowing.gets.items() if status != "200"}
        assert lost == {}
        assert set(flowing.posts) == {"200"}


@pytest.mark.parametrize("open_edge", ["envoy"], indirect=True)
async def test_a_pod_that_joins_or_leaves_the_file_is_seen_at_once(open_edge: Any) -> None:
    async with open_edge(pods=2, **WIDE) as edge, flow(edge) as flowing:
        gone = edge.pods[0]
        edge.render(policy_with(**WIDE), edge.pods[1:])
        before = len(gone.requests)

        async def nobody_sends() -> bool:
            nonlocal before
            before, seen = len(gone.requests), before
            await flowing.more(20)
            return len(gone.requests) == before == seen

        assert await wait_until(nobody_sends, timeout=PATIENCE)
        edge.render(policy_with(**WIDE))
        assert await wait_until(lambda: _true(len(gone.requests) > before), timeout=PATIENCE)
    assert set(flowing.gets) == set(flowing.posts) == {"200"}


@on_both
async def test_when_too_few_are_ready_all_that_answer_are_sent_to(open_edge: Any) -> None:
    async with open_edge(pods=4, panic=0.5, **WIDE) as edge:
        for pod in edge.pods[:3]:
            pod.ready = False
        edge.pods[3].kill()
        unready = edge.pods[:3]
        assert await wait_until(
            lambda: _true(min(pod.said_no for pod in unready) >= 4), timeout=PATIENCE
        )
        client = await edge.client()

        async def served_by(names: set[str]) -> bool:
            answers = [await client.get("/x") for _ in range(12)]
            return {a.text for a in answers if a.status_code == 200} == names

        assert await wait_until(lambda: served_by({"pod-0", "pod-1", "pod-2"}), timeout=PATIENCE)


async def _true(value: bool) -> bool:
    return value
