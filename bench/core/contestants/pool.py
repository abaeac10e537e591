"""The redis-py client that every peer and every floor gets: hiredis, and a connection per task."""

from __future__ import annotations

from redis.asyncio import ConnectionPool, Redis

CONNECTIONS = 256
"""More than tasks: redis-py's pool raises when it runs out."""


def pool(url: str) -> ConnectionPool:
    return ConnectionPool.from_url(url, max_connections=CONNECTIONS)


def client(url: str) -> Redis:
    return Redis.from_pool(pool(url))
