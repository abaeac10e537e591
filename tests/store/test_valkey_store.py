"""What only the store over a server can get wrong: scripts, connections, sizes, expiry, failures."""

from __future__ import annotations

import asyncio
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Window
from headworks.store import scripts
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, StoreDown
from headworks.store.valkey import ValkeyStore

pytestmark = pytest.mark.real

GATE = Gate("{v}:gate", BreakerRules(0.5, 4, 10_000_000, 60_000_000, 2, 5_000_000))
HUNDRED = Window.of(100, 60)
SCRIPTS = pathlib.Path(scripts.__file__).parent


def one(key: str = "k", shape: Any = HUNDRED, cost: int = 1, **more: Any) -> Question:
    return Question((Ask("limit", key, shape, cost),), **more)


async def test_a_flushed_script_is_loaded_again_by_itself(server: Any) -> None:
    """A peer raises NoScriptError until it is restarted."""
    store = ValkeyStore(server.url)
    for _ in range(2):
        assert (await store.ask(one())).allowed
        await store.report(Report(gate=GATE, ending=Ending.OK))
        assert await store.lease("l", holder="a", limit=1, ttl=5)
        server.client.script_flush()
    assert (await store.ask(one())).limits[0].remaining == 97
    await store.aclose()


async def test_every_key_lives_for_a_limited_time(server: Any) -> None:
    """Peers leave keys behind for ever, or let them live for 0 seconds."""
    store = ValkeyStore(server.url)
    shapes = [HUNDRED, Window.of(10, 0.001), Bucket.of(100, 1, burst=20), Bucket.of(40_000_000, 60)]
    asks = tuple(Ask("limit", f"k{i}", shape) for i, shape in enumerate(shapes))
    paid = await store.ask(Question(asks, gate=GATE, pod="p", demand=3))
    corrections = tuple(Correction(a.key, a.shape, 1, paid.at_us) for a in asks)
    await store.report(Report(corrections, GATE, Ending.FAILED, epoch=paid.epoch, cool_down=1))
    await store.lease("l", holder="a", limit=1, ttl=0.001)
    await store.census("all", process="a", ttl=0.001)
    keys = list(server.client.scan_iter())
    assert {bytes(key[4:5]) for key in keys} == {b"b", b"w", b"g", b"d", b"l", b"c"}
    assert all(server.client.pttl(key) >= 1 for key in keys)
    await store.aclose()


async def test_neither_a_peek_nor_a_refusal_writes(server: Any) -> None:
    store = ValkeyStore(server.url)
    for shape in (HUNDRED, Bucket.of(10, 60)):
        await store.ask(one("k", shape, 0))
        await store.ask(one("k", shape, 101))
    assert list(server.client.scan_iter()) == []
    await store.aclose()


async def test_one_question_is_one_trip_however_many_limits_it_has(server: Any) -> None:
    store = ValkeyStore(server.url)
    asks = tuple(Ask("limit", f"k{i}", HUNDRED) for i in range(5))
    await store.ask(Question(asks, gate=GATE, pod="p", demand=1))  # loads the script
    before = store.statistics().trips
    await store.ask(Question(asks, gate=GATE, pod="p", demand=1))
    assert store.statistics().trips - before == 1
    await store.aclose()


async def test_far_more_calls_than_connections_all_get_their_answer(server: Any) -> None:
    """redis-py's own pool raises above a hundred."""
    store = ValkeyStore(server.url, connections=4)
    verdicts = await asyncio.gather(*(store.ask(one()) for _ in range(500)))
    assert sum(verdict.allowed for verdict in verdicts) == 100
    assert server.client.info("clients")["connected_clients"] <= 6
    await store.aclose()


RACER = """
import asyncio, sys
from headworks.limits.shapes import Window
from headworks.store.protocol import Ask, Question
from headworks.store.valkey import ValkeyStore

async def main():
    store = ValkeyStore(sys.argv[1], connections=4)
    asks = (store.ask(Question((Ask("l", "race", Window.of(100, 60)),))) for _ in range(50))
    print(sum(v.allowed for v in await asyncio.gather(*asks)))
    await store.aclose()

asyncio.run(main())
"""


def test_four_processes_race_for_a_hundred_and_exactly_a_hundred_pass(server: Any) -> None:
    command = [sys.executable, "-c", RACER, server.url]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sum(int(racer.communicate(timeout=60)[0]) for racer in racers) == 100


