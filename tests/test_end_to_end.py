"""Every promise of every layer, with everything switched on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from tests.scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_end_to_end(scenario: Callable[[], Awaitable[None]]) -> None:
    await scenario()
