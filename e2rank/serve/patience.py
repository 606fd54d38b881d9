"""Connections that are not kept: no request comes, nobody reads the answer, or they are many."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from e2rank.serve.lane import RETRY_AFTER

_Base: Any = AutoHTTPProtocol  # its kind depends on what is installed


_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    f"Retry-After: {RETRY_AFTER}\r\nConnection: close\r\n\r\n"
    '{"error": "too many connections are open", "error_type": "Overloaded"}'
).encode()


class Patient(_Base):  # type: ignore[misc]
    """uvicorn's protocol, which would wait for ever for the head of a request and for a reader.

    It would also keep any number of connections, and refuse their requests only.
    """

    seconds = 30.0
    most = 1024

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request, or refuse one connection too many before it."""
        super().connection_made(transport)
        self._head = self._later(self._without_request)
        self._stalled: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.write(_FULL)
            transport.close()

    def on_response_complete(self) -> None:
        """Wait for the next one."""
        super().on_response_complete()
        self._head.cancel()
        self._head = self._later(self._without_request)

    def pause_writing(self) -> None:
        """Wait for a caller to read what was sent."""
        super().pause_writing()
        self._stalled = self._later(self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        for each in (self._head, self._stalled):
            if each:
                each.cancel()
        super().connection_lost(exc)

    def _later(self, do: Any) -> asyncio.TimerHandle:
        loop: asyncio.AbstractEventLoop = self.loop
        return loop.call_later(self.seconds, do)

    def _without_request(self) -> None:
        """Close a connection whose request has not come whole; one under way is waited for."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def patient(seconds: float, most: int) -> type[Patient]:
    """The protocol for servers that wait so long, and keep so many connections."""
    return type("Patient", (Patient,), {"seconds": seconds, "most": most})
