"""What the reference service's own description allows, and what it does not, answered without a 500."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from tests.examples.test_service import PRO, Run
from tests.examples.test_service import run as run

EXAMPLES = 40


def cases_of(description: dict[str, Any], mode: schemathesis.GenerationMode) -> list[Any]:
    """Requests to every operation, as the schema has them or as it rules them out."""
    schema = schemathesis.openapi.from_dict(description)
    found: list[Any] = []
    for result in schema.get_all_operations():

        @settings(
            max_examples=EXAMPLES,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=result.ok().as_strategy(generation_mode=mode))
        def collected(case: Any) -> None:
            found.append(case)

        collected()
    return found


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
async def test_no_request_that_the_description_makes_is_a_500(
    run: Run, mode: schemathesis.GenerationMode
) -> None:
    async with run() as service:
        cases = cases_of(service.module.app.openapi(), mode)
        assert len(cases) >= EXAMPLES
        seen = set()
        for case in cases:
            asked = case.as_transport_kwargs(base_url="http://service")
            answer = await service.browser.request(
                asked["method"],
                asked["url"],
                params=asked.get("params"),
                headers={**(asked.get("headers") or {}), **PRO},
                json=asked.get("json"),
                content=asked.get("data") if isinstance(asked.get("data"), (bytes, str)) else None,
            )
            assert answer.status_code < 500, (case, answer.text)
            seen.add(answer.status_code)
            await asyncio.sleep(1)  # so that it is the handlers who answer, not the caller's limits
        assert 200 in seen or mode is schemathesis.GenerationMode.NEGATIVE
