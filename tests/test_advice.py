"""Advice: bytes are FAISS's own, recall is what the benchmarks hold, and what fits comes first."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from e2rank import IndexConfig
from e2rank.cli import main
from e2rank.cli.advise import parse_count, parse_size
from e2rank.config import load_recipe
from e2rank.index import advice, dense
from e2rank.index.advice import SCAN_MS, advise, candidates, recipe, setting
from e2rank.index.cost import ROWS_A_LIST, faiss_cost, lists_for, train_rows_for
from e2rank.index.measured import MEASURED, Measured
from e2rank.scores import unit

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
GIB = 2**30


def serialised(factory: str, n: int, dim: int) -> int:
    """Bytes of a filled FAISS index."""
    rows = unit(np.random.default_rng(0).normal(size=(n, dim)))
    index = dense.make(dim, factory)
    if "OPQ" in factory:
        faiss.downcast_VectorTransform(index.chain.at(0)).niter = 1
    index.train(rows)
    index.add(rows)
    return len(faiss.serialize_index(index))


@pytest.mark.parametrize(
    "factory",
    [
        *("HNSW16,Flat", "HNSW32,Flat", "SQ8", "SQfp16", "HNSW32,SQ8", "RaBitQ", "RaBitQ4"),
        *("IVF8,Flat", "IVF8,SQ8", "IVF8,RaBitQ", "IVF8,PQ4np", "OPQ4,IVF8,PQ4np", "PQ4np"),
    ],
)
@pytest.mark.parametrize(("n", "dim"), [(400, 32), (1500, 32), (400, 64)])
def test_bytes_are_those_of_faiss_within_one_percent_and_300(
    factory: str, n: int, dim: int
) -> None:
    told = faiss_cost(factory, dim).bytes(n)
    assert told == pytest.approx(serialised(factory, n, dim), rel=0.01, abs=300)


def test_flat_needs_no_faiss_index() -> None:
    assert faiss_cost("Flat", 384).bytes(1000) == 0


def test_a_factory_of_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size of 'LSH'.*is not known"):
        faiss_cost("IVF8,LSH", 64)


def test_a_formula_says_what_it_sums() -> None:
    cost = faiss_cost("IVF16,PQ8", 64)
    assert cost.formula(1000) == "1,000 * (8 id + 8 code) + 4,224 centres + 65,536 codebooks"
    assert cost.bytes(1000) == 1000 * (8 + 8) + 4224 + 65_536


@pytest.mark.parametrize("n", [1, 38, 39, 10_000, 123_456, 10**6, 10**7, 10**9])
def test_lists_are_a_power_of_two_near_four_roots_with_rows_to_train_each(n: int) -> None:
    lists = lists_for(n)
    assert lists & (lists - 1) == 0
    assert lists == 1 or lists * ROWS_A_LIST <= min(n, train_rows_for(n))
    if n >= 100_000:
        assert 4 * n**0.5 / 2**0.5 <= lists <= 4 * n**0.5 * 2**0.5


def measured_in(name: str) -> Iterator[tuple[IndexConfig, Measured]]:
    """Every search of a benchmark, and the settings that it had."""
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
    for size in results if isinstance(results, list) else [results]:
        for built in size["factories"]:
            for search in built.get("searches", [built]):
                names = ("nprobe", "ef_search", "rescore")
                asked = {each: search[each] for each in names if search.get(each)}
                config = IndexConfig(factory=built["factory"], **asked)
                yield (
                    config,
                    Measured(
                        name,
                        size["documents"],
                        size.get("dim", 384),
                        config.factory,
                        setting(config),
                        round(search["recall@10"], 3),
                        float(f"{search['p50_ms']:.2g}"),
                    ),
                )


def test_the_table_is_what_the_benchmarks_measured_of_the_recipes_advised() -> None:
    expected = []
    for name in ("factories", "million"):
        for config, measured in measured_in(name):
            advised = (
                dataclasses.replace(each, train_rows=config.train_rows)
                for each in candidates(measured.n, measured.dim)
            )
            if config in advised:
                expected.append(measured)
    assert list(MEASURED) == expected


def test_memory_told_for_a_build_is_what_the_benchmark_peaked_at_or_more_but_not_twice() -> None:
    results = json.loads((RESULTS / "million.json").read_text(encoding="utf-8"))["results"]
    for size in results:
        told = {
            each.config.factory: each.build_ram.value
            for each in advise(size["documents"], size["dim"], GIB)
        }
        for built in size["factories"]:
            peak = (built["peak_mb"] - built["before_mb"]) * 2**20
            # Batches of documents and vectors, whatever the factory.
            batches = 64 * 2**20
            assert peak <= told[built["factory"]] + batches
            assert told[built["factory"]] <= 2 * peak


TOY = (
    Measured("toy", 1000, 64, "Flat", "", 1.0, 0.5),
    Measured("toy", 1000, 64, "HNSW32,Flat", "ef_search=128", 0.97, 0.1),
    Measured("toy", 1000, 64, "SQ8", "rescore=4", 1.0, 0.4),
    Measured("toy", 1000, 64, "RaBitQ", "rescore=10", 0.9, 0.2),
    Measured("toy", 1000, 64, "IVF1024,SQ8", "nprobe=64 rescore=4", 0.95, 0.1),
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that are easy to reckon with."""
    monkeypatch.setattr(advice, "MEASURED", TOY)


