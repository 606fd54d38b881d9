"""A server of an index as it is written by hand, for bench_serve: a handler that calls the engine.

    python benchmarks/serve_peer.py WAY INDEX [BUNDLE]

`threads` gives each request a thread of Starlette's pool, as a handler that is no coroutine has
it; `locked` lets one search at a time. It prints its address.
"""

import sys
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from e2rank import Engine
from e2rank.serve import address, listen


def main() -> None:
    """Serve until ended."""
    way, index, *bundle = sys.argv[1:]
    engine = Engine.open(Path(index), *bundle)
    engine.search("warm")
    lock = threading.Lock()

    def found(body: dict[str, str]) -> dict[str, object]:
        if way == "threads":
            return engine.search(body["query"]).to_dict()
        with lock:
            return engine.search(body["query"]).to_dict()

    async def search(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(found, await request.json()))

    app = Starlette(routes=[Route("/search", search, methods=["POST"])])
    with listen("127.0.0.1", 0) as listening:
        print(address(listening), file=sys.stderr, flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
