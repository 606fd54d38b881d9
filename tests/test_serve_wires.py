"""What a server answers is what the engine gives, in the shapes that clients know."""

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from e2rank import Document, Engine
from e2rank.encoders.hashing import HashingEncoder
from e2rank.serve import Service, make_app
from e2rank.serve.fields import MOST_BYTES, MOST_TEXTS
from e2rank.serve.work import EmbedWork

QUERY = "heat transfer in the boundary layer"
TEXTS = ["wings stall", "the boundary layer of a flat plate", "heat", "flutter of panels"]


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(make_app(Service(engine))) as client:
        yield client


def post(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def plain(hits: Any) -> list[dict[str, Any]]:
    return [hit.to_dict() for hit in hits]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "rerank": False},
        {"rerank": "prf", "depth": 7, "feedback_rounds": 1, "fuse": 0.5},
        {"rerank": "listwise", "shown": 4, "prompt": "text"},
        {"gather": "dense+bm25", "k": 5},
        {"collapse": "year", "k": 5},
        {"collapse": False, "k": 5},
    ],
)
def test_search_gives_the_hits_of_the_engine(
    client: TestClient, engine: Engine, options: dict[str, Any]
) -> None:
    found = post(client, "/search", query=QUERY, **options)
    assert found["hits"] == plain(engine.search(QUERY, **options))
    assert found["query"] == QUERY
    assert found["model_calls"] >= 1
    assert "total" in found["timings"]


def test_several_queries_give_what_each_gives_however_many(
    client: TestClient, engine: Engine
) -> None:
    queries = [f"{word} flow {n}" for n in range(20) for word in ("heat", "slip", "free")]
    found = post(client, "/search", queries=queries, k=2, rerank=False)["results"]
    assert [each["hits"] for each in found] == [
        plain(hits) for hits in engine.search_many(queries, 2, rerank=False)
    ]


def test_a_vector_is_searched_in_a_querys_place(client: TestClient, engine: Engine) -> None:
    vector = engine.vectors(["3"])[0]
    found = post(client, "/search", vector=vector.tolist(), rerank=False, k=4)
    assert found["hits"] == plain(engine.search(vector, 4, rerank=False))
    assert found["hits"][0]["id"] == "3"


def test_a_filter_may_be_an_object_or_a_text(tmp_path: Path) -> None:
    documents = [Document(str(n), f"wing {n}", metadata={"year": n}) for n in range(9)]
    with Engine.build(documents, tmp_path / "i", "hashing") as engine:
        service = Service(engine)
        with TestClient(make_app(service)) as client:
            for where in ({"year": {">=": 7}}, "year >= 7"):
                found = post(client, "/search", query="wing", where=where)
                assert {hit["id"] for hit in found["hits"]} == {"7", "8"}


@pytest.mark.parametrize("side", ["query", "document"])
def test_embeddings_are_the_encoders_in_both_formats(
    client: TestClient, engine: Engine, side: str
) -> None:
    texts = [f"text {n} " * n for n in range(1, 80)]
    encode = {"query": engine.encoder.encode_queries, "document": engine.encoder.encode_documents}
    expected = encode[side](texts)
    found = post(
        client, "/v1/embeddings", input=texts, input_type=side, model="hashing-256", user="u"
    )
    assert [each["index"] for each in found["data"]] == list(range(79))
    made = np.array([each["embedding"] for each in found["data"]], dtype=np.float32)
    np.testing.assert_array_equal(made, expected.vectors)
    assert found["usage"] == {
        "prompt_tokens": expected.tokens,
        "total_tokens": expected.tokens,
    }
    packed = post(client, "/v1/embeddings", input=texts, input_type=side, encoding_format="base64")
    for one, row in zip(packed["data"], expected.vectors, strict=True):
        read = np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4")
        np.testing.assert_array_equal(read, row)


def test_of_requests_read_together_each_names_its_own_texts_that_were_cut() -> None:
    class Short(HashingEncoder):
        def encode_documents(self, texts: Any, want: Any = None) -> Any:
            cut = tuple(place for place, text in enumerate(texts) if "long" in text)
            return dataclasses.replace(super().encode_documents(texts), truncated=cut)

    work = EmbedWork(Engine(Short()), "document")
    one, other = work([["a wing", "too long"], ["heat", "a panel", "as long"]])
    assert (one.truncated, other.truncated) == ((1,), (2,))


