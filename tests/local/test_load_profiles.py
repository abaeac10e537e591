"""The schedule of arrivals a profile means."""

from __future__ import annotations

import ipaddress
from collections import Counter
from itertools import pairwise

import pytest

from headworks.local.load.profiles import CHAT, PROFILES, SEARCH, Bursts, Crowd, Profile

CLOCKWORK = Crowd("clock", "", 2.0, ("k",), ("127.0.0.9",), (CHAT, SEARCH), even=True, scaled=False)
RANDOM = Crowd("random", "", 50.0, ("a", "b", "c"), ("127.0.0.7", "127.0.0.8"), (CHAT,))


def test_an_even_crowd_sends_like_clockwork_and_takes_its_calls_in_turn() -> None:
    shots = list(Profile("p", "", (CLOCKWORK,)).shots(3.0, seed=1))
    assert [shot.at for shot in shots] == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    assert [shot.call for shot in shots] == [CHAT, SEARCH] * 3


def test_the_same_seed_sends_the_same_requests_and_another_seed_others() -> None:
    profile = Profile("p", "", (RANDOM, CLOCKWORK))
    assert list(profile.shots(5, seed=3)) == list(profile.shots(5, seed=3))
    assert list(profile.shots(5, seed=3)) != list(profile.shots(5, seed=4))


def test_random_arrivals_come_in_order_at_their_rate() -> None:
    """Five standard deviations of a Poisson count around 50/s × 100 s."""
    times = [shot.at for shot in Profile("p", "", (RANDOM, CLOCKWORK)).shots(100, seed=1)]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert abs(len(times) - 200 - 5000) < 5 * 5000**0.5


def test_a_burst_multiplies_the_rate_in_the_last_seconds_of_each_period() -> None:
    bursts = Bursts(period=10, length=3, factor=10)
    crowd = Crowd("b", "", 20.0, ("k",), ("127.0.0.1",), (CHAT,), bursts=bursts)
    times = Counter(shot.at % 10 >= 7 for shot in Profile("p", "", (crowd,)).shots(50, seed=2))
    assert abs(times[False] - 20 * 7 * 5) < 5 * (20 * 7 * 5) ** 0.5
    assert abs(times[True] - 200 * 3 * 5) < 5 * (200 * 3 * 5) ** 0.5


def test_a_client_keeps_its_address() -> None:
    homes = {(shot.key, shot.source) for shot in Profile("p", "", (RANDOM,)).shots(20, seed=1)}
    assert homes == {("a", "127.0.0.7"), ("b", "127.0.0.8"), ("c", "127.0.0.7")}


def test_another_rate_scales_every_crowd_but_the_polite_one() -> None:
    profile = Profile("p", "", (RANDOM, CLOCKWORK)).scaled(10.0)
    assert [crowd.rate for crowd in profile.crowds] == [10.0, 2.0]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_shipped_profiles_stay_on_loopback_and_keep_their_polite_client_apart(profile: Profile) -> None:
    assert all(ipaddress.ip_address(source).is_loopback for source in profile.sources)
    *others, polite = profile.crowds
    assert polite.name == "polite"
    for crowd in others:
        assert not set(crowd.keys) & set(polite.keys)
        assert not set(crowd.sources) & set(polite.sources)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_polite_client_stays_below_its_limits_even_in_two_runs_on_end(profile: Profile) -> None:
    """At most 20 chats and 100 requests in any minute (the shipped policy's /chat and pro)."""
    shots = [shot for shot in profile.shots(60, seed=1) if shot.crowd == "polite"]
    assert sum(shot.call.path == "/chat" for shot in shots) <= 20
    assert len(shots) <= 100
