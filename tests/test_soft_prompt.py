"""Prompts of vectors: stored vectors as soft tokens, through encoder, adapter, reranker, engine."""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import BERT, QWEN, abstracts, assert_close, made
from test_adapter import lora_weights
from train_support import bert_base

from e2rank import Candidates, Document, Engine
from e2rank.cli import main
from e2rank.contract import Contract
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.presets import MINILM, MINILM_ADAPTER, load_encoder
from e2rank.encoders.soft import _PACE, SoftPrompt
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import AdapterError
from e2rank.rerank.choose import choose
from e2rank.rerank.listwise import ListwiseReranker
from e2rank.rerank.plans import Full, Groups, Windows
from e2rank.scores import fuse, rank

QUERY = "heat transfer in the boundary layer of a slender wing"
SIZES = (2, 5)
COUNTS = (0, 3, 1, 5, 2)
GATE = 0.8
each_family = pytest.mark.parametrize("contract", [BERT, QWEN], ids=lambda each: each.family)


def soft_weights(encoder: TorchEncoder, gate: float) -> dict[str, torch.Tensor]:
    """A soft prompt of random weights, with the gate g opened this far."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        soft = SoftPrompt.on(encoder.tower)
    soft.gate.data.fill_(gate / _PACE)
    return {f"soft.{name}": each for name, each in soft.state_dict().items()}


@functools.cache
def base(contract: Contract = BERT, side: str = "right") -> TorchEncoder:
    return made(contract, side=side)


def adapter(contract: Contract = BERT, gate: float = GATE, **changes: Any) -> Adapter:
    """An adapter of the family's tiny model with a soft prompt, and updates where it is a BERT."""
    encoder = base(contract)
    updates = lora_weights() if contract.family == "bidirectional" else {}
    fields: dict[str, Any] = {
        "base": encoder.fingerprint,
        "base_name": "tiny",
        "contract": dataclasses.replace(contract, prompt="vectors", list_sizes=SIZES),
        "weights": soft_weights(encoder, gate) | updates,
        "lora_scale": 0.5,
        "about": {},
    }
    return Adapter(**fields | changes)


@functools.cache
def adapted(contract: Contract = BERT, gate: float = GATE, side: str = "right") -> TorchEncoder:
    return base(contract, side).adapt(adapter(contract, gate))