async def test_state_is_small(server: Any) -> None:
    """By MEMORY USAGE with a key of 32 bytes: ≤ 110 for a bucket, ≤ 300 for a window of 100/min."""
    store, clock = None, [1_764_000_000_000_000]
    store = ValkeyStore(server.url, clock=lambda: clock[0])
    worst = dict.fromkeys("bwx", 0)
    shapes = {"b": Bucket.of(59, 60, burst=7), "w": HUNDRED, "x": Window.of(10, 60)}
    for _ in range(300):
        clock[0] += 700_123
        for kind, shape in shapes.items():
            key = kind * 26
            await store.ask(one(key, shape))
            name = f"hw1:{'b' if kind == 'b' else 'w'}:{key}"
            worst[kind] = max(worst[kind], server.client.memory_usage(name))
    assert worst["b"] <= 110
    assert worst["w"] <= 300
    assert worst["x"] <= 300
    await store.aclose()


async def test_production_goes_by_the_servers_clock(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without a clock passes 0; and nothing but tests ever passes one."""
    store = ValkeyStore(server.url)
    passed: list[Any] = []
    post = store._link.post

    def spy(script: Any, keys: Any, arguments: Any, to: Any) -> Any:
        passed.append(arguments[0])
        return post(script, keys, arguments, to)

    monkeypatch.setattr(store._link, "post", spy)
    await store.ask(one())
    await store.report(Report(gate=GATE, ending=Ending.OK))
    await store.lease("l", holder="a", limit=1, ttl=1)
    await store.release("l", holder="a")
    assert passed == [0, 0, 0, 0]
    await store.aclose()
    source = pathlib.Path(scripts.__file__).parents[2]
    for file in source.rglob("*.py"):
        assert not re.search(r"ValkeyStore\([^)]*clock=", file.read_text("utf-8")), file


async def test_a_cancelled_ask_leaves_no_reply_behind_for_the_next(own_server: Any) -> None:
    store = ValkeyStore(own_server.url, connections=1)
    await store.ask(one())
    own_server.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await store.ask(one("other", HUNDRED, 77))
    own_server.thaw()
    verdict = await store.ask(one())
    assert verdict.limits[0].remaining == 98
    await store.aclose()


async def test_a_server_that_is_not_there_is_a_store_down() -> None:
    store = ValkeyStore("valkey://127.0.0.1:1")
    with pytest.raises(StoreDown, match="ConnectionError"):
        await store.ask(one())
    assert store.statistics().failures == 1
    await store.aclose()


async def test_a_foreign_value_under_a_key_is_a_store_down(server: Any) -> None:
    store = ValkeyStore(server.url)
    server.client.lpush("hw1:w:k", "x")
    with pytest.raises(StoreDown):
        await store.ask(one())
    await store.aclose()


async def test_switching_the_kind_of_limit_under_one_key_is_no_error(server: Any) -> None:
    """A peer raises WRONGTYPE until the old key expires."""
    store = ValkeyStore(server.url)
    for shape in (HUNDRED, Bucket.of(10, 60), HUNDRED):
        assert (await store.ask(one("k", shape))).allowed
    await store.aclose()


async def test_a_url_may_name_user_password_and_database(server: Any) -> None:
    rules = {"enabled": True, "passwords": ["+s3cr&t"], "keys": ["hw1:*"], "commands": ["+@all"]}
    server.client.acl_setuser("works", **rules)
    host = server.url.partition("://")[2]
    store = ValkeyStore(f"valkey://works:s3cr%26t@{host}/3")
    assert (await store.ask(one())).allowed
    await store.aclose()
    stranger = ValkeyStore(f"redis://works:wrong@{host}")
    with pytest.raises(StoreDown) as failure:
        await stranger.ask(one())
    assert "wrong" not in str(failure.value)
    await stranger.aclose()
    server.client.acl_deluser("works")


async def test_a_restarted_server_is_used_again(own_server: Any) -> None:
    store = ValkeyStore(own_server.url)
    before = await store.ask(one(gate=GATE))
    own_server.kill()
    with pytest.raises(StoreDown):
        await store.ask(one())
    own_server.start()
    verdict = await store.ask(one(gate=GATE))
    assert verdict.allowed
    assert verdict.epoch > before.epoch, "epochs rise even when the server has forgotten all"
    await store.aclose()


@pytest.mark.parametrize("name", ["decide", "lease", "forget"])
def test_every_script_introduces_itself(name: str) -> None:
    head = (SCRIPTS / f"{name}.lua").read_text("utf-8").split("\n\n")[0]
    for heading in ("KEYS", "ARGV", "Returns", "Clock", "Cost"):
        assert re.search(rf"^-- {heading}\b", head, re.M), heading


def test_numbers_leave_the_scripts_only_as_whole_ones() -> None:
    """Lua prints sixteen digits with fourteen."""
    for file in SCRIPTS.glob("*.lua"):
        code = re.sub(r"--.*", "", file.read_text("utf-8"))
        assert "tostring" not in code
        assert not set(re.findall(r"%[^d%s]", "".join(re.findall(r"format\('([^']*)'", code)))), file
