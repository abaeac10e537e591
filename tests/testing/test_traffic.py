"""Delays and faults are read as people write them; what cannot be meant is named."""

from __future__ import annotations

import random
import statistics

import pytest

from headworks.testing.fake_vendor import Delay, Faults, limit, model_limits


@pytest.mark.parametrize("text", ["const:1s", "uniform:0.2s:2s", "lognormal:0.8s:0.5"])
def test_a_delay_is_written_as_it_is_read(text: str) -> None:
    assert str(Delay.parse(text)) == text
    assert Delay.parse(str(Delay.parse(text))) == Delay.parse(text)


def test_samples_follow_their_distribution() -> None:
    rng = random.Random(1)

    def drawn(text: str) -> list[float]:
        return [Delay.parse(text).sample(rng) for _ in range(4000)]

    assert set(drawn("const:1s")) == {1.0}
    jitter = drawn("0:250ms")
    assert 0 <= min(jitter) < 0.01
    assert 0.24 < max(jitter) <= 0.25
    assert statistics.median(drawn("lognormal:0.8s:0.5")) == pytest.approx(0.8, rel=0.1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1s",
        "const",
        "const:x",
        "const:-1s",
        "uniform:2s:1s",
        "lognormal:0s:1",
        "lognormal:1s:9",
        "a:b",
    ],
)
def test_a_delay_that_cannot_be_meant_shows_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a delay; write const:1s") as caught:
        Delay.parse(text)
    assert f"'{text}'" in str(caught.value)


def test_a_window_spreads_the_same_rate() -> None:
    """As vendors do that enforce 600/min as 100 in 10 s."""
    ten = limit("600/min", window=10)
    assert (ten.amount, ten.window_us) == (100, 10_000_000)
    with pytest.raises(ValueError, match="less than one in 1 s"):
        limit("10/min", window=1)


def test_units_and_bursts_are_read_from_the_rate() -> None:
    assert limit("40000 tokens/min").unit == "tokens"
    assert limit("40000/min", unit="tokens").unit == "tokens"
    assert limit("10/s burst 3", burst=5).burst == 3
    assert limit("10/s", burst=5).burst == 5


def test_a_models_limits_are_read_together() -> None:
    requests, tokens = model_limits("gpt-large=60/min,40000 tokens/min", mechanism="sliding")
    assert (requests.name, requests.amount) == ("gpt-large requests", 60)
    assert (tokens.name, tokens.amount, tokens.mechanism) == ("gpt-large tokens", 40_000, "sliding")
    with pytest.raises(ValueError, match="gpt-large=60/min"):
        model_limits("60/min")


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"latency": "soon"}, "latency: 'soon'"),
        ({"latency": 3}, "latency: 3 must be text"),
        ({"fail_ratio": 1.5}, "fail_ratio: 1.5 must be a number from 0 to 1"),
        ({"fail_ratio": True}, "fail_ratio: True"),
        ({"fail_status": 200}, "fail_status: 200 must be a status from 400 to 599"),
        ({"hang": "yes"}, "hang: 'yes' must be true or false"),
        ({"disconnect": -1}, "disconnect: -1 must be null or a count"),
        ({"error_after": True}, "error_after: True must be null or a count"),
        ({"arrival_jitter": "5s:1s"}, "arrival_jitter"),
        ({"colour": "red"}, "colour: unknown; there are latency"),
    ],
)
def test_a_fault_that_cannot_be_meant_is_named(wanted: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Faults().changed(wanted)


def test_changing_one_fault_leaves_the_others() -> None:
    faults = Faults().changed({"hang": True, "latency": "const:1s"}).changed({"fail_ratio": 1})
    assert faults.as_json() == {
        "latency": "const:1s",
        "arrival_jitter": "const:0s",
        "fail_ratio": 1.0,
        "fail_status": 500,
        "hang": True,
        "disconnect": None,
        "error_after": None,
    }
