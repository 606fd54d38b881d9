"""The lists that the default model's adapter is trained on, labelled by a cross-encoder.

    python training/minilm_lists.py OUT [--data FOLDER] [--threads 1]

Queries and documents come from three collections whose licences allow derived weights to be
given away: SQuAD (CC BY-SA 4.0), PubMedQA (MIT) and MedQuAD (CC BY 4.0), train queries only. A
query is a question, a title or a sentence; its list is the first 8 passages that MiniLM finds and
8 drawn from the next 92. A passage that holds the query word for word is left out. Killed, it goes
on where it stopped: the teacher's scores are cached.
"""

import argparse
import gzip
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from e2rank.corpus import read_corpus
from e2rank.documents import Candidates
from e2rank.encoders.presets import load_encoder, local_model
from e2rank.evaluate import load_beir
from e2rank.train.examples import Example, write_examples
from e2rank.train.teacher import CachedTeacher

ROOT = Path(__file__).resolve().parents[1]
TAKEN = {"squad": 687, "pubmedqa": 810, "medquad": 700}
# Each group is drawn by one generator, its collections one after another.
GROUPS = (("squad", "pubmedqa"), ("medquad",))
NEAREST, DRAWN, DEPTH = 8, 8, 100
TEACHER_TOKENS = 192


def sentences(text: str) -> list[str]:
    """Sentences, split after a full stop, a question mark or an exclamation mark."""
    return re.split(r"(?<=[.!?])\s+", text)


def telling(text: str) -> list[str]:
    """The sentences of 8 to 35 words."""
    return [each for each in sentences(text) if 8 <= len(each.split()) <= 35]


def passages(text: str, words: int = 90) -> list[str]:
    """Whole sentences, joined up to about `words` words."""
    out: list[list[str]] = [[]]
    for each in sentences(text):
        if out[-1] and sum(len(one.split()) for one in out[-1]) + len(each.split()) > words:
            out.append([])
        out[-1].append(each)
    return [" ".join(each) for each in out]


def squad(data: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """Paragraphs and train questions."""
    folder = data / "squad-dev-passages"
    questions = list(load_beir(folder, "train").queries.values())
    return [each.body for each in read_corpus(folder)], questions


def pubmedqa(data: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """Abstracts; train titles, and sentences of abstracts."""
    folder = data / "pubmedqa-l"
    documents = [each.body for each in read_corpus(folder)]
    found = [each for text in documents for each in telling(text)]
    rng.shuffle(found)
    return documents, [*load_beir(folder, "train").queries.values(), *found[:1500]]


def medquad(data: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """Passages of answers that no dev question is about; train questions, and sentences."""
    folder = data / "medquad"
    questions = list(load_beir(folder, "train").queries.values())
    held_out = {each for grades in load_beir(folder, "dev").qrels.values() for each in grades}
    answers = [each.body for each in read_corpus(folder) if each.id not in held_out]
    documents = [each for text in answers for each in passages(text)[:3] if len(each.split()) >= 12]
    rng.shuffle(documents)
    documents = documents[:4000]
    rng.shuffle(questions)
    found = [each for text in documents for each in telling(text)]
    rng.shuffle(found)
    return documents, [*questions[:1500], *found[:1500]]


SOURCES = {"squad": squad, "pubmedqa": pubmedqa, "medquad": medquad}


def drawn(name: str, number: int, order: Sequence[int]) -> list[int]:
    """The documents of one list: the nearest, in the order found, then some of the rest."""
    rng, rest = random.Random(f"{name}{number}"), list(order[NEAREST:DEPTH])
    return [*order[:NEAREST], *sorted(rng.sample(rest, min(DRAWN, len(rest))))]


def cross_encoder() -> Callable[[Sequence[tuple[str, str]]], np.ndarray]:
    """The teacher: (query, text) pairs to scores, in bfloat16 to halve the hours."""
    model = CrossEncoder(
        str(local_model("ms-marco-MiniLM-L-12-v2")),
        device="cpu",
        max_length=TEACHER_TOKENS,
        model_kwargs={"dtype": torch.bfloat16},
        activation_fn=torch.nn.Identity(),
    )
    return lambda pairs: np.asarray(
        model.predict(list(pairs), batch_size=NEAREST + DRAWN, show_progress_bar=False)
    )


def lists(
    name: str, queries: Sequence[str], documents: Sequence[str], teacher: CachedTeacher
) -> Iterator[Example]:
    """One labelled list a query."""
    encoder = load_encoder("minilm-base")
    vectors = encoder.encode_documents(documents).vectors
    for number, query in enumerate(queries):
        row = vectors @ encoder.encode_queries([query]).vectors[0]
        order = [int(i) for i in np.argsort(-row)[: DEPTH + 1]]
        order = [i for i in order if query.lower() not in documents[i].lower()]
        places = drawn(name, number, order)
        if len(places) < 2:
            # A sentence that nearly every passage near it repeats orders nothing.
            continue
        texts, ids = [documents[i] for i in places], [f"{name}-{i}" for i in places]
        pool = Candidates(ids=ids, texts=texts, scores=row[places])
        yield Example(
            query=query,
            documents=tuple(texts),
            labels=tuple(round(float(s), 3) for s in teacher.score([query], [pool])[0].scores),
            first_stage=tuple(round(float(row[i]), 4) for i in places),
            ids=tuple(ids),
            source=name,
        )


def write(out: Path, name: str, examples: Sequence[Example]) -> None:
    """The lists, and the documents that they name."""
    write_examples(examples, out / f"{name}.jsonl.gz", texts=False)
    texts = {i: text for each in examples for i, text in zip(each.ids, each.documents, strict=True)}
    with gzip.GzipFile(out / f"{name}-documents.jsonl.gz", "wb", mtime=0) as file:
        for identifier in sorted(texts, key=lambda each: int(each.rsplit("-", 1)[1])):
            row = {"_id": identifier, "text": texts[identifier]}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    print(f"{name}: {len(examples)} lists over {len(texts)} documents")


def main() -> None:
    """Write documents.jsonl.gz and lists.jsonl.gz."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("E2RANK_DATA", "data"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.out / "teacher.sqlite"
    with CachedTeacher(
        cross_encoder(), cache, f"ms-marco-MiniLM-L-12-v2/{TEACHER_TOKENS}"
    ) as teacher:
        for group in GROUPS:
            rng = random.Random(7)
            for name in group:
                documents, queries = SOURCES[name](options.data, rng)
                rng.shuffle(queries)
                asked = queries[: TAKEN[name]]
                write(options.out, name, list(lists(name, asked, documents, teacher)))


if __name__ == "__main__":
    main()