@pytest.mark.usefixtures("toy")
def test_exact_search_comes_first_while_it_fits_and_is_fast() -> None:
    assert advise(1000, 64, GIB)[0].config == IndexConfig(factory="Flat")
    # Half a millisecond at 1,000 rows, so 50 at 100,000.
    assert advise(100 * 1000, 64, GIB)[0].config.factory == "Flat"
    slow = next(each for each in advise(101_000, 64, GIB) if each.config.factory == "Flat")
    assert f"up to {SCAN_MS} ms" in slow.why_not
    assert slow.ms.value == pytest.approx(50.5)


@pytest.mark.usefixtures("toy")
def test_the_best_recall_that_fits_comes_first_and_what_does_not_last() -> None:
    n, dim = 1_000_000, 64
    plenty = [each for each in advise(n, dim, 4 * GIB) if not each.why_not]
    assert [each.config.factory for each in plenty[:2]] == ["HNSW32,Flat", "IVF4096,SQ8"]
    tight = advise(n, dim, 400 * 2**20)
    assert tight[0].config.factory == "IVF4096,SQ8"
    fits = [not each.why_not for each in tight]
    assert fits == sorted(fits, reverse=True)
    (graph,) = (each for each in tight if "HNSW" in each.config.factory)
    assert re.fullmatch(r"needs [\d.]+ M, and 80% of the memory is 320.0 M", graph.why_not)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("n", [333, 400, 3000, 3001])
def test_recall_is_told_only_near_a_measurement(n: int) -> None:
    (graph,) = (each for each in advise(n, 64, GIB) if "HNSW" in each.config.factory)
    where = "benchmarks/results/toy.json, n=1,000, dim=64, HNSW32,Flat, ef_search=128"
    if 1000 / 3 <= n <= 3000:
        assert (graph.recall.value, graph.recall.source) == (0.97, f"measured: {where}")
    else:
        assert graph.recall.value is None
        assert graph.recall.source == f"not measured at this size; it was 0.97 in {where}"


@pytest.mark.usefixtures("toy")
def test_recall_of_another_dimension_is_not_told_as_this_ones() -> None:
    (graph,) = (each for each in advise(1000, 128, GIB) if "HNSW" in each.config.factory)
    assert graph.recall.value is None
    assert graph.recall.source.startswith("not measured at this dimension; it was 0.97 in ")


@pytest.mark.usefixtures("toy")
def test_what_was_never_measured_says_so_and_stands_behind() -> None:
    options = advise(20_000, 64, GIB)
    assert options[-1].recall.source == "not measured"
    assert options[-1].config.factory == "OPQ8,IVF512,PQ8np"


