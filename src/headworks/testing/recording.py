"""A sink that remembers, for tests."""

from __future__ import annotations

from typing import TypeVar

from headworks.telemetry import Event

E = TypeVar("E", bound=Event)


class RecordingSink:
    """Keeps every event in order; `of(Kind)` picks one kind."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]
