"""The benchmark of the core judges rightly, and everyone who takes part in it limits at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.core import exact, page, shared
from bench.core.book import Book
from bench.core.contest import Contestant, Setup, timed
from bench.core.contestants import AS_A_LAYER, FLOORS_IN_MEMORY, FLOORS_OVER_A_SERVER, LIMITERS
from bench.core.must import Line, lines
from bench.core.server import Server, running
from bench.core.table import figures, verdicts
from rich.console import Console


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def named(contestant: Contestant) -> str:
    return contestant.name


def test_a_ratio_compares_within_each_round() -> None:
    """Were medians divided instead, a round in which the machine was slow would count for one only."""
    book = Book()
    for ours, beside in ((10, 5), (100, 10), (8, 4)):
        book.add("case", "ours", rate=ours)
        book.add("case", "peer", rate=beside)
    assert book.ratio("case", "ours", "peer", "rate") == 2
    assert book.median("case", "ours", "rate") == 10


def test_what_was_not_taken_has_no_figure() -> None:
    book = Book()
    assert book.median("case", "ours", "rate") is None
    assert book.ratio("case", "ours", "peer", "rate") is None
    assert book.best("case", ["peer"], "rate") is None


@pytest.mark.parametrize(
    ("ours", "sign", "bound", "reached"),
    [
        (4.0, ">=", 4, True),
        (3.9, ">=", 4, False),
        (110, "<=", 110, True),
        (111, "<=", 110, False),
        (100, "==", 100, True),
        (101, "==", 100, False),
        (None, ">=", 0, False),
    ],
)
def test_a_line_is_reached_at_its_bound_and_never_without_a_figure(
    ours: float | None, sign: str, bound: float, reached: bool
) -> None:
    assert Line("claim", ours, sign, bound).reached is reached


def test_an_empty_book_reaches_nothing() -> None:
    found = lines(Book(), (1, 20))
    assert found
    assert not any(line.reached for line in found)


def test_our_speed_is_set_against_the_fastest_peer() -> None:
    book, case = Book(), shared.case(128, two=False)
    book.add(case, "headworks bucket", rate=100)
    book.add(case, "limits fixed window", rate=10)
    book.add(case, "throttled-py GCRA", rate=50)
    (line,) = [line for line in lines(book, (1, 20)) if line.ours is not None]
    assert (line.ours, line.beside) == (2, "throttled-py GCRA")
    assert not line.reached


def test_one_race_lost_is_enough_to_miss() -> None:
    book = Book()
    for admitted in (100, 101, 100):
        book.add(exact.RACE, "headworks bucket", most=admitted)
    reached = [line.reached for line in lines(book, (1, 20)) if line.ours is not None]
    assert reached == [False, True]


def test_admissions_count_only_where_one_window_surely_holds_them() -> None:
    """One that was answered after the window's end may have been decided after it."""
    admissions = [(0.0, 0.1), (0.5, 0.6), (0.9, 1.1)]
    assert exact.most_within(1.0, admissions) == 2


def test_the_tables_show_every_contestant_and_every_line() -> None:
    book = Book()
    book.add(shared.case(1, two=False), "headworks bucket", rate=1000, p50_us=50)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(figures(book), verdicts(lines(book, (1, 20))))
    assert "headworks bucket" in shown.get()
    assert shown.get().count("missed") == len(lines(book, (1, 20)))


def test_a_page_takes_the_lines_between_its_markers(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    begin, end = page.markers("bench.core")
    target.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    page.put(target, [Line("fast", 5.0, ">=", 4)], "bench.core")
    assert "| fast | 5 | >= 4 | reached |" in target.read_text()
    assert "old" not in target.read_text()
    assert target.read_text().startswith("before\n")
    assert target.read_text().endswith("\nafter\n")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text("no place")
    with pytest.raises(ValueError, match="no place for the figures"):
        page.put(target, [], "bench.core")


@pytest.mark.real
@pytest.mark.parametrize("two", [False, True], ids=["one limit", "two limits"])
@pytest.mark.parametrize("contestant", [*LIMITERS, *AS_A_LAYER], ids=named)
async def test_every_limiter_lets_in_exactly_its_limit_over_a_server(
    contestant: Contestant, two: bool, server: Server
) -> None:
    server.emptied()
    async with contestant.open(Setup(server.url, limit=7, period=3600, two=two)) as hit:
        admitted = [await hit("key") for _ in range(12)]
    assert admitted == [True] * 7 + [False] * 5


@pytest.mark.real
@pytest.mark.parametrize("contestant", [*LIMITERS, *AS_A_LAYER], ids=named)
async def test_every_limiter_lets_in_exactly_its_limit_in_memory(contestant: Contestant) -> None:
    async with contestant.open(Setup(limit=7, period=3600, two=True)) as hit:
        admitted = [await hit("key") for _ in range(12)]
        other = await hit("another key")
    assert admitted == [True] * 7 + [False] * 5
    assert other


@pytest.mark.real
@pytest.mark.parametrize("floor", [*FLOORS_OVER_A_SERVER, *FLOORS_IN_MEMORY], ids=named)
async def test_a_floor_refuses_nobody(floor: Contestant, server: Server) -> None:
    async with floor.open(Setup(server.url, at_once=4)) as hit:
        assert all([await hit("key") for _ in range(3)])


@pytest.mark.real
async def test_a_slice_counts_every_hit_and_every_refusal() -> None:
    seen: list[str] = []

    async def hit(key: str) -> bool:
        await asyncio.sleep(0)
        seen.append(key)
        return key != "b"

    took = await timed(hit, ["a", "b", "c", "d"], tasks=2, seconds=0.01)
    assert took.hits == len(seen)
    assert took.refused == seen.count("b") > 0
    assert took.p50_us <= took.p99_us


@pytest.mark.real
async def test_the_servers_work_is_counted_per_call(server: Server) -> None:
    before = server.work()
    async with FLOORS_OVER_A_SERVER[1].open(Setup(server.url)) as hit:
        for _ in range(5):
            await hit("key")
    assert server.work().since(before).scripts == 5
