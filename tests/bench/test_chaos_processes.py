"""The fleet in processes when something goes wrong: its verdict can fail and be void, its counts see."""

from __future__ import annotations

from typing import Any

import pytest
from bench.claims import Verdict
from bench.contract.chaos import recovered
from bench.contract.faults import CUT, DEAD, ROLLED, SICK, STILL
from bench.contract.processes import SLIDING
from bench.contract.real_chaos import LEFT, judged
from bench.contract.sockets import CLOSE_WAIT, ESTABLISHED, lost, parsed

SCENES: dict[str, dict[str, Any]] = {
    DEAD: {"replaced": 2, "dead": 2, "leases": 1},
    ROLLED: {"replaced": 10},
    STILL: {"before": 0, "degraded": 10},
    CUT: {"before": 0, "degraded": 3},
    SICK: {"moves, sliding": 2, "moves, bucket": 0},
}


def run() -> dict[str, Any]:
    return {
        "scenes": {name: {**scene, "recovered": 1.0} for name, scene in SCENES.items()},
        "middle": dict.fromkeys(LEFT, 5),
        "left": dict.fromkeys(LEFT, 0),
        "rejected": {"sliding": 0, "bucket": 0},
        "off": {"sliding": 90, "bucket": 140},
        "streams left": 700,
        "served": 1.0,
    }


def test_a_run_in_which_all_is_well_holds() -> None:
    assert judged(run()).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("where", "name", "value", "verdict"),
    [
        (("rejected",), "bucket", 1, Verdict.FAILS),
        (("off",), "sliding", 0, Verdict.VOID),
        *((("left",), name, 1, Verdict.FAILS) for name in LEFT),
        *((("middle",), name, 0, Verdict.VOID) for name in LEFT),
        *((("scenes", name), "recovered", None, Verdict.FAILS) for name in SCENES),
        (("scenes", ROLLED), "recovered", 11.0, Verdict.FAILS),
        (("scenes", ROLLED), "replaced", 9, Verdict.FAILS),
        (("scenes", STILL), "degraded", 9, Verdict.FAILS),
        (("scenes", CUT), "degraded", 10, Verdict.FAILS),
        (("scenes", CUT), "before", 3, Verdict.VOID),
        (("scenes", SICK), "moves, sliding", 1, Verdict.FAILS),
        (("scenes", SICK), "moves, sliding", 4, Verdict.FAILS),
        (("scenes", SICK), "moves, bucket", 2, Verdict.FAILS),
        ((), "streams left", 0, Verdict.FAILS),
        ((), "served", 0.95, Verdict.FAILS),
    ],
)
def test_each_thing_that_goes_wrong_fails_and_each_count_that_saw_nothing_is_void(
    where: tuple[str, ...], name: str, value: float | None, verdict: Verdict
) -> None:
    found = run()
    part = found
    for key in where:
        part = part[key]
    part[name] = value
    assert judged(found).verdict is verdict


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 101 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 08 00000000:00000000 00:00000000 00000000  0  0 102 1 0 100 0 0 10 0
   2: 0100007F:C351 0100007F:18EB 01 00000000:00000000 02:00000000 00000000  0  0 103 1 0 100 0 0 10 0
"""


def test_the_kernels_table_is_read() -> None:
    assert parsed(TABLE) == {
        "101": (8080, 0, 0x0A),
        "102": (8080, 50000, CLOSE_WAIT),
        "103": (50001, 6379, ESTABLISHED),
    }


@pytest.mark.parametrize(
    ("connection", "count"),
    [
        ((50001, 6379, ESTABLISHED), 0),
        ((50001, 6379, CLOSE_WAIT), 1),
        ((8080, 50000, ESTABLISHED), 1),
        ((8080, 50000, CLOSE_WAIT), 1),
        ((50001, 9999, ESTABLISHED), 1),
    ],
)
def test_a_connection_is_lost_unless_a_pool_may_keep_it(
    connection: tuple[int, int, int], count: int
) -> None:
    assert lost([connection], {8080}, {6379: 2}) == count


def test_a_pool_keeps_no_more_than_it_may() -> None:
    assert lost([(50001 + n, 6379, ESTABLISHED) for n in range(5)], {8080}, {6379: 2}) == 3


def test_a_window_is_used_again_once_its_calls_are_there() -> None:
    idle, busy = [0] * 20, [10] * 12
    assert recovered([*busy, *idle, *busy], 12, SLIDING, 0.9) == 19.0
    assert recovered([*busy, *idle], 12, SLIDING, 0.9) == float("inf")
    assert recovered([*busy, *busy], 12, SLIDING, 0.9) == 0.0
