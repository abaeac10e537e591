"""A fake server's side of a request, and a gate around an application that holds its requests."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

from headworks.admission import AdmissionGate, AdmissionStatistics, Answers, Pressure, Slots
from headworks.cleanup import Reaper
from headworks.current import Criticality
from headworks.identity import Callers, Identifier, Rank
from headworks.telemetry import Telemetry
from headworks.testing.recording import RecordingSink

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]

TIERS = {name: Rank(Criticality.of(name)) for name in ("background", "sheddable", "default", "critical")}
START = {"type": "http.response.start", "status": 200, "headers": []}


class Client:
    """A fake server's side of one request: what the application was given and what it sent."""

    def __init__(self, gate: AdmissionGate, tier: str = "default", **scope: Any) -> None:
        self.sent: list[Message] = []
        self.received = 0
        self.reads = asyncio.Event()
        self.reads.set()
        headers = [(b"x-key", tier.encode())]
        self.scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "client": None}
        self.scope |= scope
        self._gate = gate

    async def run(self) -> Client:
        await self._gate(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        self.received += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def problem(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(b"".join(m.get("body", b"") for m in self.sent))
        return body

    def header(self, name: bytes) -> str | None:
        return next((v.decode() for n, v in self.sent[0]["headers"] if n == name), None)


class Pod:
    """A gate around an application that holds its requests until told otherwise."""

    def __init__(
        self,
        app: App | None = None,
        *,
        limit: int = 10,
        sla: float = 60.0,
        patience: float = 0.0,
        websockets: int | None = None,
        pressure: Pressure | None = None,
        **gate: Any,
    ) -> None:
        self.sink = RecordingSink()
        self.slots = Slots(
            limit, rng=random.Random(1), patience=patience, websockets=websockets, pressure=pressure
        )
        self.answers = Answers(15.0)
        self.go = asyncio.Event()
        self.reaper = Reaper()
        self.gate = AdmissionGate(
            app or self._hold,
            slots=self.slots,
            answers=self.answers,
            identifier=Identifier(
                Callers(
                    header="x-key",
                    tiers=TIERS,
                    default_tier="default",
                    keys={name: name for name in TIERS},
                )
            ),
            sla=sla,
            deadline_header="X-Request-Timeout",
            telemetry=Telemetry(self.sink),
            reaper=self.reaper,
            **gate,
        )

    async def _hold(self, scope: Any, receive: Any, send: Any) -> None:
        await self.go.wait()
        await answer(send)

    async def occupy(self, count: int, tier: str = "default") -> list[asyncio.Task[Client]]:
        tasks = [asyncio.create_task(Client(self.gate, tier).run()) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks

    def now(self) -> AdmissionStatistics:
        return self.slots.statistics()


async def answer(send: Any, *parts: bytes) -> None:
    await send(dict(START))
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
