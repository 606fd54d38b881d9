"""What a search returns: a sequence, and the shapes other tools read."""

import dataclasses
import json
from pathlib import Path

import ir_measures
import pytest

from e2rank.hits import Hit, Hits, pairs_of


@pytest.fixture
def hits() -> Hits:
    """Two hits; the second was found by feedback only."""
    return Hits(
        query="wing",
        hits=(
            Hit("d7", 1, 0.75, "text", "title", {"year": 1960}, 0.5, 2),
            Hit("d1", 2, 0.1 + 0.2, "text", "", {}, 0.25, None),
        ),
        timings={"total": 1.5},
        model_calls=2,
        tokens=30,
        truncated=1,
    )


def test_hits_are_a_sequence(hits: Hits) -> None:
    assert len(hits) == 2
    assert hits[0].id == "d7"
    assert [hit.id for hit in hits] == ["d7", "d1"]
    assert [hit.id for hit in hits[:1]] == ["d7"]
    assert hits[1] in hits


def test_to_dict_survives_json(hits: Hits) -> None:
    fields = json.loads(json.dumps(hits.to_dict()))
    assert fields["hits"][0]["metadata"] == {"year": 1960}
    assert fields["hits"][1]["first_rank"] is None
    assert (fields["query"], fields["model_calls"], fields["truncated"]) == ("wing", 2, 1)


def test_a_hit_alone_survives_json_too(hits: Hits) -> None:
    assert json.loads(json.dumps(hits[0].to_dict())) == hits.to_dict()["hits"][0]
    assert hits[1].to_dict()["text"] == "text"


def test_a_trec_run_is_read_back_with_every_bit_of_the_scores(hits: Hits, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text(hits.to_trec("q1", tag="mine"))
    read = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    assert [(each.query_id, each.doc_id, each.score) for each in read] == [
        ("q1", "d7", 0.75),
        ("q1", "d1", 0.1 + 0.2),
    ]


@pytest.mark.parametrize(("query", "tag"), [("q 1", "mine"), ("", "mine"), ("q1", "my tag")])
def test_what_cannot_be_a_column_of_a_run_is_refused(hits: Hits, query: str, tag: str) -> None:
    with pytest.raises(ValueError, match="cannot be a column of a run"):
        hits.to_trec(query, tag=tag)
    spaced = Hits(query="x", hits=(dataclasses.replace(hits[0], id="a b"),))
    with pytest.raises(ValueError, match="'a b' cannot be a column of a run"):
        spaced.to_trec("q1")


def test_to_beir_is_a_score_for_each_id(hits: Hits) -> None:
    assert hits.to_beir() == {"d7": 0.75, "d1": 0.1 + 0.2}


def test_any_hits_are_a_ranking(hits: Hits) -> None:
    pairs = [("d7", 0.75), ("d1", 0.1 + 0.2)]
    assert pairs_of(hits) == pairs_of(list(hits)) == pairs_of(hits[:2]) == pairs
    assert pairs_of([hits[1], ("d9", 0.1)]) == [pairs[1], ("d9", 0.1)]


def test_what_is_no_ranking_is_refused_without_the_whole_of_a_text() -> None:
    entry = {"id": "d7", "text": "lift " * 1000}
    with pytest.raises(
        ValueError, match=r"^entry 1 .*'id': 'd7'.*expected \(id, score\)"
    ) as caught:
        pairs_of([("d1", 1.0), entry])  # type: ignore[list-item]
    assert len(str(caught.value)) < 200


def test_no_hits_are_no_lines() -> None:
    assert Hits(query="x", hits=()).to_trec("q") == ""
