"""A small service with limits of every kind, protected, and requests to it in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from fastapi import FastAPI

from headworks import Headworks
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question
from headworks.testing.recording import RecordingSink
from headworks.verdict import Verdict

POLICY: dict[str, Any] = {
    "schema": 1,
    "service": {"name": "svc", "sla": "60s", "trust": ["10.0.0.0/8"]},
    "admission": {"max_in_flight": 10},
    "fairness": {
        "default_tier": "free",
        "tiers": {
            "free": {"rate": "10/min", "class": "sheddable"},
            "pro": {"rate": "100/min"},
            "bursty": {"rate": "60/min burst 3"},
        },
        "keys": {"free-1": "free", "free-2": "free", "pro-1": "pro", "pro-2": "pro", "b-1": "bursty"},
        "endpoints": {
            "/chat": "3/min",
            "/a/items/{item_id:int}": "2/min",
            "/b/items/{item_id:int}": "2/min",
            "/together": {"rate": "3/min", "scope": "all"},
        },
    },
}


INSIDE = "10.0.0.1"
"""An address of those who may see metrics and reasons."""


class CountingStore(MemoryStore):
    """A memory that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[Question] = []

    async def ask(self, question: Question) -> Verdict:
        self.questions.append(question)
        return await super().ask(question)


class Service:
    """A protected application and its works; `client` talks to it from an address."""

    def __init__(self, app: Any = None, policy: dict[str, Any] | None = None, **options: Any) -> None:
        self.sink, self.store = RecordingSink(), CountingStore()
        chosen = parse(POLICY | (policy or {}), "test", {})
        self.works = Headworks(chosen, store=self.store, sinks=[self.sink], pod="pod-1", **options)
        self.app = self.works.protect(app if app is not None else FastAPI())

    def client(self, address: str = "203.0.113.7", key: str = "") -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.app, client=(address, 1))
        headers = {"X-API-Key": key} if key else {}
        return httpx2.AsyncClient(transport=transport, base_url="http://svc", headers=headers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.app.router.lifespan_context(self.app):
            yield


def chat_service(**options: Any) -> Service:
    service = Service(**options)

    @service.app.get("/hello")
    async def hello() -> str:
        return "hello"

    @service.app.post("/chat")
    async def chat(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    return service
