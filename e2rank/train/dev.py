"""A small measurement between steps: nDCG@10 of candidate lists ordered by the trained model."""

from dataclasses import dataclass

import numpy as np

from e2rank.evaluate.collection import load_beir
from e2rank.evaluate.measures import mean, per_query
from e2rank.evaluate.trec import Qrels, read_run
from e2rank.scores import rank
from e2rank.train.config import TrainConfig
from e2rank.train.model import Trainee

_MEASURE = "nDCG@10"


@dataclass(frozen=True, slots=True)
class Dev:
    """Candidates of n queries.

    Args:
        queries: query id to text.
        qrels: of these queries.
        candidates: for each query, places of its candidates among `ids`, best first.
        ids: of m documents.
        texts: of these documents.
        frozen: (m, d) float32 unit rows, or None where the documents' vectors change.
    """

    queries: dict[str, str]
    qrels: Qrels
    candidates: list[list[int]]
    ids: list[str]
    texts: list[str]
    frozen: np.ndarray | None

    def measure(self, trainee: Trainee) -> dict[str, float]:
        """nDCG@10 of the first stage, and by cosine with the query's and the prompt's vector.

        There is no "prompt" for a model that is not trained to read any.
        """
        queries, words = list(self.queries.values()), trainee.words
        documents = self.frozen
        if documents is None:
            documents = trainee.encode(words.documents(self.texts))
        asked = {"query": trainee.encode(words.queries(queries))}
        if trainee.contract.prompt_trained:
            asked["prompt"] = self._prompts(trainee, queries, asked["query"])
        # Any scores that fall keep the order that the candidates came in.
        first = [np.arange(len(each), 0, -1) for each in self.candidates]
        scores = {
            name: [
                documents[each] @ vector
                for each, vector in zip(self.candidates, vectors, strict=True)
            ]
            for name, vectors in asked.items()
        }
        return {name: self._ndcg(each) for name, each in ({"first": first} | scores).items()}

    def _prompts(self, trainee: Trainee, queries: list[str], asked: np.ndarray) -> np.ndarray:
        if trainee.contract.prompt == "vectors" and self.frozen is not None:
            most = max(trainee.contract.list_sizes)
            vectors = [self.frozen[each[:most]] for each in self.candidates]
            return trainee.vector_prompts(queries, asked, vectors)
        shown = [[self.texts[place] for place in each] for each in self.candidates]
        return trainee.encode(trainee.words.prompts(queries, shown))

    def _ndcg(self, scores: list[np.ndarray]) -> float:
        run = {
            query: [(self.ids[place], float(score)) for place, score in zip(each, own, strict=True)]
            for query, each, own in zip(self.queries, self.candidates, scores, strict=True)
        }
        return mean(per_query(self.qrels, run, [_MEASURE])[_MEASURE])


def load_dev(config: TrainConfig, trainee: Trainee) -> Dev | None:
    """The configuration's measurement, its candidates found by the base as it is now; or None.

    Raises:
        ValueError: if the run has no list for any of the queries, or of unknown documents.
    """
    if not config.dev:
        return None
    collection = load_beir(config.dev, config.dev_split).first(config.dev_queries)
    texts = {each.id: each.body for each in collection.documents()}
    if config.dev_run:
        lists = _given(config, collection.queries, texts)
    else:
        lists = _nearest(trainee, collection.queries, texts, config.dev_depth)
    ids = list(dict.fromkeys(document for each in lists.values() for document in each))
    places = {document: place for place, document in enumerate(ids)}
    shown = [texts[document] for document in ids]
    return Dev(
        queries={query: collection.queries[query] for query in lists},
        qrels=collection.qrels,
        candidates=[[places[document] for document in each] for each in lists.values()],
        ids=ids,
        texts=shown,
        frozen=None if config.train_documents else trainee.encode(trainee.words.documents(shown)),
    )


def _given(
    config: TrainConfig, queries: dict[str, str], texts: dict[str, str]
) -> dict[str, list[str]]:
    run = read_run(config.dev_run)
    lists = {
        query: [document for document, _ in run[query][: config.dev_depth]]
        for query in queries
        if run.get(query)
    }
    if not lists or not {document for each in lists.values() for document in each} <= texts.keys():
        raise ValueError(
            f"{config.dev_run} lists no query of {config.dev_split}, or documents that are not "
            f"in {config.dev}; expected candidates of that collection"
        )
    return lists


def _nearest(
    trainee: Trainee, queries: dict[str, str], texts: dict[str, str], depth: int
) -> dict[str, list[str]]:
    ids = list(texts)
    documents = trainee.encode(trainee.words.documents(list(texts.values())))
    asked = trainee.encode(trainee.words.queries(list(queries.values())))
    return {
        query: [ids[place] for place in rank(documents @ vector)[:depth].tolist()]
        for query, vector in zip(queries, asked, strict=True)
    }
