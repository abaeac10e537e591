"""Events as Prometheus metrics, with a registry of its own and labels that cannot grow.

Labels hold what the policy or the code wrote (route templates, reasons, limits, vendors), never what
a caller sent; still every label is held to 200 values, beyond which it reads "other".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from headworks.telemetry.counting import Count, Counts, Spread, Times
from headworks.telemetry.events import (
    Called,
    Changed,
    Decided,
    Event,
    Queued,
    Rejected,
    Served,
    Shadowed,
    Told,
    Waited,
)
from headworks.telemetry.funnel import Ear

K = TypeVar("K")
V = TypeVar("V")

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST_VALUES: Final = 200
REMEMBERED: Final = 10_000
"""Combinations whose counts are remembered, so that what happens often is looked up once."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class PrometheusSink:
    """Counts and times every event.

    headworks_decisions_total{layer,outcome,reason,rule,class}  what each layer let pass or refused
    headworks_near_limit_units_total{layer,rule}                what passed beyond 4/5 of a limit
    headworks_shadow_decisions_total{layer,outcome,rule}        what rules in shadow mode would have
    headworks_requests_total{route,method,status}               answers sent; "unmatched": no route
    headworks_request_seconds{route}                            from admission to the answer's end
    headworks_admission_wait_seconds{ending}                    time spent in the pod's own line
    headworks_vendor_calls_total{vendor,model,ending,status}    attempts at vendors
    headworks_vendor_call_seconds{vendor,model}                 how long they took
    headworks_vendor_units_total{vendor,model}                  tokens they cost
    headworks_vendor_wait_seconds{vendor}                       time spent in the line
    headworks_changes_total{subject,state}                      what switched state
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seen: dict[str, set[str]] = {}
        self._decided_before: dict[Decided, Count] = {}
        self._served_before: dict[tuple[str, str, int], tuple[Count, Spread]] = {}
        self._decisions = self._counts(
            "decisions",
            "Requests and calls that a layer let pass or refused",
            *("layer", "outcome", "reason", "rule", "class"),
        )
        self._near = self._counts(
            "near_limit_units", "Units that passed beyond four fifths of a limit", "layer", "rule"
        )
        self._shadows = self._counts(
            "shadow_decisions",
            "What rules that are only watched would have let pass or refused",
            *("layer", "outcome", "rule"),
        )
        self._requests = self._counts("requests", "Answers sent", "route", "method", "status")
        self._seconds = self._times(
            "request_seconds", "Seconds from admission to the end of the answer", "route"
        )
        self._queue_times = self._times(
            "admission_wait_seconds", "Seconds a request stood in the pod's line", "ending"
        )
        self._calls = self._counts(
            "vendor_calls", "Attempts at vendors", "vendor", "model", "ending", "status"
        )
        self._call_seconds = self._times(
            "vendor_call_seconds", "Seconds an attempt took", "vendor", "model"
        )
        self._units = self._counts("vendor_units", "Tokens that attempts cost", "vendor", "model")
        self._waits = self._times(
            "vendor_wait_seconds", "Seconds a call stood in its vendor's line", "vendor"
        )
        self._rejections = self._counts(
            "vendor_rejections", "429s and 529s of vendors", "vendor", "kind"
        )
        self._remaining = self._told(
            "vendor_told_remaining", "Units left, as the vendor's headers said last"
        )
        self._reset = self._told(
            "vendor_told_reset_seconds", "Seconds until all are back, as the vendor's headers said last"
        )
        self._changes = self._counts("changes", "Switches of state", "subject", "state")
        self.hears: Mapping[type[Event], Ear] = {
            Decided: self._decided,
            Shadowed: self._shadowed,
            Served: self._served,
            Queued: self._queued,
            Waited: self._waited,
            Called: self._called,
            Rejected: self._rejected,
            Told: self._was_told,
            Changed: self._changed,
        }

    def _counts(self, name: str, meaning: str, *labels: str) -> Counts:
        counts = Counts(name, meaning, *labels)
        self._registry.register(counts)
        return counts

    def _times(self, name: str, meaning: str, *labels: str) -> Times:
        times = Times(name, meaning, *labels)
        self._registry.register(times)
        return times

    def _told(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"headworks_{name}", meaning, ("vendor", "unit"), registry=self._registry)

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Show a number of the pod's own as `headworks_{name}`, read when metrics are."""
        Gauge(f"headworks_{name}", meaning, registry=self._registry).set_function(read)

    def render(self) -> tuple[str, bytes]:
        """Content type and text of everything counted so far."""
        return CONTENT_TYPE, generate_latest(self._registry)

    def record(self, event: Event) -> None:
        self.hears[type(event)](event)

    def _decided(self, event: Decided) -> None:
        count = self._decided_before.get(event)
        if count is None:
            if event.near:
                self._near.add((event.layer, self._value("rule", event.rule)), event.near)
                self._decided(event._replace(near=0))
                return
            outcome = "admitted" if event.admitted else "refused"
            reason, rule = self._value("reason", event.reason), self._value("rule", event.rule)
            count = self._decisions.of((event.layer, outcome, reason, rule, event.criticality))
            _remember(self._decided_before, event, count)
        count.so_far += 1

    def _served(self, event: Served) -> None:
        key, seconds = event[:3], event[3]
        found = self._served_before.get(key)
        if found is None:
            route, method, status = key
            route = self._value("route", route or "unmatched")
            method = method if method in METHODS else "other"
            found = self._requests.of((route, method, str(status))), self._seconds.of((route,))
            _remember(self._served_before, key, found)
        count, spread = found
        count.so_far += 1
        spread.add(seconds)

    def _shadowed(self, event: Shadowed) -> None:
        outcome = "admitted" if event.admitted else "refused"
        self._shadows.add((event.layer, outcome, self._value("rule", event.rule)))

    def _queued(self, event: Queued) -> None:
        self._queue_times.add((event.ending,), event.seconds)

    def _waited(self, event: Waited) -> None:
        self._waits.add((event.vendor,), event.seconds)

    def _rejected(self, event: Rejected) -> None:
        self._rejections.add((event.vendor, event.kind))

    def _was_told(self, event: Told) -> None:
        self._remaining.labels(event.vendor, event.unit).set(event.remaining)
        if event.reset is not None:
            self._reset.labels(event.vendor, event.unit).set(event.reset)

    def _changed(self, event: Changed) -> None:
        subject, state = self._value("subject", event.subject), self._value("state", event.state)
        self._changes.add((subject, state))

    def _called(self, event: Called) -> None:
        model = self._value("model", event.model)
        status = self._value("status", str(event.status))
        self._calls.add((event.vendor, model, event.ending, status))
        self._call_seconds.add((event.vendor, model), event.seconds)
        if event.units > 0:
            self._units.add((event.vendor, model), event.units)

    def _value(self, label: str, value: str) -> str:
        seen = self._seen.setdefault(label, set())
        if value in seen:
            return value
        if len(seen) >= MOST_VALUES:
            return "other"
        seen.add(value)
        return value


def _remember(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= REMEMBERED:  # methods are the callers' own
        known.clear()
    known[key] = value