def asked_for(encoder: TorchEncoder) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Queries of several lengths, their vectors, and different numbers of document vectors."""
    queries = [f"wing {text[: 23 * place]}" for place, text in enumerate(abstracts(len(COUNTS)))]
    documents = encoder.encode_documents([text[:200] for text in abstracts(max(COUNTS))]).vectors
    shown = [documents[:count] for count in COUNTS]
    return queries, encoder.encode_queries(queries).vectors, shown


@each_family
def test_a_closed_gate_gives_the_plain_query_vector_exactly(contract: Contract) -> None:
    encoder = adapted(contract, 0.0)
    queries, asked, shown = asked_for(encoder)
    found = encoder.encode_vector_prompts(queries, asked, shown)
    np.testing.assert_array_equal(found.vectors, asked)
    opened = adapted(contract).encode_vector_prompts(queries, asked, shown).vectors
    assert np.abs(opened - asked)[1:].max(axis=1).min() > 1e-2


@each_family
def test_a_prompt_is_the_models_own_forward_of_query_and_soft_tokens(contract: Contract) -> None:
    encoder = adapted(contract)
    (query, *_), asked, shown = asked_for(encoder)
    weights = adapter(contract).weights
    one, two = ((weights[f"soft.project.{n}.weight"], weights[f"soft.project.{n}.bias"])
                for n in (0, 2))  # fmt: skip
    ids = torch.tensor([encoder.words.queries([query])[0].ids])
    model: Any = encoder.asking.model
    for vectors in shown:
        rows = torch.nn.functional.gelu(torch.tensor(vectors) * 32**0.5 @ one[0].T + one[1])
        rows = rows @ two[0].T + two[1]
        rows = rows / rows.norm(dim=1, keepdim=True) * weights["soft.log_size"].exp()
        with torch.inference_mode():
            words, soft = model.get_input_embeddings()(ids), rows[None]
            places = torch.arange(ids.shape[1])
            if contract.family == "decoder":
                joint = torch.cat([soft, words], 1)
                places = torch.arange(joint.shape[1])
            else:
                joint = torch.cat([words, soft], 1)
                places = torch.cat([places, torch.ones(len(vectors), dtype=torch.long)])
            hidden = model(inputs_embeds=joint, position_ids=places[None]).last_hidden_state[0]
        pooled = hidden[-1] if contract.family == "decoder" else hidden[: ids.shape[1]].mean(0)
        moved = torch.tensor(asked[0]) + GATE * pooled / pooled.norm()
        found = encoder.encode_vector_prompts([query], asked[:1], [vectors])
        assert_close(found.vectors[0], (moved / moved.norm()).numpy())
        assert found.tokens == ids.shape[1] + len(vectors)


def test_the_order_of_the_candidates_makes_no_difference_to_a_bidirectional_encoder() -> None:
    encoder = adapted()
    queries, asked, shown = asked_for(encoder)
    found = encoder.encode_vector_prompts(queries, asked, shown).vectors
    turned = encoder.encode_vector_prompts(queries, asked, [each[::-1].copy() for each in shown])
    assert_close(turned.vectors, found)
    fewer = encoder.encode_vector_prompts(queries, asked, [each[1:] for each in shown]).vectors
    # What they are does.
    assert np.abs(fewer - found)[1:].max(axis=1).min() > 1e-3


@each_family
def test_a_prompt_depends_neither_on_its_batch_nor_on_the_side_of_padding(
    contract: Contract,
) -> None:
    right, left = adapted(contract), adapted(contract, side="left")
    queries, asked, shown = asked_for(right)
    found = right.encode_vector_prompts(queries, asked, shown).vectors
    assert_close(left.encode_vector_prompts(queries, asked, shown).vectors, found)
    for place, query in enumerate(queries):
        own = slice(place, place + 1)
        assert_close(
            left.encode_vector_prompts([query], asked[own], shown[own]).vectors, found[own]
        )
    assert right.encode_vector_prompts([], asked[:0], []).vectors.shape == (0, 32)


@each_family
def test_soft_tokens_are_as_long_as_the_models_words(contract: Contract) -> None:
    encoder = base(contract)
    model: Any = encoder.tower.model
    words = model.get_input_embeddings().weight.detach().tolist()
    mean = sum(sum(x * x for x in row) ** 0.5 for row in words) / len(words)
    vectors = torch.tensor(encoder.encode_documents(abstracts(3)).vectors)
    tokens = SoftPrompt.on(encoder.tower).tokens(vectors).detach()
    assert_close(tokens.norm(dim=1).numpy(), mean, 1e-4)
    assert np.abs(np.corrcoef(tokens.numpy())[0, 1]) < 0.999


def test_the_gradient_reaches_the_gate_at_once_and_the_projector_when_it_is_open() -> None:
    tower = base().tower
    soft = SoftPrompt.on(tower)
    vectors = torch.tensor(base().encode_documents(abstracts(3)).vectors)
    texts = base().words.vector_prompts([QUERY], [3])
    asked = torch.tensor(base().encode_queries([QUERY]).vectors)

    def gradient(name: str) -> float:
        soft.zero_grad()
        read = tower(texts, soft=[soft.tokens(vectors)]).vectors
        (soft.prompts(asked, read) @ vectors[0]).sum().backward()
        found = soft.get_parameter(name).grad
        assert found is not None
        return float(found.abs().max())

    assert gradient("gate") > 0
    assert gradient("project.0.weight") == 0
    soft.gate.data.fill_(0.01)
    for name in ("project.0.weight", "project.2.weight", "log_size"):
        assert gradient(name) > 0


@pytest.mark.parametrize("family", [BERT, QWEN], ids=lambda each: each.family)
def test_a_prompt_without_room_for_its_soft_tokens_is_refused(family: Contract) -> None:
    words = base(family).words.under(dataclasses.replace(family, prompt_tokens=90))
    (fits,) = words.vector_prompts(["wing"], [5])
    most = 90 - len(words.queries(["wing"])[0].ids)
    assert len(words.vector_prompts(["wing"], [most])[0].ids) == 90
    assert len(fits.soft) == 5
    with pytest.raises(ValueError, match="do not fit into"):
        words.vector_prompts(["wing"], [most + 1])


def test_an_encoder_without_a_soft_prompt_and_other_vectors_are_refused() -> None:
    queries, asked, shown = asked_for(adapted())
    with pytest.raises(ValueError, match="tiny was not trained to read prompts of vectors"):
        base().encode_vector_prompts(queries, asked, shown)
    for other in ((asked[:, :7], shown), (asked, [shown[1][:, :7]] * 5), (asked[:2], shown)):
        with pytest.raises(ValueError, match="expected a vector a query, and rows of 32"):
            adapted().encode_vector_prompts(queries, *other)


def test_an_adapter_with_a_soft_prompt_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    adapter().save(tmp_path)
    again = base().adapt(Adapter.load(tmp_path))
    queries, asked, shown = asked_for(adapted())
    found = again.encode_vector_prompts(queries, asked, shown).vectors
    expected = adapted().encode_vector_prompts(queries, asked, shown).vectors
    np.testing.assert_array_equal(found, expected)
    assert again.contract.prompt == "vectors"
    np.testing.assert_array_equal(
        again.encode_documents([QUERY]).vectors, base().encode_documents([QUERY]).vectors
    )


def test_a_soft_prompt_that_does_not_fit_is_refused() -> None:
    weights = soft_weights(base(), GATE)
    text = dataclasses.replace(BERT, list_sizes=SIZES)
    with pytest.raises(AdapterError, match="has a soft prompt, and its contract's prompts are of"):
        base().adapt(dataclasses.replace(adapter(), contract=text))
    for change in (
        {name: each for name, each in weights.items() if name != "soft.gate"},
        weights | {"soft.other": torch.zeros(1)},
        weights | {"soft.project.0.weight": torch.zeros(32, 31)},
        {},
    ):
        with pytest.raises(AdapterError, match="the adapter's soft prompt does not fit"):
            base().adapt(dataclasses.replace(adapter(), weights=change))


def test_a_contract_of_vectors_needs_list_sizes_and_text_leaves_digests_alone() -> None:
    with pytest.raises(ValueError, match="no model reads soft tokens untrained"):
        dataclasses.replace(BERT, prompt="vectors")
    with pytest.raises(ValueError, match="prompt is 'title'; expected 'text' or 'vectors'"):
        dataclasses.replace(BERT, prompt="title")  # type: ignore[arg-type]
    # That of the model that the shipped adapter was made for, before there was such a field.
    assert MINILM.digest() == Adapter.load(MINILM_ADAPTER).base.split("-")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a tiny BERT that was loaded by name, beside that model and its adapter."""
    where = tmp_path_factory.mktemp("soft")
    (where / "base").mkdir()
    name = bert_base(where / "base")
    named = load_encoder(name, device="cpu")
    assert isinstance(named, TorchEncoder)
    fields: dict[str, Any] = {"base": named.fingerprint, "base_name": named.name}
    adapter(**fields).save(where / "adapter")
    texts = [Document(str(n), text[: 60 + 7 * n]) for n, text in enumerate(abstracts(30))]
    Engine.build(texts, where / "index", where / "adapter").close()
    return where


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder / "index") as opened:
        yield opened