def test_one_text_is_embedded_as_a_list_of_one(client: TestClient) -> None:
    one = post(client, "/v1/embeddings", input="a wing")
    assert one["data"] == post(client, "/v1/embeddings", input=["a wing"])["data"]
    assert one["object"] == "list"
    assert one["model"] == "hashing-256"


def test_texts_that_were_cut_are_named(engine: Engine) -> None:
    class Short(HashingEncoder):
        def encode_documents(self, texts: Any, want: Any = None) -> Any:
            cut = tuple(place for place, text in enumerate(texts) if len(text) > 20)
            return dataclasses.replace(super().encode_documents(texts), truncated=cut)

    texts = ["short"] * 70
    texts[3] = texts[40] = "a text that is longer than that"
    with TestClient(make_app(Service(Engine(Short())))) as client:
        assert post(client, "/v1/embeddings", input=texts)["truncated"] == [3, 40]
        assert post(client, "/v1/rerank", query="a", documents=texts)["truncated"] == 2
        assert len(post(client, "/embed", inputs=texts)) == 70
        refused = client.post("/embed", json={"inputs": texts, "truncate": False})
        assert refused.status_code == 413
        assert "text 3 is longer" in refused.json()["error"]
        refused = client.post("/rerank", json={"query": "a", "texts": texts, "truncate": False})
        assert refused.status_code == 413
        assert "e2rank_truncated_total 10.0" in client.get("/metrics").text


@pytest.mark.parametrize("how", [None, True, False, "prf", "listwise"])
def test_rerank_as_jina_has_it_ranks_as_the_engine_does(
    client: TestClient, engine: Engine, how: Any
) -> None:
    found = post(client, "/v1/rerank", query=QUERY, documents=TEXTS, rerank=how)
    ranked = engine.rank(QUERY, TEXTS, rerank=True if how is None else how, fuse=1.0)
    assert found["results"] == [
        {
            "index": each["corpus_id"],
            "relevance_score": each["score"],
            "document": {"text": TEXTS[each["corpus_id"]]},
        }
        for each in ranked
    ]
    assert found["model"] == "hashing-256"
    assert found["usage"]["total_tokens"] > 0


def test_rerank_returns_so_many_and_without_documents_if_asked(client: TestClient) -> None:
    whole = post(client, "/v1/rerank", query=QUERY, documents=TEXTS)["results"]
    objects = [{"text": text, "id": str(n)} for n, text in enumerate(TEXTS)]
    few = post(
        client, "/v1/rerank", query=QUERY, documents=objects, top_n=2, return_documents=False
    )
    assert few["results"] == [
        {key: each[key] for key in ("index", "relevance_score")} for each in whole[:2]
    ]


def test_rerank_as_cohere_has_it(client: TestClient, engine: Engine) -> None:
    found = post(client, "/v2/rerank", model="hashing-256", query=QUERY, documents=TEXTS, top_n=3)
    ranked = engine.rank(QUERY, TEXTS, 3, fuse=1.0)
    assert found["results"] == [
        {"index": each["corpus_id"], "relevance_score": each["score"]} for each in ranked
    ]
    assert found["meta"]["api_version"] == {"version": "2"}
    # Clients send it; it may not ask for less than the model reads.
    whole = {"query": QUERY, "documents": TEXTS, "top_n": 10**6, "max_tokens_per_doc": 10**6}
    assert len(post(client, "/v2/rerank", **whole)["results"]) == len(TEXTS)
    refused = client.post("/v2/rerank", json={**whole, "max_tokens_per_doc": 7})
    assert "'max_tokens_per_doc' is 7" in refused.json()["message"]


def test_rerank_as_text_embeddings_inference_has_it(client: TestClient, engine: Engine) -> None:
    asked = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "truncate": True}
    found = post(client, "/rerank", **asked, return_text=True)
    assert found == [
        {"index": each["corpus_id"], "score": each["score"], "text": TEXTS[each["corpus_id"]]}
        for each in engine.rank(QUERY, TEXTS, fuse=1.0)
    ]
    assert "text" not in post(client, "/rerank", **asked)[0]


