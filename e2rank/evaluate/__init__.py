"""Measuring a search on judged collections, so that every claim has a number and a p value."""

from e2rank.evaluate.answers import Answer
from e2rank.evaluate.collection import Collection, load_beir
from e2rank.evaluate.encoders import judging
from e2rank.evaluate.measures import MEASURES, mean, per_query
from e2rank.evaluate.protocol import ListRanker, Ranker, evaluate, evaluate_lists
from e2rank.evaluate.rankings import Ranking
from e2rank.evaluate.report import Report, Row
from e2rank.evaluate.significance import Deltas, deltas, permutation_test
from e2rank.evaluate.trec import read_qrels, read_run, write_run

__all__ = [
    "MEASURES",
    "Answer",
    "Collection",
    "Deltas",
    "ListRanker",
    "Ranker",
    "Ranking",
    "Report",
    "Row",
    "deltas",
    "evaluate",
    "evaluate_lists",
    "judging",
    "load_beir",
    "mean",
    "per_query",
    "permutation_test",
    "read_qrels",
    "read_run",
    "write_run",
]
