"""Which TCP connections a process has, read from /proc (IPv4)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

ESTABLISHED, CLOSE_WAIT = 0x01, 0x08
"""States of the kernel: in use; closed by the other side, and not yet by ours."""

Connection = tuple[int, int, int]
"""Local port, remote port, state."""


def parsed(table: str) -> dict[str, Connection]:
    """The connections of `/proc/net/tcp` by their inodes."""
    found = {}
    for line in table.splitlines()[1:]:
        _, local, remote, state, *rest = line.split()
        ports = (int(place.rpartition(":")[2], 16) for place in (local, remote))
        found[rest[5]] = (*ports, int(state, 16))
    return found


def of(pid: int) -> list[Connection]:
    """Those of one process; listeners are none."""
    table = parsed(Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii"))
    inodes = []
    for name in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.append(str(name.readlink()).removeprefix("socket:[").rstrip("]"))
        except OSError:  # closed since it was listed
            continue
    return [table[inode] for inode in inodes if inode in table and table[inode][1]]


def lost(connections: list[Connection], own: set[int], pools: dict[int, int]) -> int:
    """How many nobody needs any more: what the other side has closed, what has come in, and what goes
    out beyond a pool.

    own    ports that the process itself listens on
    pools  connections that may stay open, by the port they go to
    """
    out = Counter(remote for local, remote, state in connections if local not in own)
    half = sum(state == CLOSE_WAIT for _, _, state in connections)
    came = sum(local in own and state == ESTABLISHED for local, _, state in connections)
    return half + came + sum(max(0, count - pools.get(port, 0)) for port, count in out.items())
