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
        self._ears: dict[type[Event], Ear] = {}

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)
        self._ears = {}

    def emit(self, event: Event) -> None:
        kind = type(event)
        if kind not in self._ears:
            self._find_ear(kind)
        try:
            self._ears[kind](event)
        except Exception:  # of the only sink that hears this kind
            self._silence(next(sink for sink in self._sinks if kind in _hears(sink, kind)))

    def _find_ear(self, kind: type[Event]) -> None:
        """The ear of the one sink that hears of this kind, or one that stands for several or none."""
        ears = [(sink, hears[kind]) for sink in self._sinks if kind in (hears := _hears(sink, kind))]

        def every(event: Event) -> None:
            for sink, hear in ears:
                try:
                    hear(event)
                except Exception:
                    self._silence(sink)

        self._ears[kind] = ears[0][1] if len(ears) == 1 else every

    def _silence(self, sink: Sink) -> None:
        log.exception("telemetry sink %s removed: it raised", type(sink).__name__)
        self._sinks = [other for other in self._sinks if other is not sink]
        self._ears = {}


def _hears(sink: Sink, kind: type[Event]) -> Mapping[type[Event], Ear]:
    found: Mapping[type[Event], Ear] = getattr(sink, "hears", {kind: sink.record})
    return found
