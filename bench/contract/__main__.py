"""The contract benchmark.

python -m bench.contract [--quick] [--seed N] [--only NAME] [--plot PATH]     prints JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from bench.contract.cells import cells
from bench.contract.fleet import run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs and fewer cells")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    options = parser.parse_args()
    outcomes = {}
    for cell in cells(quick=options.quick):
        if options.only in cell.name:
            began = time.process_time()
            outcome = outcomes[cell.name] = asdict(run(cell, options.seed))
            sys.stderr.write(f"{cell.name} ({time.process_time() - began:.0f} s): {outcome}\n")
    sys.stdout.write(json.dumps(outcomes, indent=2) + "\n")


if __name__ == "__main__":
    main()
