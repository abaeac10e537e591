"""One funnel: layers emit, sinks listen. A sink that raises is silenced, never heard by a layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from headworks.telemetry.events import Event

Ear = Callable[[Any], None]
"""What one kind of event is handed to."""

log = logging.getLogger("headworks")


class Sink(Protocol):
    """Receives events, on the event loop's thread. Must not block.

    A sink may have `hears`, what each kind of event is handed to instead of `record`: it is spared the
    question which kind it has before it, and every event of the kinds that it leaves out.
    """

    def record(self, event: Event) -> None: ...


class Telemetry:
    """Hands every event to the sinks that hear its kind, in the order in which they were added."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks: list[Sink] = list(sinks)
        self._heard_by: dict[type[Event], tuple[tuple[Sink, Ear], ...]] = {}

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)
        self._heard_by = {}

    def emit(self, event: Event) -> None:
        for sink, hear in self._heard_by.get(type(event)) or self._find_ears(type(event)):
            try:
                hear(event)
            except Exception:
                log.exception("telemetry sink %s removed: it raised", type(sink).__name__)
                self._sinks = [other for other in self._sinks if other is not sink]
                self._heard_by = {}

    def _find_ears(self, kind: type[Event]) -> tuple[tuple[Sink, Ear], ...]:
        ears = []
        for sink in self._sinks:
            hears: Mapping[type[Event], Ear] = getattr(sink, "hears", {kind: sink.record})
            if kind in hears:
                ears.append((sink, hears[kind]))
        self._heard_by[kind] = tuple(ears)
        return tuple(ears)
