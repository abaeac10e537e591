"""One question about one limit is answered in front of the script: as the script itself would."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store import forms
from headworks.store.batch import Argument
from headworks.store.protocol import Ask, Correction, Question, Report
from headworks.store.scripts import script

pytestmark = pytest.mark.real

SHAPES: list[list[Shape]] = [
    [Bucket.of(100, 60, burst=100), Bucket.of(50, 60, burst=80)],
    [Bucket.of(59, 60, burst=30), Bucket.of(7, 10, burst=9)],
    [Bucket.of(40_000_000, 60, burst=700)],
    [Window.of(10, 60), Window.of(6, 60)],
    [Window.of(100, 60), Window.of(50, 60), Window(80, 60_000_000, 7_000_000)],
    [Window.of(200, 7200), Window.of(2**26, 7200)],
]
PAUSES = (0, 1, 1000, 400_000, 3_000_000, 20_000_000, 61_000_000, 75 * 60_000_000)
PLAIN = script("plain")
DECIDE = script("decide", "plain", "clock", "shapes", "gate")
LONG_WAY = script("decide", "clock", "shapes", "gate")


class Ways:
    """Two scripts, each on a key of its own, run in one transaction: at the same time of the server."""

    def __init__(self, client: Any, *sources: str) -> None:
        self._client = client
        self._shas = [client.script_load(source) for source in sources]

    def run(self, item: Question | Report, now: int) -> list[tuple[int, ...]]:
        """What each of them answers."""
        keys: list[str] = []
        arguments: list[Argument] = [now]
        if isinstance(item, Report):
            forms.write_report(item, keys, arguments)
        else:
            forms.Forms().question(item, keys, arguments)
        both = self._client.pipeline(transaction=True)
        for sha in self._shas:
            both.evalsha(sha, len(keys), *(f"{sha}:{key}" for key in keys), *arguments)
        return [struct.unpack(f"<{len(packed) // 8}q", packed) for (packed,) in both.execute()]

    def kept(self) -> list[dict[bytes, tuple[bytes, int]]]:
        """What is kept by key, and until when."""
        return [
            {
                name.removeprefix(f"{sha}:".encode()): (
                    self._client.get(name),
                    self._client.pexpiretime(name),
                )
                for name in self._client.scan_iter(f"{sha}:*")
            }
            for sha in self._shas
        ]


def step(rng: random.Random, shapes: list[Shape]) -> Question | tuple[str, Shape, int]:
    shape = rng.choice(shapes)
    most = shape.burst if isinstance(shape, Bucket) else shape.limit
    cost = rng.choice((1, 1, 1, 0, 2, 5, most // 2, most, most + 1, 2**24))
    kind = rng.choices(("ask", "book", "correct"), (20, 2, 2))[0]
    if kind == "correct":
        return "correct", shape, rng.choice((-3, -1, 1, 4))
    return Question((Ask("limit", "k", shape, cost),), horizon=30.0 if kind == "book" else 0.0)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_the_short_way_decides_and_keeps_what_the_long_way_does(
    server: Any, shapes: list[Shape]
) -> None:
    rng = random.Random(str(shapes))
    for history in range(40):
        server.client.flushall()
        ways = Ways(server.client, DECIDE.source, LONG_WAY.source)
        now, paid, moments = 1_764_000_000_000_000 + rng.randrange(60_000_000), 0, [0]
        for number in range(40):
            # Often to the very moment at which something is freed, or just before.
            pause = rng.choice((rng.choice(PAUSES), rng.randrange(200_000), *moments))
            now += max(0, pause - rng.choice((0, 0, 1)))
            item = step(rng, shapes)
            if not isinstance(item, Question):
                item = Report((Correction("k", item[1], item[2], paid or now),))
            else:
                paid = now
            short, long = ways.run(item, now)
            assert short == long, (history, number, item)
            kept, kept_long = ways.kept()
            assert kept == kept_long, (history, number, item)
            moments = [max(0, moment) for moment in short[2:]] or [0]


def test_what_is_plain_never_reaches_the_script_behind(server: Any) -> None:
    """Were it to fall through every time, it would decide the same and nobody would notice."""
    way = Ways(server.client, PLAIN.source + "\nerror('fell through')")
    now = 1_764_000_000_000_000
    for shapes in SHAPES:
        server.client.flushall()
        for hit in range(8):
            question = Question((Ask("limit", "k", shapes[0], 1),))
            assert way.run(question, now + hit * 7_000_000)[0][3] == 0
