"""A real server on a real socket: what is taken is answered, and what goes wrong stays small."""

import http.client
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from e2rank import Document, Engine
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import EncoderMismatch, IndexFormatError, MissingExtra
from e2rank.serve import Service, app, configured, listen, make_app
from e2rank.serve.fields import MOST_TEXTS


class Slow(HashingEncoder):
    """Reads queries when it may, and none that is bad."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may = threading.Event(), threading.Event()
        self.read: list[str] = []

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        self.read += texts
        self.begun.set()
        assert self.may.wait(10)
        if any("bad" in text for text in texts):
            raise RuntimeError("weights at /secret/place are bad")
        return super().encode_queries(texts)


def ask(address: tuple[str, int], path: str, body: Any = None) -> tuple[int, Any]:
    """The status, and what the JSON of the answer says."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body))
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, json.loads(read) if read else None


@contextmanager
def serving(engine: Engine, **options: Any) -> Iterator[tuple[uvicorn.Server, tuple[str, int]]]:
    """A server in a thread, and where it is."""
    with listen("127.0.0.1", 0) as listening:
        service = Service(engine, **options)
        # Warm already: the encoder of these tests waits to be told.
        service.warm = lambda: None  # type: ignore[method-assign]
        server = uvicorn.Server(configured(make_app(service), service.seconds))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started)
            yield server, listening.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, address: tuple[str, int], query: str) -> None:
        super().__init__()
        self._asked, self.answer = (address, query), (0, None)
        self.start()

    def run(self) -> None:
        address, query = self._asked
        self.answer = ask(address, "/search", {"query": query, "rerank": False, "k": 1})


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Slow, Engine]]:
    encoder = Slow()
    with Engine.build(
        [Document("a", "a wing"), Document("b", "heat")], tmp_path / "i", encoder
    ) as e:
        yield encoder, e
    encoder.may.set()


SLOW = """
import sys, time
from e2rank import Engine
from e2rank.encoders.hashing import HashingEncoder
from e2rank.serve import Service, run

class Slow(HashingEncoder):
    def encode_documents(self, texts):
        if any("wait" in text for text in texts):
            print("begun", file=sys.stderr, flush=True)
            time.sleep(float(sys.argv[1]))
        return super().encode_documents(texts)

import logging
logging.basicConfig(format="%(message)s", level=logging.INFO)
run(Service(Engine(Slow()), seconds=float(sys.argv[2])), port=0)
"""


