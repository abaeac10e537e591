"""`python -m bench.inbound.serve NAME URL RATE`: one application of `apps.py` on one uvicorn worker.

Prints the port on which it listens. What is ours is served as `headworks serve` serves it, everything
else as uvicorn does. With `--frozen`, the collector is set as `headworks serve` sets it; without, it is
as Python has it.
"""

from __future__ import annotations

import argparse
import gc
import socket

import uvicorn

from bench.inbound.apps import APPS, OURS
from headworks.cli.serve import GC_THRESHOLDS
from headworks.deploy.protocol import Protocol


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, frozen: bool) -> None:
        super().__init__(config)
        self._frozen = frozen

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._frozen:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        for listener in sockets or ():
            print(listener.getsockname()[1], flush=True)  # noqa: T201  whoever started it reads this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=APPS)
    parser.add_argument("url")
    parser.add_argument("rate")
    parser.add_argument("--frozen", action="store_true")
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        APPS[options.name](options.url, options.rate),
        loop="uvloop",
        http=Protocol if options.name in OURS else "httptools",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
    )
    _Server(config, frozen=options.frozen).run(sockets=[listener])


if __name__ == "__main__":
    main()
