"""Events as metrics: right numbers, labels that cannot grow, registries apart."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from headworks.telemetry import Called, Changed, Decided, Event, Served, Telemetry, Waited
from headworks.telemetry.prometheus import MOST_VALUES, PrometheusSink
from headworks.testing.recording import RecordingSink


def samples(sink: PrometheusSink) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(sink.render()[1].decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(sink: PrometheusSink, name: str, **labels: str) -> float:
    return samples(sink)[name, frozenset((key.rstrip("_"), text) for key, text in labels.items())]


def test_every_kind_of_event_is_counted() -> None:
    """One of each, and its number is found under its labels."""
    sink = PrometheusSink()
    telemetry = Telemetry(sink)
    telemetry.emit(Decided("fairness", False, "quota-exceeded", "tier:free", "default"))
    telemetry.emit(Decided("fairness", True, "", "tier:free", "default", 3))
    telemetry.emit(Served("/chat", "POST", 200, 0.3))
    telemetry.emit(Waited("llm", 1.5))
    telemetry.emit(Called("llm", "gpt", "ok", 2.0, 200, 70))
    telemetry.emit(Changed("breaker:llm", "open"))
    refused = {"layer": "fairness", "outcome": "refused", "class_": "default"}
    assert (
        value(sink, "headworks_decisions_total", reason="quota-exceeded", rule="tier:free", **refused)
        == 1
    )
    assert value(sink, "headworks_near_limit_units_total", layer="fairness", rule="tier:free") == 3
    assert value(sink, "headworks_requests_total", route="/chat", method="POST", status="200") == 1
    assert value(sink, "headworks_request_seconds_sum", route="/chat") == 0.3
    assert value(sink, "headworks_vendor_wait_seconds_sum", vendor="llm") == 1.5
    assert value(sink, "headworks_vendor_units_total", vendor="llm", model="gpt") == 70
    calls = {"vendor": "llm", "model": "gpt", "ending": "ok", "status": "200"}
    assert value(sink, "headworks_vendor_calls_total", **calls) == 1
    assert value(sink, "headworks_changes_total", subject="breaker:llm", state="open") == 1


def test_labels_cannot_grow() -> None:
    """Beyond so many routes or models, and for methods nobody knows: "other"."""
    sink = PrometheusSink()
    for number in range(MOST_VALUES + 50):
        sink.record(Served(f"/route-{number}", "GET", 200, 0.1))
        sink.record(Called("llm", f"model-{number}", "ok", 0.1))
    sink.record(Served("/route-1", "BREW", 200, 0.1))
    found = {labels for name, labels in samples(sink) if name == "headworks_requests_total"}
    assert len(found) == MOST_VALUES + 2
    assert value(sink, "headworks_requests_total", route="other", method="GET", status="200") == 50
    assert value(sink, "headworks_requests_total", route="/route-1", method="other", status="200") == 1


def test_registries_are_apart_and_gauges_are_read_when_asked() -> None:
    """Two in one process share nothing; a gauge shows what is, not what was."""
    first, second = PrometheusSink(), PrometheusSink()
    current = [3.0]
    first.gauge("in_flight", "Requests in flight", lambda: current[0])
    first.record(Served("", "GET", 404, 0.1))
    current[0] = 7.0
    assert value(first, "headworks_in_flight") == 7.0
    assert value(first, "headworks_requests_total", route="unmatched", method="GET", status="404") == 1
    assert not any(name.startswith("headworks_in_flight") for name, _ in samples(second))


def test_a_sink_that_says_what_it_hears_hears_nothing_else() -> None:
    """Each kind goes where the sink says; one that raises is told nothing more, of any kind."""

    class Half:
        def __init__(self) -> None:
            self.heard: list[Event] = []
            self.hears = {Waited: self.heard.append, Changed: self.fail}

        def record(self, event: Event) -> None:
            raise AssertionError("asked which kind it is")

        def fail(self, event: Event) -> None:
            raise ValueError("theirs")

    half, whole = Half(), RecordingSink()
    telemetry = Telemetry(half, whole)
    told: list[Event] = [Waited("llm", 1.5), Served("/", "GET", 200, 0.1), Changed("ready", "away")]
    for event in (*told, *told):
        telemetry.emit(event)
    assert half.heard == told[:1]
    assert whole.events == told * 2
    late = RecordingSink()
    telemetry.add(late)
    telemetry.emit(told[0])
    assert late.events == told[:1]
    alone = Telemetry(half := Half())
    for event in (*told, *told):
        alone.emit(event)
    assert half.heard == told[:1], "also where nobody else hears"
