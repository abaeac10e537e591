"""Coroutine tests run in virtual time; those marked `real` run on a real loop, in real time."""

from __future__ import annotations

import asyncio
import inspect
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from headworks.testing import loop

pytest.register_assert_rewrite("tests.scenarios")

# The same examples in every run, and none fails for the time it takes: neither chance nor a slow machine
# decides. `--hypothesis-profile=default` looks for new ones.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _steady_chance() -> None:
    """What draws from the process's own chance, as the SDKs' pauses do, draws the same every time."""
    random.seed(1)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters
    }
    run = asyncio.run if pyfuncitem.get_closest_marker("real") else loop.run
    run(pyfuncitem.obj(**wanted))
    return True
