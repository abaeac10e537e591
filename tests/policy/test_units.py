"""What people write, and what it means."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.errors import PolicyError
from headworks.policy.units import (
    FromEnvironment,
    Rate,
    duration_text,
    parse_duration,
    parse_network,
    parse_rate,
    parse_secret,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60.0),
        ("50ms", 0.05),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("1 d", 86400.0),
        (3, 3.0),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_read_as_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "junk", ["", "5", "5 parsecs", "-1s", "1e3s", "５s", True, None, float("nan"), -1, []]
)
def test_what_is_no_duration_is_refused_with_the_value_and_an_example(junk: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; write") as error:
        parse_duration(junk)
    assert repr(junk)[:20] in str(error.value)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/min", Rate(10, 60)),
        ("2000/s", Rate(2000, 1)),
        ("200000 tokens/min", Rate(200_000, 60, "tokens")),
        ("200_000 tokens / minute", Rate(200_000, 60, "tokens")),
        ("5 output tokens/h", Rate(5, 3600, "output_tokens")),
        ("5 input_tokens/d", Rate(5, 86400, "input_tokens")),
        ("1 request per 500ms", Rate(1, 0.5)),
        ("10 per 30s", Rate(10, 30)),
        ("10/30s burst 3", Rate(10, 30, burst=3)),
    ],
)
def test_a_rate_is_read_as_people_say_it(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10", "write an amount and a period"),
        ("10/fortnight", "'fortnight' is no period"),
        ("10 bananas/min", "counts 'bananas'"),
        ("0/min", "the amount of a rate is 1 to"),
        ("10/min burst 11", "a burst is 1 to the rate's own amount, 10"),
        ("10/1ms", "the period of a rate is 100ms to 31d"),
        (10, "write an amount and a period"),
    ],
)
def test_what_is_no_rate_is_refused_with_what_is_wrong(text: object, why: str) -> None:
    with pytest.raises(ValueError, match="10") as error:
        parse_rate(text)
    assert why in str(error.value)


@given(
    amount=st.integers(1, 10**9),
    period=st.sampled_from([0.25, 1.0, 1.5, 30.0, 60.0, 90.0, 3600.0, 86400.0]),
    unit=st.sampled_from(["requests", "tokens", "input_tokens", "output_tokens"]),
    burst=st.none() | st.just(1),
)
def test_a_rate_written_down_is_read_back(
    amount: int, period: float, unit: str, burst: int | None
) -> None:
    rate = Rate(amount, period, unit, burst)  # type: ignore[arg-type]  # sampled from the allowed words
    assert parse_rate(str(rate)) == rate


@given(st.integers(1, 10**10))
def test_a_duration_written_down_is_read_back_to_the_microsecond(micros: int) -> None:
    seconds = micros / 1_000_000
    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds, abs=1.1e-6)


@given(st.integers(1, 2**40))
def test_a_size_written_down_is_read_back(size: int) -> None:
    assert parse_size(size_text(size)) == size


def test_sizes_tell_powers_of_two_from_powers_of_ten() -> None:
    assert (parse_size("1MiB"), parse_size("1MB"), parse_size("64KiB"), parse_size(7)) == (
        1_048_576,
        1_000_000,
        65_536,
        7,
    )


@pytest.mark.parametrize("junk", ["1 bit", "-1MiB", 1.5, True, None])
def test_what_is_no_size_is_refused(junk: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write"):
        parse_size(junk)


def test_a_network_with_host_bits_is_refused_with_the_network_it_means() -> None:
    assert parse_network("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    with pytest.raises(ValueError, match=r'host bits set; the network is "10\.0\.0\.0/8"'):
        parse_network("10.1.2.3/8")
    with pytest.raises(ValueError, match="is not a network; write"):
        parse_network("everyone")


def test_a_secret_is_never_shown_and_revealed_only_on_request(tmp_path: Path) -> None:
    plain = parse_secret("valkey://valkey:6379")
    by_env = parse_secret({"env": "STORE"}, {"STORE": "valkey://:hunter2@v"})
    file = tmp_path / "store"
    file.write_text("valkey://:hunter2@v\n")
    by_file = parse_secret({"file": str(file)})
    assert [secret.reveal() for secret in (plain, by_env, by_file)] == [
        "valkey://valkey:6379",
        "valkey://:hunter2@v",
        "valkey://:hunter2@v",
    ]
    assert "valkey" not in repr(plain)
    assert "hunter2" not in f"{plain!r} {by_env!r} {by_env} {by_file!r}"


def test_a_password_belongs_into_a_reference_or_the_environment() -> None:
    with pytest.raises(ValueError, match=r"write \{ env = ") as error:
        parse_secret("valkey://:hunter2@v")
    assert "hunter2" not in str(error.value)
    assert parse_secret(FromEnvironment("valkey://:hunter2@v")).reveal() == "valkey://:hunter2@v"


def test_a_reference_that_leads_nowhere_says_which() -> None:
    with pytest.raises(PolicyError, match=r"store\.url: the environment variable STORE is not set"):
        parse_secret({"env": "STORE"}, {}, path="store.url").reveal()
    with pytest.raises(PolicyError, match="the file /nowhere/at/all cannot be read"):
        parse_secret({"file": "/nowhere/at/all"}).reveal()