def by_hand(engine: Engine, query: str, rows: np.ndarray) -> np.ndarray:
    """Scores of these rows, the first five of them in the prompt."""
    encoder: Any = engine.encoder
    vectors = engine.store.vectors(rows)
    asked = encoder.encode_queries([query]).vectors
    prompt = encoder.encode_vector_prompts([query], asked, [vectors[:5]]).vectors[0]
    return np.asarray(vectors @ prompt)


def nearest(engine: Engine, query: str, depth: int) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = engine.store.search(engine.encoder.encode_queries([query]).vectors, depth)
    return scores[0], rows[0]


@pytest.mark.parametrize("options", [{}, {"rerank": "listwise"}, {"prompt": "vectors"},
                                     {"shown": 2}, {"rerank": Full(3)}], ids=str)  # fmt: skip
def test_a_search_scores_stored_vectors_and_reads_the_texts_of_its_hits_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    read: list[int] = []
    documents = engine.store.documents

    def spy(rows: np.ndarray) -> list[Document]:
        read.append(len(rows))
        return documents(rows)

    monkeypatch.setattr(type(engine.store), "documents", lambda _, rows: spy(rows))
    (hits,) = engine.search_many([QUERY], 3, depth=12, **options)
    assert read == [3]
    first, rows = nearest(engine, QUERY, 12)
    fused = fuse(by_hand(engine, QUERY, rows), first, 0.6)
    expected = rank(fused)[:3]
    assert [hit.id for hit in hits] == [str(rows[place]) for place in expected]
    assert_close(np.array([hit.score for hit in hits]), fused[expected])
    # The query, and its prompt.
    assert hits.model_calls == 2
    tokens = len(engine.encoder.words.queries([QUERY])[0].ids)  # type: ignore[attr-defined]
    assert hits.tokens == 2 * tokens + 5
    assert hits.rerank_error == ""


