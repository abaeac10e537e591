"""Two hundred tasks over four connections and four processes race for a hundred."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from tests.store.conftest import BACKENDS

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question

SHAPES = {"window": "Window.of(100, 3600)", "bucket": "Bucket.of(100, 360000, burst=100)"}

RACER = """
import asyncio, sys
from headworks.limits.shapes import Bucket, Window
from headworks.store.protocol import Ask, Question
from headworks.store.valkey import ValkeyStore

async def main():
    stores = [ValkeyStore(sys.argv[1]) for _ in range(4)]
    for store in stores:
        await store.ask(Question((Ask("warm-up", "other", Window.of(9, 60), 0),)))
    print("ready", flush=True)
    sys.stdin.readline()
    question = Question((Ask("limit", "race", eval(sys.argv[2])),))
    asks = (stores[i % 4].ask(question) for i in range(50))
    print(sum(verdict.allowed for verdict in await asyncio.gather(*asks)))
    for store in stores:
        await store.aclose()

asyncio.run(main())
"""


@pytest.mark.real
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_exactly_a_hundred_of_two_hundred_pass(
    request: pytest.FixtureRequest, backend: str, shape: str
) -> None:
    url = request.getfixturevalue(BACKENDS[backend]).url
    command = [sys.executable, "-c", RACER, url, SHAPES[shape]]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    passed = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(passed) == 100


@pytest.mark.parametrize("shape", [Window.of(100, 3600), Bucket.of(100, 360_000, burst=100)])
async def test_exactly_a_hundred_of_two_hundred_pass_in_memory(shape: Shape) -> None:
    store = MemoryStore()
    question = Question((Ask("limit", "race", shape),))
    verdicts = await asyncio.gather(*(store.ask(question) for _ in range(200)))
    assert sum(verdict.allowed for verdict in verdicts) == 100
