"""The claims that need no stack: the policy's own check, and the fleet in virtual time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from bench.claims import Claim, Control, Figure
from bench.contract.cells import MECHANISMS
from bench.contract.chaos import FAILING, SCENES, WINDOW
from bench.stage import POLICY, ROOT, Missing, Stage, headworks, stop

BROKEN = ROOT / "tests" / "policy" / "broken"
MISTAKES = {
    "address-above-total": "gateway.per_ip_rate",
    "bad-rate": 'fairness.endpoints."/chat".rate',
    "booking-beyond-waiting": "vendors.llm.limiter_timeout",
    "out-of-range": "service.sla",
    "password-in-url": "store.url",
    "pods-without-store": "store",
    "sla-below-call": "service.sla",
    "slots-above-connections": "vendors.llm.slots",
    "unknown-key": "admission.max_inflight",
    "unknown-tier": "fairness.default_tier",
}
"""Each broken policy, and the one place that must be named."""
GOODPUT = 0.93
"""What an overloaded fleet must serve, of what it can."""
SHARE, TRIPS, JAIN, WAIT = 0.45, 3.0, 0.98, 2.0
"""What the pod with half of the demand must get at least; trips to the store per success at most; Jain's
index of served by demanded; seconds that half of the served may have waited, at 600 calls a minute."""
USED = {False: 0.99, True: 0.98}
"""What must be used of the bound; by whether calls differ in cost."""


async def checked(stage: Stage) -> Claim:
    """`headworks check` on the shipped policy and on every broken one."""
    shipped_code, shipped = await _check(str(POLICY))
    exact, codes = 0, []
    for path in sorted(BROKEN.glob("*.toml")):
        code, result = await _check(str(path))
        codes.append(code)
        exact += _places(result) == [MISTAKES.get(path.stem)]
    return Claim(
        "check",
        "the check is clean on the shipped policy and names exactly the mistake of each broken one",
        (
            Figure(
                "exit code, shipped policy",
                shipped_code,
                "==",
                0,
                Control("broken ones, the least", min(codes)),
            ),
            Figure(
                "mistakes found in the shipped policy",
                len(_places(shipped)),
                "==",
                0,
                Control("in the broken ones", sum(code > 0 for code in codes)),
            ),
            Figure("broken policies", len(codes), ">=", 10),
            Figure("of them, told exactly their mistake", exact, "==", len(codes)),
        ),
    )


async def _check(file: str) -> tuple[int, dict[str, Any]]:
    process = await headworks("check", file, "--json")
    out, _ = await process.communicate()
    result: dict[str, Any] = json.loads(out)
    return process.returncode or 0, result


def _places(result: dict[str, Any]) -> list[str]:
    """The settings named, notes left out."""
    found = [one for one in result.get("findings", ()) if one["severity"] != "note"]
    return [one["path"] for one in (*result.get("problems", ()), *found)]


async def contract(stage: Stage) -> Claim:
    """Ten pods on one quota, in a process of its own, because virtual time takes a whole processor.

    Always its short form, which takes two minutes; `python -m bench.contract` has every cell.
    """
    cells = await _apart("bench.contract", stage, "--quick")
    figures: list[Figure] = []
    for name in (*MECHANISMS, "tokens"):
        mine = [cell for key, cell in cells.items() if key.startswith(name) and key.endswith("ms")]
        lumpy = name == "tokens"
        off = Control("limiter off", cells[f"{name}, off"]["rejected"])
        figures += [
            Figure(f"{name}: calls rejected", _most(mine, "rejected"), "==", 0, off),
            Figure(f"{name}: utilisation of its bound", _least(mine, "of_bound"), ">=", USED[lumpy]),
            Figure(f"{name}: store round trips per success", _most(mine, "trips"), "<=", TRIPS),
            Figure(f"{name}: Jain over pods", _least(mine, "jain_pods"), ">=", JAIN),
            Figure(f"{name}: Jain over tenants", _least(mine, "jain_tenants"), ">=", JAIN),
        ]
        if not lumpy:
            waited = max(cell["waited"][0] for cell in mine)
            figures.append(Figure(f"{name}: median wait of the served, s", waited, "<=", WAIT))
    eager, uneven, divided = (
        cells[name] for name in ("sliding 10 s, without J", "uneven", "uneven, divided")
    )
    figures += [
        Figure(
            "sliding 10 s: calls rejected",
            _most(
                [cell for key, cell in cells.items() if key.startswith("sliding 10 s, 50")], "rejected"
            ),
            "==",
            0,
            Control("paced at L/W, without J", eager["rejected"]),
        ),
        Figure(
            "60 a second: median wait of the served, s", cells["60 a second"]["waited"][0], "<=", 0.5
        ),
        Figure(
            "uneven demand: utilisation",
            uneven["of_bound"],
            ">=",
            0.95,
            Control("quota ÷ pods", divided["of_bound"]),
        ),
        Figure(
            "uneven demand: share of the half-demand pod",
            uneven["share"],
            ">=",
            SHARE,
            Control("quota ÷ pods", divided["share"]),
        ),
    ]
    return Claim(
        "contract",
        "ten pods on one quota, five times overloaded: the vendor rejects nothing, its quota is used up",
        tuple(figures),
        {"cells": cells},
    )


def _least(cells: list[dict[str, Any]], name: str) -> float | None:
    return min((cell[name] for cell in cells), default=None)


def _most(cells: list[dict[str, Any]], name: str) -> float | None:
    return max((cell[name] for cell in cells), default=None)


async def chaos(stage: Stage) -> Claim:
    """The same fleet when something goes wrong, in virtual time."""
    scenes = await _apart("bench.contract.chaos", stage)
    figures = []
    for name in SCENES:
        scene, alone = scenes[name], scenes.get(f"{name}, share")
        control = Control("pods that go on alone", alone["rejected"]) if alone else None
        figures += [
            Figure(f"{name}: calls rejected", scene["rejected"], "==", 0, control),
            Figure(f"{name}: left over when demand ends", scene["lost"], "==", 0),
            Figure(f"{name}: seconds until a window is used up", scene["recovered"], "<=", WINDOW),
            Figure(f"{name}: utilisation of its bound after that", scene["used"], ">=", USED[False]),
            Figure(f"{name}: times the breaker opened", scene["opened"], "==", int(name == FAILING)),
        ]
    return Claim(
        "chaos",
        "pods die, the store goes, callers leave, the vendor fails: the vendor rejects nothing, nothing "
        "is lost, and the quota is soon used up again",
        tuple(figures),
        {"scenes": scenes},
    )


async def cascade(stage: Stage) -> Claim:
    """Readiness under overload, in a process of its own for the same reason."""
    cells = await _apart("bench.readiness", stage, *["--quick"] * stage.quick)
    figures = []
    for pods in (3, 10):
        ours, flip = (cells[f"{pods} pods, {kind}"]["of_capacity"] for kind in ("ours", "flip"))
        figures.append(
            Figure(
                f"{pods} pods: served, of what they can",
                ours,
                ">=",
                GOODPUT,
                Control("ready while not full", flip),
            )
        )
    ten, places = cells["10 pods, ours"], cells["10 pods, places"]
    figures += [
        Figure(
            "10 pods: served with a crowd's word",
            ten["of_capacity"],
            ">=",
            GOODPUT,
            Control("permits without it", places["of_capacity"]),
        ),
        Figure("requests that found no ready pod", ten["nobody"], "==", 0),
    ]
    return Claim(
        "cascade",
        "at half as much again as all pods can do, pods stay and shed: the fleet serves what it can",
        tuple(figures),
        {"cells": cells},
    )


async def _apart(module: str, stage: Stage, *options: str) -> dict[str, dict[str, Any]]:
    """What a simulation prints, run in a process of its own; how it judges that itself is its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--seed", str(stage.seed), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ),
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        out, said = await process.communicate()
    finally:
        await stop(process)
    if not out:
        raise Missing(f"{module} ended with {process.returncode}: {said.decode().strip()[-300:]}")
    cells: dict[str, dict[str, Any]] = json.loads(out)
    return cells
