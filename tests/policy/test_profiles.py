"""What is known about vendors, and how surely."""

from __future__ import annotations

import dataclasses

import pytest

from headworks.policy.profiles import Profile, profile_named, profile_names
from headworks.policy.units import parse_rate

FIELDS = {field.name for field in dataclasses.fields(Profile)} - {"name", "title", "evidence"}


def test_the_four_profiles_are_there() -> None:
    assert profile_names() == ("anthropic", "azure-openai", "generic", "openai")


@pytest.mark.parametrize("name", profile_names())
def test_every_fact_of_a_profile_says_how_surely_it_is_known_and_from_where(name: str) -> None:
    profile = profile_named(name)
    assert profile.name == name
    facts = {fact.partition(".")[0] for fact in profile.evidence}
    assert {"mechanism", "day", "refunds", "charges", "headers", "usage"} <= facts <= FIELDS
    for field in ("charges", "headers", "usage"):
        parts = {part.name for part in dataclasses.fields(getattr(profile, field))}
        assert {f"{field}.{part}" for part in parts} <= set(profile.evidence)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="known: anthropic, azure-openai, generic, openai"):
        profile_named("../openai")


@pytest.mark.parametrize(
    ("profile", "rate", "window", "capacity"),
    [
        ("openai", "500/min", 60.0, 8),
        ("openai", "30/min", 60.0, 1),
        ("openai", "500/min burst 20", 60.0, 20),
        ("openai", "200000 tokens/min", 60.0, 200_000),
        ("azure-openai", "600/min", 10.0, 100),
        ("azure-openai", "3/min", 20.0, 1),
        ("azure-openai", "60000 tokens/min", 60.0, 60_000),
        ("openai", "10000/d", 86400.0, 10_000),
        ("azure-openai", "10000/d", 86400.0, 10_000),
        ("generic", "600/min", 60.0, 600),
        ("generic", "600/min burst 5", 60.0, 600),
        ("generic", "5/s", 1.0, 5),
    ],
)
def test_a_profile_says_over_which_window_and_how_much_at_once(
    profile: str, rate: str, window: float, capacity: int
) -> None:
    known = profile_named(profile)
    assert known.window_of(parse_rate(rate)) == window
    assert known.capacity_of(parse_rate(rate)) == capacity


def test_what_the_vendors_charge_differs() -> None:
    assert profile_named("anthropic").refunds
    assert profile_named("anthropic").charges.tokens == "prompt"
    assert not profile_named("openai").refunds
    assert profile_named("openai").charges.tokens == "max"
    assert profile_named("openai").headers.units["tokens"] == "tokens"
