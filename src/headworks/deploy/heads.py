"""A request head has an end: uvicorn's httptools protocol keeps whatever it is sent until the head ends.

h11, uvicorn's other parser, gives up a head of which 64 KiB have come and no end. Here it is the same,
also for what may follow a chunked body (trailers), which is kept as well. A gateway in front bounds
heads more tightly; this is for a pod that is reached without one.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headworks.errors import HeadTooLarge
from headworks.problem import render

log = logging.getLogger("headworks")

MOST: Final = 64 * 1024
"""Bytes of a head without its end: h11's number, four times what the gateway lets through by default."""


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's own, with at most `most` bytes of a head that has no end.

    The read in which a head begins may hold the end of an earlier request, and does not count, nor does
    the one that ends it: no head of `most` bytes is ever refused, and never more than that and two reads
    (256 KiB each) are kept.
    """

    most = MOST

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._half: object = None
        self._unended = 0

    def data_received(self, data: bytes) -> None:
        HttpToolsProtocol.data_received(self, data)  # `super()` would take longer than all that follows
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.scope is not self.scope:
            self._half_received(len(data))

    def on_body(self, body: bytes) -> None:
        """What is read of a body is kept by nobody but its application: counting begins afresh."""
        self._half = None
        super().on_body(body)

    def _half_received(self, size: int) -> None:
        """So much has come, and a head, or a body with its trailers, has not ended yet."""
        if self.headers is not self._half:  # those of another message: each has a list of its own
            self._half, self._unended = self.headers, 0
            return
        self._unended += size
        if self._unended > self.most and not self.transport.is_closing():
            self._refuse()

    def _refuse(self) -> None:
        """Say so, unless that would go into the middle of another answer, and close."""
        refused = HeadTooLarge(f"{self.most} bytes of a request's head have come, and no end of it")
        log.info("%s: %s", self.client, refused)
        if self.cycle is None or (self.cycle.response_complete and not self.pipeline):
            status, headers, body = render(refused)
            head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            head += [name + b": " + value for name, value in headers]
            self.transport.write(b"\r\n".join([*head, b"connection: close", b"", body]))
        self.transport.close()
