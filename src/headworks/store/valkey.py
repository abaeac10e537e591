"""The store that every process shares: Valkey ≥ 8 or Redis ≥ 7, asked by script, one trip a question.

Questions and reports that come together travel together, in one call of one script (`batch.py`).

Time is the server's. Keys are the caller's behind `hw1:`, the schema's version, and a letter: `b`
bucket, `w` window, `g` gate, `d` reports of demand (beside the gate's key, or without a gate beside
the first limit's), `l` leases, `c` processes counted. Hash tags in the caller's keys keep their meaning.

There is no timeout and no retry in here: whoever asks has a deadline (`LadderStore`), and cancelling
an ask is safe at any await.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from headworks.store import forms
from headworks.store.batch import SIZE, Argument, Batches, Link, run
from headworks.store.forms import PREFIX, SECOND
from headworks.store.protocol import (
    Ask,
    Census,
    Correction,
    Gate,
    Hears,
    Learns,
    Leaves,
    Question,
    Receiver,
    Report,
    Standing,
    StoreDown,
    StoreStatistics,
)
from headworks.store.scripts import Script, script
from headworks.store.slots import ask_in_parts, question_parts, report_parts
from headworks.store.topology import link_to
from headworks.verdict import Verdict

IN_FLIGHT = 2
"""Calls on their way to one server at once: it works on one while the next is written."""
IN_FLIGHT_BY_SLOT = 128
"""Calls on their way to a cluster at once, where every slot needs its own."""


class ValkeyStore:
    """State shared by every process that names the same server.

    where        a URL, as `topology.link_to` reads it; or a `Link`, which is closed with the store
    connections  at most so many at once, default 2; a `Link` has its own
    in_flight    calls on their way at once, default 2, to a cluster 128
    together     questions and reports in one call, at most, ≥ 1, default 64
    clock        microseconds for the scripts to go by, for tests; None: the server's own time
    """

    def __init__(
        self,
        where: str | Link,
        *,
        connections: int = 2,
        in_flight: int | None = None,
        together: int = SIZE,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._link: Link = link_to(where, connections=connections) if isinstance(where, str) else where
        self._by_slot = self._link.slot(PREFIX) is not None
        if in_flight is None:
            in_flight = IN_FLIGHT_BY_SLOT if self._by_slot else IN_FLIGHT
        decide = script("decide", "plain", "clock", "shapes", "gate")
        self._batches = Batches(self._link, decide, in_flight=in_flight, size=together, clock=clock)
        self._lease, self._census = script("lease", "clock"), script("census", "clock")
        self._forget = script("forget")
        self._clock = clock
        self._write_question = forms.Forms().question
        self._questions = self._reports = self._trips = self._failures = 0

    async def ask(self, question: Question) -> Verdict:
        self._questions += 1
        slot = None
        if self._by_slot:
            slots = self._slots(forms.keys_of(question))
            if len(slots) > 1:
                parts = question_parts(question, self._slot_of_limit, self._slot_of_gate)
                return await ask_in_parts(parts, self.ask, self.report)
            slot = next(iter(slots), None)
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        call = self._batches.add(verdict, question, self._write_question, forms.verdict, slot)
        try:
            return await verdict
        except asyncio.CancelledError:
            call.leave()
            raise

    def begin(self, question: Question, to: Receiver) -> Leaves | None:
        if self._by_slot:
            return None
        self._questions += 1
        return self._batches.add(to, question, self._write_question, forms.verdict)

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        """It has no deadline to give one who does not wait: `LadderStore` has."""
        return False

    async def report(self, report: Report) -> Standing:
        self._reports += 1
        if not report.corrections and report.gate is None:
            return Standing()
        slots = self._slots(forms.keys_of(report)) if self._by_slot else {None}
        if len(slots) > 1:
            for part in report_parts(report, self._slot_of_limit, self._slot_of_gate):
                heard = await self.report(part)
            return heard
        (slot,) = slots
        standing: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        call = self._batches.add(standing, report, forms.write_report, forms.standing, slot)
        try:
            return await standing
        except asyncio.CancelledError:
            call.leave()
            raise

    def _slots(self, keys: Sequence[str]) -> set[int | None]:
        return {self._link.slot(key) for key in keys}

    def _slot_of_limit(self, limit: Ask | Correction) -> int | None:
        return self._link.slot(forms.key_of(limit.shape, limit.key))

    def _slot_of_gate(self, gate: Gate) -> int | None:
        return self._link.slot(forms.gate_key(gate.key))

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        arguments: list[Argument] = [holder, max(limit, 0), round(ttl * SECOND)]
        return int(await self._run(self._lease, [f"{PREFIX}l:{key}"], arguments))

    async def release(self, key: str, *, holder: str) -> None:
        await self._run(self._lease, [f"{PREFIX}l:{key}"], [holder, -1, 0])

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        arguments: list[Argument] = [process, round(ttl * SECOND)]
        there, known = await self._run(self._census, [f"{PREFIX}c:{group}"], arguments)
        return Census(int(there), bool(known))

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            names = [f"{PREFIX}{kind}:{key}" for kind in "bwgdl"]
            if self._by_slot:  # without a tag they live on different slots
                for name in names:
                    await self._run(self._forget, [name], [])
            else:
                await self._run(self._forget, names, [])

    async def aclose(self) -> None:
        self._batches.close()
        await self._link.aclose()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            "valkey",
            questions=self._questions,
            reports=self._reports,
            trips=self._trips + self._batches.trips,
            failures=self._failures + self._batches.failures,
        )

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        now = 0 if self._clock is None else self._clock()
        self._trips += 1
        try:
            return await run(self._link, script, keys, [now, *arguments])
        except StoreDown:
            self._failures += 1
            raise