@pytest.mark.parametrize(("work", "parts", "status"), [(0.7, 1, 200), (0.4, 9, 503)])
def test_sigterm_lets_end_what_ends_in_time_and_tells_the_others_to_come_back(
    work: float, parts: int, status: int
) -> None:
    words = [sys.executable, "-c", SLOW, str(work), "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        address = said(process)
        answers: list[tuple[int, Any]] = []
        body = {"inputs": ["wait"] * 32 * parts}
        asking = threading.Thread(target=lambda: answers.append(ask(address, "/embed", body)))
        asking.start()
        while "begun" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        asking.join(20)
        assert process.wait(20) == -signal.SIGTERM
    ((found, content),) = answers
    assert found == status
    if status == 503:
        assert content == {"error": "the server is stopping", "error_type": "Overloaded"}


def test_an_answer_does_not_wait_for_an_acknowledgement(engine: Engine) -> None:
    with listen("127.0.0.1", 0) as listening:
        # What asyncio looks at before it sends small packets at once.
        assert listening.proto == socket.IPPROTO_TCP


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(engine: Engine) -> None:
    with serving(engine, seconds=0.2) as (_, address), socket.create_connection(address) as half:
        half.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        half.settimeout(10)
        assert b" 408 " in half.recv(100)


@pytest.mark.parametrize("sent", [b"", b"P", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_request_that_does_not_come_is_not_waited_for_for_ever(
    engine: Engine, sent: bytes, before: int
) -> None:
    with serving(engine, seconds=0.2) as (_, address), socket.create_connection(address) as idle:
        idle.settimeout(10)
        for _ in range(before):
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while not got.endswith(b'{"status":"ok"}'):
                got += idle.recv(1000)
        idle.sendall(sent)
        assert idle.recv(100) == b""


def test_an_answer_that_nobody_reads_is_not_kept() -> None:
    engine = Engine(HashingEncoder(1024))
    texts = [f"text {n}" for n in range(MOST_TEXTS)]
    body = json.dumps({"input": texts}).encode()
    with serving(engine, seconds=1.0) as (server, address), socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(address)
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        until(lambda: bool(server.server_state.connections))
        until(lambda: not server.server_state.connections)


def test_a_connection_too_many_is_told_so_at_once_though_none_sends_a_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 66 descriptors 64 are for other files.
    monkeypatch.setattr(resource, "getrlimit", lambda _: (66, 1024))
    with serving(engine) as (server, address), ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(address))
        until(lambda: len(server.server_state.connections) == 2)
        with socket.create_connection(address, timeout=10) as third:
            answer = third.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error_type"] == "Overloaded"
        stack.close()
        until(lambda: not server.server_state.connections)
        assert ask(address, "/health")[0] == 200


def test_a_server_that_is_told_to_end_answers_what_it_has_taken_first(
    slow: tuple[Slow, Engine],
) -> None:
    encoder, engine = slow
    with serving(engine) as (server, address):
        asked = [Asking(address, f"wing {n}") for n in range(3)]
        until(lambda: encoder.begun.is_set())
        until(lambda: len(server.server_state.tasks) == 3)
        server.should_exit = True
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            ask(address, "/health")
        encoder.may.set()
        for each in asked:
            each.join(20)
    assert [each.answer[0] for each in asked] == [200] * 3


def test_queries_that_come_while_the_model_is_busy_are_read_together(
    slow: tuple[Slow, Engine],
) -> None:
    encoder, engine = slow
    with serving(engine) as (_, address):
        first = Asking(address, "wing")
        until(lambda: encoder.begun.is_set())
        more = [Asking(address, f"heat {n}") for n in range(5)]
        metrics = service_waits(address)
        until(lambda: metrics() == 5)
        encoder.may.set()
        for each in (first, *more):
            each.join(20)
            assert each.answer[0] == 200
        assert first.answer[1]["hits"][0]["id"] == "a"
        assert {each.answer[1]["hits"][0]["id"] for each in more} == {"b"}
        text = metrics_of(address)
    assert 'e2rank_batch_size_count{worker="search"} 2.0' in text
    assert 'e2rank_batch_size_sum{worker="search"} 6.0' in text


def test_one_request_that_breaks_the_model_costs_no_other_its_answer(
    slow: tuple[Slow, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    encoder, engine = slow
    with serving(engine) as (_, address):
        first = Asking(address, "wing")
        until(lambda: encoder.begun.is_set())
        more = [Asking(address, query) for query in ("heat", "bad", "wing")]
        waiting = service_waits(address)
        until(lambda: waiting() == 3)
        encoder.may.set()
        for each in (first, *more):
            each.join(20)
        assert [each.answer[0] for each in (first, *more)] == [200, 200, 500, 200]
        told = more[1].answer[1]["error"]["message"]
        assert "log" in told
        assert "secret" not in told
        assert ask(address, "/search", {"query": "wing"})[0] == 200
    assert "/secret/place" in caplog.text


def test_more_than_may_wait_are_told_to_come_back(slow: tuple[Slow, Engine]) -> None:
    encoder, engine = slow
    with serving(engine, waiting=2) as (_, address):
        first = Asking(address, "wing")
        until(lambda: encoder.begun.is_set())
        more = [Asking(address, "heat") for _ in range(2)]
        waiting = service_waits(address)
        until(lambda: waiting() == 2)
        connection = http.client.HTTPConnection(*address)
        connection.request("POST", "/search", json.dumps({"query": "a"}))
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        # Plain texts have a worker of their own, and so does the server's state.
        assert ask(address, "/embed", {"inputs": "a"})[0] == 200
        assert ask(address, "/health")[0] == 200
        encoder.may.set()
        for each in (first, *more):
            each.join(20)
            assert each.answer[0] == 200


def test_a_caller_that_hangs_up_is_not_worked_for(slow: tuple[Slow, Engine]) -> None:
    encoder, engine = slow
    with serving(engine) as (_, address):
        first = Asking(address, "wing")
        until(lambda: encoder.begun.is_set())
        left = socket.create_connection(address)
        body = json.dumps({"query": "nobody waits"}).encode()
        head = f"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        left.sendall(head.encode() + body)
        waiting = service_waits(address)
        until(lambda: waiting() == 1)
        left.close()
        until(lambda: waiting() == 0)
        encoder.may.set()
        first.join(20)
        assert first.answer[0] == 200
        assert 'status="499"} 1.0' in metrics_of(address)
    assert "nobody waits" not in encoder.read


def test_a_worker_that_hangs_makes_the_server_unready_but_not_dead(
    slow: tuple[Slow, Engine],
) -> None:
    encoder, engine = slow
    with serving(engine, seconds=0.2) as (_, address):
        assert ask(address, "/ready")[0] == 200
        first = Asking(address, "wing")
        first.join(20)
        assert first.answer[0] == 503
        assert ask(address, "/ready")[0] == 503
        assert ask(address, "/health")[0] == 200
        encoder.may.set()
        until(lambda: ask(address, "/ready")[0] == 200)


def metrics_of(address: tuple[str, int]) -> str:
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def service_waits(address: tuple[str, int]) -> Callable[[], int]:
    """Asks how many searches wait."""

    def waits() -> int:
        (line,) = (
            line
            for line in metrics_of(address).splitlines()
            if line.startswith('e2rank_waiting{worker="search"}')
        )
        return int(float(line.split()[1]))

    return waits


def test_what_another_process_commits_is_found_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "REFRESH", 0.01)
    Engine.build([Document("a", "a wing")], tmp_path / "i", "hashing").close()
    with (
        Engine.open(tmp_path / "i", read_only=True) as engine,
        TestClient(make_app(Service(engine))) as client,
    ):
        with Engine.open(tmp_path / "i") as writer:
            writer.add([Document("b", "heat of a layer")])
        until(lambda: "e2rank_documents 2.0" in client.get("/metrics").text)
        found = client.post("/search", json={"query": "heat layer", "rerank": False, "k": 1})
        assert found.json()["hits"][0]["id"] == "b"


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("k is 0; it must be at least 1"), 400, "k is 0"),
        (IndexFormatError("/secret/rows.npy is damaged"), 500, "IndexFormatError on the server"),
        (EncoderMismatch("/secret is of another"), 500, "EncoderMismatch on the server"),
        (OSError(5, "bad disk", "/secret"), 500, "OSError on the server"),
        (MissingExtra("bm25s", extra="bm25"), 501, "pip install 'e2rank[bm25]'"),
    ],
)
def test_callers_are_told_what_they_can_mend_and_the_log_the_rest(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    told: str,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with TestClient(make_app(Service(engine))) as client:
        monkeypatch.setattr(engine, "search_many", fail)
        answer = client.post("/search", json={"query": "a"})
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    logged = [record for record in caplog.records if record.exc_info]
    assert bool(logged) == (status == 500)


def test_a_rerank_that_fails_is_counted_and_names_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaking(HashingEncoder):
        def encode_prompts(self, queries: Any, documents: Any) -> Any:
            if queries == ["wing"]:
                raise OSError(5, "bad disk", "/secret/weights")
            return super().encode_prompts(queries, documents)

    with (
        Engine.build([Document("a", "a wing")], tmp_path / "i", Breaking()) as engine,
        TestClient(make_app(Service(engine))) as client,
    ):
        found = client.post("/search", json={"query": "wing"})
        assert found.json()["rerank_error"]
        assert "secret" not in found.text
        assert "e2rank_rerank_failures_total 1.0" in client.get("/metrics").text
    assert "/secret/weights" in caplog.text


def test_a_server_is_ready_from_its_start_to_its_end(engine: Engine) -> None:
    service = Service(engine)
    with TestClient(make_app(service)) as client:
        assert client.get("/ready").status_code == 200
        service.stopping = True
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
    # Its workers end with it.
    assert not any(lane.worker.is_alive() for lane in service.lanes)


def test_what_cannot_search_does_not_start(tmp_path: Path) -> None:
    Engine.build([Document("a", "a wing")], tmp_path / "i", "hashing").close()
    (documents,) = (tmp_path / "i").rglob("documents.sqlite")
    documents.write_bytes(documents.read_bytes()[:5000].ljust(documents.stat().st_size, b"x"))
    command = [sys.executable, "-m", "e2rank", "serve", str(tmp_path / "i"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "documents.sqlite is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapted_index_is_served_under_its_models_name(tmp_path: Path) -> None:
    Engine.build([Document("a", "a wing")], tmp_path / "i", "hashing").close()
    with Engine.open(tmp_path / "i", read_only=True) as engine:
        # As of an adapter, an encoder is called by the folder that it was loaded from.
        engine.encoder.name = str(tmp_path)  # type: ignore[misc]
        service = Service(engine)
        assert service.name == "hashing-256"
        service.close()


def test_a_commit_that_cannot_be_served_leaves_the_one_before_in_place_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Engine.build([Document("a", "a wing")], tmp_path / "i", "hashing").close()
    with Engine.open(tmp_path / "i", read_only=True) as engine:
        service = Service(engine)
        other = [Document("z", "another model")]
        Engine.build(other, tmp_path / "i", "hashing-64", overwrite=True).close()
        with caplog.at_level(logging.ERROR):
            service.refresh()
            service.refresh()
        assert [hit.id for hit in engine.search("wing")] == ["a"]
        assert b"e2rank_refresh_failures_total 2.0" in service.telemetry.text()
        service.close()
    assert len(caplog.records) == 1
    assert "cannot be read again" in caplog.text


def started(folder: Path, *options: str, **environment: str) -> tuple[Any, tuple[str, int]]:
    """`e2rank serve` in a process of its own, and where it says that it is."""
    command = [sys.executable, "-m", "e2rank", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    return process, said(process)


def said(process: "subprocess.Popen[str]") -> tuple[str, int]:
    """Where a server says that it is, once it is ready."""
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if " at http://" in line:
            host, port = line.split("http://")[1].strip().rsplit(":", 1)
            break
    else:
        raise AssertionError("".join(lines))
    address = (host, int(port))
    until(lambda: up(address))
    return address


def up(address: tuple[str, int]) -> bool:
    try:
        return ask(address, "/ready")[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "prometheus_client"])
def test_without_what_it_takes_the_command_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['serve']\n"
    code += "from e2rank.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: {missing} is not installed. Run: pip install 'e2rank[serve]'" in done.stderr


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    Engine.build([Document("a", "a wing")], tmp_path / "i", "hashing").close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", str(tmp_path / "i"), "--port", str(taken.getsockname()[1])]
        command = [sys.executable, "-m", "e2rank", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1 port {words[-1]}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_serves_until_sigterm(tmp_path: Path) -> None:
    Engine.build(
        [Document("a", "a wing"), Document("b", "heat")], tmp_path / "i", "hashing"
    ).close()
    process, address = started(tmp_path / "i", "--model", "ours")
    with process:
        status, found = ask(address, "/search", {"query": "heat", "k": 1})
        assert status == 200
        assert found["hits"][0]["id"] == "b"
        assert ask(address, "/v1/models")[1]["data"][0]["id"] == "ours"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert "Traceback" not in process.stderr.read()


def test_the_command_takes_the_key_from_the_environment(tmp_path: Path) -> None:
    Engine.build([Document("a", "a wing")], tmp_path / "i", "hashing").close()
    process, address = started(tmp_path / "i", E2RANK_API_KEY="secret")
    with process:
        assert ask(address, "/search", {"query": "heat"})[0] == 401
        process.send_signal(signal.SIGINT)
        # 0 where what started the tests ignores Ctrl-C, as a shell does for its background.
        assert process.wait(20) in (0, 130)
        assert "Traceback" not in process.stderr.read()


def test_a_commit_that_cannot_be_served_is_said_again_after_one_that_could(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def failing() -> bool:
        raise IndexFormatError("documents.sqlite is damaged")

    with Engine.build([Document("a", "a wing")], tmp_path / "i", HashingEncoder()) as engine:
        service = Service(engine)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(engine, "refresh", failing)
                service.refresh()
            service.refresh()
        service.close()
    assert [each.levelname for each in caplog.records] == ["ERROR"] * 2
