"""Events as Prometheus metrics, with a registry of its own and labels that cannot grow.

Labels hold what the policy or the code wrote (route templates, reasons, limits, vendors), never what
a caller sent; still every label is held to 200 values, beyond which it reads "other".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from headworks.telemetry.events import Called, Changed, Decided, Event, Served, Shadowed, Waited

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST_VALUES: Final = 200
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class PrometheusSink:
    """Counts and times every event.

    headworks_decisions_total{layer,outcome,reason,rule,class}  what each layer let pass or refused
    headworks_shadow_decisions_total{layer,outcome,rule}        what rules in shadow mode would have
    headworks_requests_total{route,method,status}               answers sent
    headworks_request_seconds{route}                            from admission to the answer's end
    headworks_vendor_calls_total{vendor,model,ending,status}    attempts at vendors
    headworks_vendor_call_seconds{vendor,model}                 how long they took
    headworks_vendor_units_total{vendor,model}                  what they cost
    headworks_vendor_wait_seconds{vendor}                       time spent in the line
    headworks_changes_total{subject,state}                      what switched state
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._seen: dict[str, set[str]] = {}
        self._decisions = Counter(
            "headworks_decisions",
            "Requests and calls that a layer let pass or refused",
            ("layer", "outcome", "reason", "rule", "class"),
            registry=registry,
        )
        self._shadows = Counter(
            "headworks_shadow_decisions",
            "What rules that are only watched would have let pass or refused",
            ("layer", "outcome", "rule"),
            registry=registry,
        )
        self._requests = Counter(
            "headworks_requests", "Answers sent", ("route", "method", "status"), registry=registry
        )
        self._seconds = Histogram(
            "headworks_request_seconds",
            "Seconds from admission to the end of the answer",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._calls = Counter(
            "headworks_vendor_calls",
            "Attempts at vendors",
            ("vendor", "model", "ending", "status"),
            registry=registry,
        )
        self._call_seconds = Histogram(
            "headworks_vendor_call_seconds",
            "Seconds an attempt took",
            ("vendor", "model"),
            buckets=SECONDS,
            registry=registry,
        )
        self._units = Counter(
            "headworks_vendor_units", "What attempts cost", ("vendor", "model"), registry=registry
        )
        self._waits = Histogram(
            "headworks_vendor_wait_seconds",
            "Seconds a call stood in its vendor's line",
            ("vendor",),
            buckets=SECONDS,
            registry=registry,
        )
        self._changes = Counter(
            "headworks_changes", "Switches of state", ("subject", "state"), registry=registry
        )

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Show a number of the pod's own as `headworks_{name}`, read when metrics are."""
        Gauge(f"headworks_{name}", meaning, registry=self._registry).set_function(read)

    def render(self) -> tuple[str, bytes]:
        """Content type and text of everything counted so far."""
        return CONTENT_TYPE, generate_latest(self._registry)

    def record(self, event: Event) -> None:
        match event:
            case Decided():
                outcome = "admitted" if event.admitted else "refused"
                reason, rule = self._value("reason", event.reason), self._value("rule", event.rule)
                labels = (event.layer, outcome, reason, rule, event.criticality)
                self._decisions.labels(*labels).inc()
            case Shadowed():
                outcome = "admitted" if event.admitted else "refused"
                self._shadows.labels(event.layer, outcome, self._value("rule", event.rule)).inc()
            case Served():
                route = self._value("route", event.route or "unmatched")
                method = event.method if event.method in METHODS else "other"
                self._requests.labels(route, method, str(event.status)).inc()
                self._seconds.labels(route).observe(event.seconds)
            case Waited():
                self._waits.labels(event.vendor).observe(event.seconds)
            case Called():
                self._called(event)
            case Changed():
                subject, state = self._value("subject", event.subject), self._value("state", event.state)
                self._changes.labels(subject, state).inc()

    def _called(self, event: Called) -> None:
        model = self._value("model", event.model)
        status = self._value("status", str(event.status))
        self._calls.labels(event.vendor, model, event.ending, status).inc()
        self._call_seconds.labels(event.vendor, model).observe(event.seconds)
        if event.units > 0:
            self._units.labels(event.vendor, model).inc(event.units)

    def _value(self, label: str, value: str) -> str:
        seen = self._seen.setdefault(label, set())
        if value in seen:
            return value
        if len(seen) >= MOST_VALUES:
            return "other"
        seen.add(value)
        return value
