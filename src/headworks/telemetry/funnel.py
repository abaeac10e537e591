"""One funnel: layers emit, sinks listen. A sink that raises is silenced, never heard by a layer."""

from __future__ import annotations

import logging
from typing import Protocol

from headworks.telemetry.events import Event

log = logging.getLogger("headworks")


class Sink(Protocol):
    """Receives every event, on the event loop's thread. Must not block."""

    def record(self, event: Event) -> None: ...


class Telemetry:
    """Hands every event to every sink, in the order in which they were added."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks: list[Sink] = list(sinks)

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def emit(self, event: Event) -> None:
        for sink in self._sinks:
            try:
                sink.record(event)
            except Exception:
                log.exception("telemetry sink %s removed: it raised", type(sink).__name__)
                self._sinks = [other for other in self._sinks if other is not sink]