def test_rerank_by_one_address_tells_the_shapes_apart(client: TestClient) -> None:
    jina = post(client, "/rerank", query=QUERY, documents=TEXTS)
    assert jina["results"] == post(client, "/v1/rerank", query=QUERY, documents=TEXTS)["results"]


def test_ranking_no_documents_gives_none(client: TestClient) -> None:
    assert post(client, "/v1/rerank", query=QUERY, documents=[])["results"] == []
    assert post(client, "/rerank", query=QUERY, texts=[]) == []


def test_embed_as_text_embeddings_inference_has_it(client: TestClient, engine: Engine) -> None:
    for side, encode in (
        ("query", engine.encoder.encode_queries),
        ("document", engine.encoder.encode_documents),
    ):
        found = post(client, "/embed", inputs=TEXTS, prompt_name=side, normalize=True)
        np.testing.assert_array_equal(np.array(found, dtype=np.float32), encode(TEXTS).vectors)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/search", {}, "'query' is missing"),
        ("/search", {"query": " "}, "not blank"),
        ("/search", {"query": ["a"]}, "not blank"),
        ("/search", {"queries": ["a", " "]}, "query 1"),
        ("/search", {"query": "a", "queries": ["b"]}, "exclude"),
        ("/search", {"query": "a", "vector": [1.0]}, "exclude"),
        ("/search", {"vector": ["a"] * 256, "rerank": False}, "list of 256 numbers"),
        ("/search", {"vector": [1.0], "rerank": False}, "list of 256 numbers"),
        ("/search", {"vector": [1e300] * 256, "rerank": False}, "float32 can hold"),
        ("/search", {"vector": [10**400] * 256, "rerank": False}, "float32 can hold"),
        ("/search", {"vector": [0] * 256, "rerank": False}, "not all 0"),
        ("/search", {"vector": [1.0] * 256}, "a vector has none"),
        ("/search", {"query": "a", "k": 0}, "'k' is 0"),
        ("/search", {"query": "a", "k": 2.0}, "whole number"),
        ("/search", {"query": "a", "k": True}, "whole number"),
        ("/search", {"query": "a", "k": 10**6}, "from 1 to 1,000"),
        ("/search", {"query": "a", "depth": 1001}, "from 1 to 1,000"),
        ("/search", {"query": "a", "fuse": 10**400}, "from 0 to 1"),
        ("/search", {"query": "a", "gather": "+".join(["dense"] * 99)}, "200 characters"),
        ("/search", {"query": "a", "collapse": 3}, "'collapse' is 3"),
        ("/search", {"query": "a", "collapse": True}, "200 characters, or false"),
        ("/search", {"query": "a", "topk": 3}, "'topk' is not known"),
        ("/search", {"query": "a", "rerank": 1}, "'rerank' is 1"),
        ("/search", {"query": "a", "rerank": "bert"}, "'rerank' is 'bert'"),
        ("/search", {"query": "a", "gather": "nothing"}, "gather is 'nothing'"),
        ("/search", {"query": "a", "gather": ["dense"]}, "a string of"),
        ("/search", {"query": "a", "gather": "sparse"}, "sparse"),
        ("/search", {"query": "a", "fuse": 2}, "from 0 to 1"),
        ("/search", {"query": "a", "where": "year >"}, "filter"),
        ("/search", {"query": "a", "where": 3}, "'where' is 3"),
        ("/search", {"query": "half \ud800"}, "surrogate"),
        ("/v1/embeddings", {"input": []}, "at least one text"),
        ("/v1/embeddings", {"input": [[1, 2]]}, "check_embedding_ctx_length=False"),
        (
            "/v1/embeddings",
            {"input": "a", "input_type": "query", "task": "retrieval.passage"},
            "both",
        ),
        ("/v1/embeddings", {"input": "a", "input_type": "image"}, "'input_type' is 'image'"),
        ("/v1/embeddings", {"input": [1, 2]}, "ids of tokens"),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, "'dimensions' is 8"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "'encoding_format'"),
        ("/v1/embeddings", {"input": "a", "taks": "query"}, "'taks' is not known"),
        ("/v1/embeddings", {"input": ["half \ud800"]}, "surrogate"),
        ("/v1/rerank", {"query": "a"}, "'documents' is missing"),
        ("/v1/rerank", {"query": "a", "documents": "b"}, "list of texts"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "list of texts"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "'top_n' is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_and_says_why(
    client: TestClient, path: str, body: dict[str, Any], word: str
) -> None:
    # Escaped, as half a surrogate pair can be sent no other way.
    answer = client.post(path, content=json.dumps(body))
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]["message"]