def test_every_option_at_every_size_has_sources_and_no_number_without() -> None:
    for n in (10, 10**5, 10**9):
        for each in advise(n, 384, 16 * GIB):
            for figure in (each.ram, each.build_ram, each.disk):
                assert figure.source.startswith("formula: ")
            for figure in (each.recall, each.ms):
                assert (figure.value is None) == figure.source.startswith("not measured")


def test_float16_rows_token_and_sparse_vectors_change_the_disk_only() -> None:
    plain, half, late, sparse = (
        next(each for each in options if each.config.factory == "SQ8")
        for options in (
            advise(1000, 64, GIB),
            advise(1000, 64, GIB, raw="float16"),
            advise(1000, 64, GIB, tokens=60, token_dim=96),
            advise(1000, 64, GIB, terms=128),
        )
    )
    codes = 1000 * 64 + 8 * 64
    assert plain.disk.value == codes + 1000 * 64 * 4
    assert half.disk.value == codes + 1000 * 64 * 2
    assert late.disk.value == codes + 1000 * (64 * 4 + 60 * 96 + 8)
    assert plain.ram == half.ram == late.ram == sparse.ram
    assert sparse.disk.value == codes + 1000 * (64 * 4 + 128 * (4 + 2) + 8 + 128 * (4 + 4))
    assert half.config.raw == "float16"


@pytest.mark.parametrize("n", [100, 50_000, 10**7])
def test_every_recipe_loads_back_and_faiss_understands_it(n: int, tmp_path: Path) -> None:
    for config in candidates(n, 384, "float16"):
        (tmp_path / "recipe.toml").write_text(recipe(config))
        assert load_recipe(IndexConfig, tmp_path / "recipe.toml") == config
        dense.check(384, config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 384, GIB), "n is 0"),
        ((10, 0, GIB), "dim is 0"),
        ((10, 384, 0), "ram is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(values: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advise(*values)
    for more in ((60.0, 0), (0.0, 96), (-1.0, 96), (60.0, -1), (float("inf"), 96)):
        with pytest.raises(ValueError, match="give both"):
            advise(10, 384, GIB, tokens=more[0], token_dim=more[1])
    for terms in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="terms is"):
            advise(10, 384, GIB, terms=terms)


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "1.5", "ten", "1e400", "1e99", "9" * 400, "16G", "1e7x", "0x10"]
)
def test_what_is_no_number_of_vectors_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number such as 1e7, 10_000_000 or 10M"):
        parse_count(text)


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "16 X", "0.1", "1.2.3G", "lots", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a size such as 512M, 16G or 1\.5T"):
        parse_size(text)


def test_the_command_prints_options_sources_and_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["e2rank", "advise", "--n", "1e7", "--dim", "384", "--ram", "16G"]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as end:
        main()
    out = capsys.readouterr().out
    assert not end.value.code
    assert "formula: 10,000,000 * (1,536 raw float32 + " in out
    assert "-  HNSW32,Flat ef_search=128: needs 28.4 G, and 80% of the memory is 12.8 G" in out
    (tmp_path / "recipe.toml").write_text(out.split("--recipe`:")[1])
    best = advise(10**7, 384, 16 * GIB)[0].config
    assert load_recipe(IndexConfig, tmp_path / "recipe.toml") == best


def test_the_command_prints_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["e2rank", "advise", "--n=5k", "--ram=1G", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    fields = json.loads(capsys.readouterr().out)
    assert not end.value.code
    assert (fields["n"], fields["dim"], fields["ram"]) == (5000, 384, GIB)
    assert fields["options"][0]["config"]["factory"] == "Flat"
    assert fields["recipe"] == 'factory = "Flat"\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n=ten", "--ram=1G"], "error: --n is 'ten'; expected a number such as"),
        (["--n=1e7", "--ram=1Q"], "error: --ram is '1Q'; expected a size such as"),
        (["--n=1e9", "--ram=1M"], "error: nothing fits 1.0 M of memory; the reasons are above"),
    ],
)
def test_nonsense_and_what_cannot_fit_are_one_line_and_status_one(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["e2rank", "advise", *words])
    with pytest.raises(SystemExit) as end:
        main()
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert err.startswith(message)
    assert err.count("\n") == 1
