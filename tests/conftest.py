"""Coroutine tests run in virtual time; those marked `real` run on a real loop, in real time."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from headworks.testing import loop

pytest.register_assert_rewrite("tests.scenarios")


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