def test_each_shape_has_errors_of_its_own(client: TestClient) -> None:
    assert client.post("/v2/rerank", json={}).json() == {"message": "'query' is missing"}
    assert client.post("/embed", json={}).json() == {
        "error": "'inputs' is missing",
        "error_type": "Validation",
    }
    assert client.post("/rerank", json={"texts": []}).json()["error"] == "'query' is missing"
    assert client.post("/v1/embeddings", json={}).json() == {
        "error": {
            "message": "'input' is missing",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
        "detail": "'input' is missing",
    }


@pytest.mark.parametrize("body", ["", "[]", "{", '{"query": NaN}', "nul", "[" * 10**5, '"a"'])
def test_a_body_that_is_no_json_object_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/search", content=body)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_too_much_is_refused(client: TestClient) -> None:
    for path, most in (("/v1/embeddings", MOST_BYTES), ("/search", 1 << 20)):
        answer = client.post(path, content=b" " * (most + 1))
        assert answer.status_code == 413
        assert f"larger than {most >> 20} MiB" in answer.json()["error"]["message"]
    answer = client.post("/v1/embeddings", json={"input": ["a"] * (MOST_TEXTS + 1)})
    assert answer.status_code == 413
    answer = client.post("/search", json={"queries": ["a"] * 11, "k": 1000})
    assert answer.status_code == 413
    assert "10,000 hits in all" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v2/rerank"])
def test_another_model_is_not_answered_for(client: TestClient, path: str) -> None:
    body = {"model": "text-embedding-3-small", "input": "a", "query": "a", "documents": ["b"]}
    answer = client.post(path, json=body)
    assert answer.status_code == 404
    assert "'hashing-256' is" in answer.text
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [
        "hashing-256",
        "hashing-256:query",
        "hashing-256:document",
    ]


def test_the_model_may_be_served_under_another_name(engine: Engine) -> None:
    with TestClient(make_app(Service(engine, name="ours"))) as client:
        assert post(client, "/v1/embeddings", input="a", model="ours")["model"] == "ours"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/search", 405), ("POST", "/x", 404), ("POST", "/search/", 404)],
)
def test_another_address_or_method_is_refused_in_json(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]


def test_without_an_index_texts_are_embedded_and_ranked_only() -> None:
    with TestClient(make_app(Service(Engine("hashing")))) as client:
        assert len(post(client, "/embed", inputs="a")) == 1
        answer = client.post("/search", json={"query": "a"})
        assert answer.status_code == 404
        assert "e2rank serve FOLDER" in answer.json()["error"]["message"]


def test_only_who_has_the_key_is_answered(engine: Engine) -> None:
    with TestClient(make_app(Service(engine), key="secret")) as client:
        wrong = ("Bearer other", "secret", "Bearer secretX", "Bearer secre", "Basic secret")
        for header in ({}, *({"Authorization": each} for each in wrong)):
            for answer in (
                client.post("/search", json={"query": "a"}, headers=header),
                client.get("/v1/models", headers=header),
            ):
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for given in ("Bearer secret", "bearer secret"):
            header = {"Authorization": given}
            assert client.post("/search", json={"query": "a"}, headers=header).status_code == 200
        assert client.get("/health").status_code == client.get("/ready").status_code == 200


@pytest.mark.parametrize("key", ["two words", "schlüssel", "line\n"])
def test_a_key_that_no_caller_can_send_is_refused_at_once(engine: Engine, key: str) -> None:
    service = Service(engine)
    with pytest.raises(ValueError, match="no header can hold it"):
        make_app(service, key=key)
    service.close()


@pytest.mark.parametrize(("waiting", "seconds"), [(0, 1.0), (1, 0.0), (1, 1e12), (1, float("nan"))])
def test_a_server_that_could_not_serve_is_refused(
    engine: Engine, waiting: int, seconds: float
) -> None:
    with pytest.raises(ValueError, match="requests may wait"):
        Service(engine, waiting=waiting, seconds=seconds)


