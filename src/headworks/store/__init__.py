"""Shared state: one question, one verdict. The only package that knows Redis and Valkey.

What is named here is the limiter by itself, for whoever wants nothing else (docs/limiter.md).
"""

from headworks.limits.shapes import Bucket, Window
from headworks.store.limiter import Limiter, Limits, Place, Places
from headworks.store.opening import open_store
from headworks.store.protocol import Store, StoreDown
from headworks.verdict import NEVER, LimitState, Verdict

__all__ = [
    "NEVER",
    "Bucket",
    "LimitState",
    "Limiter",
    "Limits",
    "Place",
    "Places",
    "Store",
    "StoreDown",
    "Verdict",
    "Window",
    "open_store",
]
