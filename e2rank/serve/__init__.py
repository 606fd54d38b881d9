"""An engine behind HTTP: searches, embeddings and reranks in the shapes that clients know."""

import logging
import os
import resource
import socket

from e2rank.errors import MissingExtra

try:
    import uvicorn
    from starlette.types import ASGIApp

    from e2rank.serve.app import make_app
    from e2rank.serve.patience import patient
    from e2rank.serve.service import Service
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in ("prometheus_client", "starlette", "uvicorn"):
        raise
    raise MissingExtra(missing, extra="serve") from None

_log = logging.getLogger("e2rank.serve")

_BACKLOG = 128

_MOST_CONNECTIONS = 1024
"""One more is told 503 at once."""

_OTHER_FILES = 64
"""Descriptors that are left for the index and the log, where a process may have few."""

__all__ = ["Service", "make_app", "run"]


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        OSError: if the address is taken, or is none of this machine.
    """
    listening = _bound(host, port)
    listening.listen(_BACKLOG)
    return listening


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that small packets are to be sent at once: `create_server` does
    # not name it, and an answer then waits 40 ms for the caller's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except BaseException as error:
        listening.close()
        if isinstance(error, OSError) and error.errno:
            what = f"cannot listen at {host} port {port}: {os.strerror(error.errno)}"
            raise OSError(error.errno, what) from error
        raise
    return listening


def address(listening: socket.socket) -> str:
    """Where a socket can be reached from here."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, *, host: str = "127.0.0.1", port: int = 8080, key: str = "") -> None:
    """Serve until SIGTERM or Ctrl-C; what was taken by then is answered first.

    A connection is closed whose request does not come within `service.seconds`, or whose caller
    reads nothing of an answer for as long.

    Args:
        service: what is served; it is closed at the end.
        host: the address to listen on; "0.0.0.0" for all.
        port: to listen on; 0 for any that is free, which the log names.
        key: what callers send as `Authorization: Bearer KEY`; anyone may call if it is "".
    Raises:
        OSError: if the address is taken.
        ValueError: for a key that no header can hold.
    """
    app = make_app(service, key=key)
    with _bound(host, port) as listening:
        # Before anybody can call: what cannot search does not start.
        service.warm()
        listening.listen(_BACKLOG)
        _log.info("%s at %s", service.name, address(listening))
        uvicorn.Server(configured(app, service.seconds)).run(sockets=[listening])


def configured(app: ASGIApp, seconds: float) -> uvicorn.Config:
    """How uvicorn runs it, for callers that may take so long."""
    # Where there are no more descriptors asyncio takes no connection, and says so without end.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = _MOST_CONNECTIONS
    if files != resource.RLIM_INFINITY:
        most = min(most, max(1, files - _OTHER_FILES))
    return uvicorn.Config(
        app,
        http=patient(seconds, most),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(seconds) + 1,
        # What is over `most` is closed; of those that are not, uvicorn would refuse the last.
        limit_concurrency=most + 1,
        backlog=_BACKLOG,
    )
