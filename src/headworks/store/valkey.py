"""The store that every process shares: Valkey ≥ 8 or Redis ≥ 7, asked by script, one trip a question.

Time is the server's. Keys are the caller's behind `hw1:`, the schema's version, and a letter: `b`
bucket, `w` window, `g` gate, `d` reports of demand (beside the gate's key, or without a gate beside
the first limit's), `l` leases. Hash tags in the caller's keys keep their meaning.

There is no timeout and no retry in here: whoever asks has a deadline (`LadderStore`), and cancelling
an ask is safe at any await. The connection it was using is closed then, since its reply is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import NEVER_US, Bucket, Shape
from headworks.store.protocol import Question, Report, Standing, StoreDown, StoreStatistics
from headworks.store.scripts import Script, script
from headworks.verdict import NEVER, Blocked, LimitState, Verdict

PREFIX = "hw1:"
SECOND = 1_000_000

_BLOCKED = {1: Blocked.OPEN, 2: Blocked.COOL_DOWN}
_PER_GATE, _PER_LIMIT = 8, 4
_ENDINGS = {None: 0, Ending.OK: 1, Ending.FAILED: 2, Ending.OVERLOADED: 2, Ending.IGNORED: 3}

Argument = str | int | float


def _client_url(url: str) -> str:
    """The URL as redis-py knows it: `valkey://` and `valkeys://` are `redis://` and `rediss://`."""
    scheme, colon, rest = url.partition(":")
    return {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme) + colon + rest


def _numbers(shape: Shape) -> tuple[Argument, ...]:
    if isinstance(shape, Bucket):
        return shape.pace_us, shape.pace_per, shape.burst
    return shape.limit, shape.period_us, shape.grain_us


def _rules(rules: BreakerRules) -> tuple[Argument, ...]:
    ratio = repr(rules.failure_ratio)
    return ratio, rules.min_calls, rules.window_us, rules.open_us, rules.probes, rules.probe_us


def _key(shape: Shape, key: str) -> str:
    return f"{PREFIX}b:{key}" if isinstance(shape, Bucket) else f"{PREFIX}w:{key}"


class ValkeyStore:
    """State shared by every process that names the same server.

    url          `valkey://`, `redis://` (`valkeys://`, `rediss://` with TLS) or `unix://`, with user,
                 password and database as redis-py reads them
    connections  at most so many at once, default 32; a call beyond waits for one
    clock        microseconds for the scripts to go by, for tests; None: the server's own time
    """

    def __init__(
        self, url: str, *, connections: int = 32, clock: Callable[[], int] | None = None
    ) -> None:
        pool = ConnectionPool.from_url(
            _client_url(url),
            max_connections=connections,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        self._client = Redis.from_pool(pool)
        self._free = asyncio.Semaphore(connections)
        self._clock = clock
        self._ask = script("ask", "shapes", "gate")
        self._report = script("report", "shapes", "gate")
        self._lease = script("lease", "shapes")
        self._questions = self._reports = self._trips = self._failures = 0

    async def ask(self, question: Question) -> Verdict:
        self._questions += 1
        keys, arguments = _written(question)
        (answer,) = await self._run(self._ask, keys, [1, *arguments])
        return _read(question, [int(part) for part in answer.split()])

    async def report(self, report: Report) -> Standing:
        self._reports += 1
        keys = [_key(c.shape, c.key) for c in report.corrections]
        arguments: list[Argument] = [len(report.corrections)]
        for c in report.corrections:
            kind = "b" if isinstance(c.shape, Bucket) else "w"
            arguments += [kind, *_numbers(c.shape), c.units, c.at_us]
        if report.gate is not None:
            keys.append(f"{PREFIX}g:{report.gate.key}")
            ending = _ENDINGS[report.ending]
            if report.slow and ending == _ENDINGS[Ending.OK]:
                ending = _ENDINGS[Ending.FAILED]
            cool_down = round(report.cool_down * SECOND)
            arguments += [*_rules(report.gate.rules), ending, report.epoch, report.probe, cool_down]
        if not keys:
            return Standing()
        epoch, shut_for = (await self._run(self._report, keys, arguments)).split()
        return Standing(int(epoch), int(shut_for) / SECOND)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> bool:
        key = f"{PREFIX}l:{key}"
        return bool(await self._run(self._lease, [key], [holder, max(limit, 0), round(ttl * SECOND)]))

    async def release(self, key: str, *, holder: str) -> None:
        await self._run(self._lease, [f"{PREFIX}l:{key}"], [holder, -1, 0])

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:  # one by one: in a cluster they may live on different nodes
            await self._trip(self._client.delete, *(f"{PREFIX}{kind}:{key}" for kind in "bwgdl"))

    async def aclose(self) -> None:
        await self._client.aclose()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            "valkey",
            questions=self._questions,
            reports=self._reports,
            trips=self._trips,
            failures=self._failures,
        )

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        now = 0 if self._clock is None else self._clock()
        try:
            return await self._trip(self._client.evalsha, script.sha, len(keys), *keys, now, *arguments)
        except NoScriptError:  # a new or flushed server: the source loads it for everyone
            return await self._trip(self._client.eval, script.source, len(keys), *keys, now, *arguments)

    async def _trip(self, command: Callable[..., Any], *arguments: Argument) -> Any:
        async with self._free:
            self._trips += 1
            try:
                return await command(*arguments)
            except NoScriptError:
                raise
            except (RedisError, OSError) as error:
                self._failures += 1
                raise StoreDown(f"{type(error).__name__}: {error}") from error


def _written(question: Question) -> tuple[list[str], list[Argument]]:
    """A question's part of the keys and arguments of ask.lua."""
    gate = question.gate
    demand = round(question.demand * 1000) if gate or question.asks else 0
    keys: list[str] = []
    horizon = round(question.horizon * SECOND)
    arguments: list[Argument] = [
        horizon,
        len(question.asks),
        demand,
        question.pod,
        int(gate is not None),
    ]
    if gate is not None:
        keys.append(f"{PREFIX}g:{gate.key}")
        arguments += _rules(gate.rules)
    if demand > 0:
        keys.append(f"{PREFIX}d:{gate.key if gate is not None else question.asks[0].key}")
    for ask in question.asks:
        keys.append(_key(ask.shape, ask.key))
        kind = "b" if isinstance(ask.shape, Bucket) else "w"
        arguments += [kind, ask.cost, *_numbers(ask.shape)]
    return keys, arguments


def _read(question: Question, parts: list[int]) -> Verdict:
    """The verdict in one answer of ask.lua."""
    allowed, now, at, again, epoch, blocked, probe, demand = parts[:_PER_GATE]
    limits = tuple(
        LimitState(
            name=ask.name,
            limit=ask.shape.limit,
            window=ask.shape.period_us / SECOND,
            allowed=parts[i] == 1,
            remaining=parts[i + 1],
            reset=(parts[i + 2] - now) / SECOND,
            retry_after=_seconds(parts[i + 3]),
        )
        for ask, i in zip(question.asks, range(_PER_GATE, len(parts), _PER_LIMIT), strict=False)
    )
    return Verdict(
        allowed=allowed == 1,
        retry_after=_seconds(again),
        limits=limits,
        wait=(at - now) / SECOND if at else 0.0,
        at_us=at,
        epoch=epoch,
        probe=probe,
        blocked=_BLOCKED.get(blocked),
        demand=demand / 1000,
    )


def _seconds(us: int) -> float:
    return NEVER if us == NEVER_US else us / SECOND
