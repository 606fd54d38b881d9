"""An engine behind HTTP: searches, embeddings and reranks in the shapes that clients know."""

import logging
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

__all__ = ["Service", "make_app", "run"]


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        OSError: if the address is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that small packets are to be sent at once: `create_server` does
    # not name it, and an answer then waits 40 ms for the caller's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
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
    # Before anybody can call: what cannot search does not start.
    service.warm()
    with listen(host, port) as listening:
        _log.info("%s at %s", service.name, address(listening))
        uvicorn.Server(configured(app, service.seconds)).run(sockets=[listening])


def configured(app: ASGIApp, seconds: float) -> uvicorn.Config:
    """How uvicorn runs it, for callers that may take so long."""
    return uvicorn.Config(
        app,
        http=patient(seconds),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(seconds) + 1,
        limit_concurrency=_MOST_CONNECTIONS,
        backlog=_BACKLOG,
    )
