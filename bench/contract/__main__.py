"""The contract benchmark.

    python -m bench.contract [--quick] [--seed N] [--only NAME] [--processes] [--json PATH] [--plot PATH]

Prints JSON. Exit status: 0 when ours was never rejected, 1 when it was, 2 when a control saw no
rejection either: such a run is void. Ours as processes must also keep their other bounds (`real.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.claims import Verdict
from bench.contract import real
from bench.contract.cells import Cell, cells
from bench.contract.fleet import run
from bench.contract.picture import picture


def judged(ran: Mapping[str, Cell], outcomes: Mapping[str, Mapping[str, Any]]) -> int:
    """The exit status of what was run."""
    rejected = {name: outcome["rejected"] for name, outcome in outcomes.items()}
    ours = [name for name, cell in ran.items() if cell.limiter == "headworks" and cell.assumed is None]
    controls = [name for name, cell in ran.items() if cell.limiter == "off" or cell.assumed == 0.0]
    if any(rejected[name] == 0 for name in controls):
        return 2
    return int(any(rejected[name] for name in ours))


def judged_too(found: Mapping[str, dict[str, Any]]) -> int:
    """The exit status of what was run as processes."""
    claim = real.judged(found)
    if not all(figure.tried for figure in claim.figures if figure.control is not None):
        return 2
    return int(claim.verdict is not Verdict.HOLDS)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.contract", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="shorter runs and fewer cells")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cells in virtual time whose name contains this")
    parser.add_argument(
        "--processes", action="store_true", help="ten real processes as well: a quarter of an hour more"
    )
    parser.add_argument("--json", type=Path, help="default: standard output")
    parser.add_argument("--plot", type=Path, help="a picture, as SVG")
    options = parser.parse_args()
    ran = {cell.name: cell for cell in cells(quick=options.quick) if options.only in cell.name}
    if not ran and not options.processes:
        parser.error(f"--only: no cell's name contains {options.only!r}")
    outcomes: dict[str, dict[str, Any]] = {}
    for name, cell in ran.items():
        began = time.process_time()
        outcome = outcomes[name] = asdict(run(cell, options.seed))
        sys.stderr.write(f"{name} ({time.process_time() - began:.0f} s): {outcome}\n")
    status = judged(ran, outcomes)
    if options.processes:
        found = asyncio.run(real.every_cell(seed=options.seed, say=sys.stderr.write))
        outcomes |= found
        status = max(status, judged_too(found))
    result = json.dumps(outcomes, indent=2) + "\n"
    if options.json is not None:
        options.json.write_text(result, encoding="utf-8")
    else:
        sys.stdout.write(result)
    if options.plot is not None:
        options.plot.write_text(picture(outcomes), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