def test_several_queries_and_feedback_rounds_give_what_each_gives_alone(engine: Engine) -> None:
    queries = [QUERY, "slipstream", "shock"]
    together = engine.search_many(queries, 5, depth=9, feedback_rounds=1)
    for query, hits in zip(queries, together, strict=True):
        alone = engine.search(query, 5, depth=9, feedback_rounds=1)
        assert [hit.id for hit in alone] == [hit.id for hit in hits]
        assert hits.rerank_error == ""


def test_a_given_list_and_plain_texts_are_reranked_too(engine: Engine) -> None:
    given = [(str(number), 1.0 - number / 10) for number in range(7)]
    hits = engine.rerank(QUERY, given, fuse=1.0)
    expected = by_hand(engine, QUERY, np.arange(7))
    assert [hit.id for hit in hits] == [str(place) for place in rank(expected)]
    # The query was encoded for it, and the prompt.
    assert hits.model_calls == 2
    encoder: Any = engine.encoder
    texts = list(abstracts(7))
    vectors, asked = (
        encoder.encode_documents(texts).vectors,
        encoder.encode_queries([QUERY]).vectors,
    )
    order = rank(vectors @ asked[0])
    prompt = encoder.encode_vector_prompts([QUERY], asked, [vectors[order][:5]]).vectors[0]
    pool = Candidates([*map(str, order)], [texts[place] for place in order],
                      (vectors @ asked[0])[order])  # fmt: skip
    (scored,) = ListwiseReranker(encoder).score([QUERY], [pool])
    assert_close(scored.scores, vectors[order] @ prompt)
    assert scored.calls == 9
    fused = fuse(vectors[order] @ prompt, (vectors @ asked[0])[order], 0.6)
    found = [each["corpus_id"] for each in engine.rank(QUERY, texts)]
    assert found == order[rank(fused)].tolist()


def test_a_prompt_of_texts_can_still_be_asked_for(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2rank.rerank.listwise._warned", set())
    hits = engine.search(QUERY, 4, depth=6, prompt="text", shown=3, fuse=1.0)
    assert "was not trained to read listwise prompts of texts" in caplog.text
    _, rows = nearest(engine, QUERY, 6)
    texts = [each.body for each in engine.store.documents(rows[:3])]
    prompt = engine.encoder.encode_prompts([QUERY], [texts]).vectors[0]
    expected = rank(engine.store.vectors(rows) @ prompt)[:4]
    assert [hit.id for hit in hits] == [str(rows[place]) for place in expected]


@pytest.mark.parametrize("plan", [Windows(), Groups()], ids=str)
def test_a_plan_of_several_prompts_is_refused(engine: Engine, plan: Windows | Groups) -> None:
    with pytest.raises(ValueError, match=r"makes several prompts of texts.*or prompt='text'"):
        engine.search(QUERY, rerank=plan)
    assert not engine.search(QUERY, rerank=plan, prompt="text").rerank_error


def test_vectors_are_refused_where_the_model_was_not_trained_on_them(folder: Path) -> None:
    with Engine.open(folder / "index", folder / "base") as plain:
        with pytest.raises(ValueError, match="was not trained to read prompts of vectors"):
            plain.search(QUERY, prompt="vectors")
        with pytest.raises(ValueError, match="was not trained to read prompts of vectors"):
            plain.rerank(QUERY, [("1", 1.0)], prompt="vectors")


def test_naming_a_kind_of_prompt_asks_for_a_listwise_rerank() -> None:
    other = dataclasses.replace(adapter().contract, rerank="tokens", token_dim=4)
    encoder = made(dataclasses.replace(other, prompt="text"))
    found = choose(True, encoder, 7, "text")
    assert isinstance(found, ListwiseReranker)
    assert (found.prompt, found.plan) == ("text", Full(7))
    assert choose(False, encoder, 7, "text") is None


def cli(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["e2rank", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_line_takes_the_kind_of_prompt(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shared = ["search", str(folder / "index"), QUERY, "-k", "4", "--json"]
    for kind in ("text", "vectors"):
        assert cli(monkeypatch, [*shared, "--prompt", kind]) == 0
        found = json.loads(capsys.readouterr().out)
        expected = engine.search(QUERY, 4, prompt=kind)
        assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
        assert found["tokens"] == expected.tokens
    assert (
        cli(monkeypatch, [*shared, "--prompt", "vectors", "--encoder", str(folder / "base")]) == 1
    )
    assert "was not trained to read prompts of vectors" in capsys.readouterr().err
