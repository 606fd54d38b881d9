"""The server: addresses, the key, what an error looks like, and how it starts and ends."""

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from e2rank.errors import MissingExtra
from e2rank.serve import wires
from e2rank.serve.fields import MOST_BYTES, Fields
from e2rank.serve.lane import RETRY_AFTER
from e2rank.serve.refused import ClientGone, Refused
from e2rank.serve.service import Caller, Service
from e2rank.serve.work import SIDES

_log = logging.getLogger("e2rank")

REFRESH = 2.0
"""Seconds between two looks for a newer commit."""

_GONE = 499

_SMALL = 1 << 16
"""Bytes that are read sooner than a thread takes them over."""

Answer = Callable[[Fields, Caller], Awaitable[wires.Json]]
Shape = Callable[[int, str], dict[str, Any]]


def _openai(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    # Where Jina's clients look for it.
    return {"error": error, "detail": message}


def _cohere(status: int, message: str) -> dict[str, Any]:
    return {"message": message}


def _tei(status: int, message: str) -> dict[str, Any]:
    kinds = {429: "Overloaded", 503: "Overloaded", 500: "Backend"}
    return {"error": message, "error_type": kinds.get(status, "Validation")}


@dataclass(frozen=True, slots=True)
class _Post:
    """One address: what answers there, what its errors look like, and how much is read."""

    path: str
    answer: Answer
    error: Shape
    most: int = MOST_BYTES


_POSTS = (
    # Reading JSON holds up everybody, and a search is short.
    _Post("/search", wires.search, _openai, 1 << 20),
    _Post("/v1/embeddings", wires.openai_embeddings, _openai),
    _Post("/v1/rerank", wires.jina_rerank, _openai),
    _Post("/v2/embed", wires.cohere_embed, _cohere),
    _Post("/v2/rerank", wires.cohere_rerank, _cohere),
    _Post("/rerank", wires.rerank, _tei),
    _Post("/embed", wires.tei_embed, _tei),
    _Post("/", wires.tei_embed, _tei),
)


def make_app(service: Service, *, key: str = "") -> Starlette:
    """A server as an ASGI application.

    Args:
        service: what it serves; it is closed when the application ends.
        key: what callers send as `Authorization: Bearer KEY`; anyone may call if it is "".
            `/health`, `/ready` and `/metrics` are open in any case.
    Raises:
        ValueError: for a key that no header can hold.
    """
    _check_key(key)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        if service.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "stopping, or a worker hangs"}, status_code=503)

    async def metrics(request: Request) -> Response:
        return Response(service.telemetry.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(request: Request) -> Response:
        if not _allowed(request, key):
            return _refusal(_no_key(), _openai)
        names = [service.name, *(f"{service.name}:{side}" for side in SIDES)]
        known = [
            {"id": name, "object": "model", "created": 0, "owned_by": "e2rank"} for name in names
        ]
        return JSONResponse({"object": "list", "data": known})

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm)
        looking = asyncio.create_task(_keep_fresh(service))
        yield
        looking.cancel()
        await asyncio.to_thread(service.close)

    posts = [Route(post.path, _endpoint(post, service, key), methods=["POST"]) for post in _POSTS]
    gets = {"/health": health, "/ready": ready, "/metrics": metrics, "/v1/models": models}
    app = Starlette(
        routes=[*posts, *(Route(path, answer) for path, answer in gets.items())],
        exception_handlers={HTTPException: _nowhere},
        lifespan=life,
    )
    # A path with a stroke at its end is another one, as any that is not served.
    app.router.redirect_slashes = False
    return app


def _endpoint(post: _Post, service: Service, key: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        start = time.perf_counter()
        try:
            found = await _answered(request, post, service, key)
            # Beside the loop, as writing many numbers takes long.
            response: Response = await asyncio.to_thread(JSONResponse, found)
        except Refused as refused:
            response = _refusal(refused, post.error)
        except (ClientGone, ClientDisconnect):
            response = Response(status_code=_GONE)
        except asyncio.CancelledError:
            # The server ends, and this took longer than that may.
            retry = {"Retry-After": str(RETRY_AFTER)}
            response = _refusal(Refused(503, "the server is stopping", retry), post.error)
        service.telemetry.answered(post.path, response.status_code, time.perf_counter() - start)
        return response

    return answer


async def _answered(request: Request, post: _Post, service: Service, key: str) -> wires.Json:
    """What a request asks for.

    Raises:
        Refused: with the reason, whatever went wrong.
        ClientGone: if nobody waits for it any more.
    """
    if not _allowed(request, key):
        raise _no_key()
    body = await _read(request, post.most, service.seconds)
    fields = Fields(body) if len(body) < _SMALL else await asyncio.to_thread(Fields, body)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        return await post.answer(fields, Caller(service, gone))
    except (Refused, ClientGone):
        raise
    except Exception as error:  # whatever it is, the others are served
        raise _fault(error, post.path) from error
    finally:
        gone.cancel()


def _fault(error: Exception, path: str) -> Refused:
    """What a caller is told of an error: all, if the request is at fault, else nothing."""
    if isinstance(error, MissingExtra):
        return Refused(501, f"this server lacks what that takes: {error}")
    # Its kinds are the server's fault: a damaged index, an adapter of another model.
    if type(error) is ValueError:
        _log.info("%s refused: %s", path, error)
        return Refused(400, str(error))
    _log.error("%s failed", path, exc_info=error)
    return Refused(500, f"{type(error).__name__} on the server, whose log says more")


async def _read(request: Request, most: int, seconds: float) -> bytes:
    """The body, as long as it is not too large, and comes in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Refused(
                        413, f"the body is larger than {most >> 20} MiB; send several requests"
                    )
    except TimeoutError:
        raise Refused(408, f"the body did not come within {seconds:g} s") from None
    return bytes(body)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _allowed(request: Request, key: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), key.encode())
    return not key or (scheme.lower() == "bearer" and right)


def _check_key(key: str) -> None:
    if not all("!" <= letter <= "~" for letter in key):
        raise ValueError("the key has a blank or a letter that is not ASCII: no header can hold it")


def _no_key() -> Refused:
    return Refused(
        401,
        "the key is missing or another; send the header Authorization: Bearer KEY",
        {"WWW-Authenticate": "Bearer"},
    )


def _refusal(refused: Refused, shape: Shape) -> Response:
    content = shape(refused.status, refused.message)
    return JSONResponse(content, status_code=refused.status, headers=refused.headers)


async def _nowhere(request: Request, error: Exception) -> Response:
    """An address or a method that is not served."""
    error = cast(HTTPException, error)  # what it is registered for
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(
        _openai(error.status_code, message), status_code=error.status_code, headers=error.headers
    )


async def _keep_fresh(service: Service) -> None:
    """Look for newer commits until cancelled."""
    while True:
        await asyncio.sleep(REFRESH)
        await asyncio.to_thread(service.refresh)
