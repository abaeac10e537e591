"""The benchmark of the way in: everyone answers what the case is about, what was not taken is missed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench.core.book import Book
from bench.core.server import Server, running
from bench.inbound.__main__ import CASES, CONNECTIONS, Case, lines, requests, served
from bench.inbound.load import driven


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def test_an_empty_book_reaches_nothing() -> None:
    found = lines(Book())
    assert found
    assert not any(line.reached for line in found)


def test_every_connection_has_its_own_requests_and_strangers_never_come_twice() -> None:
    for case in CASES:
        sent = requests(case)
        assert len(sent) == CONNECTIONS
        if case.strangers:
            assert len({request for each in sent for request in each}) > 10_000, (
                "more than are remembered"
            )


@pytest.mark.real
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_application_answers_what_the_case_is_about(case: Case, server: Server) -> None:
    server.emptied()
    for name in case.who:
        with served(name, server.url, case.rate, frozen=True) as (_, port):
            first = [[each[0]] for each in requests(case)[:4]]
            await driven(port, first, 0.1)  # the one that a limit of one lets through
            answered = await driven(port, first, 0.1)
        assert set(answered.statuses) == {case.status if name != "bare FastAPI" else 200}
