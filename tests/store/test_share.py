"""What the shared store last said of a key counts once it is gone, of so many keys and no more."""

from __future__ import annotations

import pytest

from headworks.limits.shapes import Window
from headworks.store import share
from headworks.store.protocol import Ask, Question
from headworks.store.share import LocalShare
from headworks.verdict import LimitState, Verdict

TEN = Window.of(10, 60)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> LocalShare:
    """It remembers ten keys."""
    monkeypatch.setattr(share, "REMEMBERED", 10)
    return LocalShare(lambda gate: 1)


def one(key: str) -> Question:
    return Question((Ask("limit", key, TEN),))


def hear(local: LocalShare, key: str, remaining: int = 0) -> None:
    state = LimitState("limit", 10, 60.0, True, remaining, 60.0, 0.0)
    local.heard(one(key), Verdict(True, 0.0, (state,)))
    assert len(local._empty) + len(local._emptied) <= 10


def starts_empty(local: LocalShare, key: str) -> bool:
    local.end()
    return not local.decide(one(key)).allowed


async def test_the_half_that_was_heard_of_last_is_remembered(local: LocalShare) -> None:
    for i in range(33):
        hear(local, f"k{i}")
    assert all(starts_empty(local, f"k{i}") for i in range(28, 33))
    assert not any(starts_empty(local, f"k{i}") for i in range(22))


async def test_strangers_drive_out_nobody_of_whom_is_heard_all_the_time(local: LocalShare) -> None:
    for i in range(40):
        hear(local, "often")
        for stranger in range(4):
            hear(local, f"stranger{4 * i + stranger}")
    assert starts_empty(local, "often")


@pytest.mark.parametrize("strangers", [0, 5])
async def test_a_key_that_has_room_again_or_is_forgotten_does_not_start_empty(
    local: LocalShare, strangers: int
) -> None:
    """Also where it was among the old ones, after the strangers."""
    for key in ("again", "forgotten", "empty"):
        hear(local, key)
    for i in range(strangers):
        hear(local, f"stranger{i}")
    hear(local, "again", remaining=3)
    local.forget(["forgotten"])
    assert [starts_empty(local, key) for key in ("again", "forgotten", "empty")] == [False, False, True]