class Sided(HashingEncoder):
    """Queries have other vectors than documents."""

    def encode_queries(self, texts: Any) -> Any:
        return super().encode_queries([f"query {text}" for text in texts])


def test_the_models_name_can_choose_the_side_for_clients_that_know_no_other_way() -> None:
    encoder = Sided()
    with TestClient(make_app(Service(Engine(encoder), name="m"))) as client:
        for model, encode in (
            ("m", encoder.encode_documents),
            ("m:document", encoder.encode_documents),
            ("m:query", encoder.encode_queries),
        ):
            (one,) = post(client, "/v1/embeddings", input="a wing", model=model)["data"]
            np.testing.assert_array_equal(
                np.array(one["embedding"], np.float32), encode(["a wing"]).vectors[0]
            )
        for task in ("retrieval.query", "retrieval.passage"):
            post(client, "/v1/embeddings", input="a wing", task=task)
        refused = client.post(
            "/v1/embeddings", json={"input": "a", "model": "m:query", "input_type": "document"}
        )
        assert refused.status_code == 400


def test_embed_as_cohere_has_it(client: TestClient, engine: Engine) -> None:
    asked = {"model": "hashing-256", "embedding_types": ["float"], "truncate": "END"}
    for side, encode in (
        ("search_query", engine.encoder.encode_queries),
        ("search_document", engine.encoder.encode_documents),
    ):
        found = post(client, "/v2/embed", texts=TEXTS, input_type=side, **asked)
        made = np.array(found["embeddings"]["float"], dtype=np.float32)
        np.testing.assert_array_equal(made, encode(TEXTS).vectors)
        assert found["texts"] == TEXTS
    refused = client.post("/v2/embed", json={"texts": ["a"], "embedding_types": ["int8"]})
    assert "'embedding_types'" in refused.json()["message"]


def test_scores_of_a_rerank_do_not_depend_on_the_rest_of_its_list(client: TestClient) -> None:
    alone = post(client, "/v1/rerank", query=QUERY, documents=TEXTS[:1])["results"][0]
    among = post(client, "/v1/rerank", query=QUERY, documents=TEXTS, rerank="cosine")["results"]
    (same,) = (each for each in among if each["index"] == 0)
    alone_too = post(client, "/v1/rerank", query=QUERY, documents=TEXTS[:1], rerank="cosine")
    assert same["relevance_score"] == alone_too["results"][0]["relevance_score"]
    assert -1 <= alone["relevance_score"] <= 1


def test_a_long_list_is_read_in_parts_between_which_others_have_a_turn(engine: Engine) -> None:
    texts = [f"text {n} of a wing" for n in range(70)]
    service = Service(engine)
    with TestClient(make_app(service)) as client:
        found = post(client, "/v1/rerank", query=QUERY, documents=texts)["results"]
        assert [each["index"] for each in found] == [
            each["corpus_id"] for each in engine.rank(QUERY, texts, fuse=1.0)
        ]
        counts = client.get("/metrics").text
        # Three parts are split, and three read, before they are ranked.
        assert 'e2rank_batch_size_count{worker="texts"} 7.0' in counts
        post(client, "/embed", inputs=texts)
        assert 'e2rank_batch_size_count{worker="texts"} 10.0' in client.get("/metrics").text
        post(client, "/search", queries=texts, k=1)
        assert 'e2rank_batch_size_count{worker="search"} 3.0' in client.get("/metrics").text


def test_what_is_asked_and_read_is_counted(engine: Engine) -> None:
    with TestClient(make_app(Service(engine))) as client:
        post(client, "/search", query="a wing")
        client.post("/search", json={})
        counts = client.get("/metrics").text
    assert 'e2rank_requests_total{path="/search",status="200"} 1.0' in counts
    assert 'e2rank_requests_total{path="/search",status="400"} 1.0' in counts
    assert 'e2rank_request_seconds_count{path="/search"} 2.0' in counts
    assert 'e2rank_batch_size_sum{worker="search"} 1.0' in counts
    assert f"e2rank_documents {float(len(engine))}" in counts
    assert "e2rank_commit 1.0" in counts
    tokens = next(line for line in counts.splitlines() if line.startswith("e2rank_tokens_total"))
    assert float(tokens.split()[1]) > 0
