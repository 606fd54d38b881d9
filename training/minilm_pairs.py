"""The pairs that the default model's sparse head is trained on, beside the teacher's lists.

    python training/minilm_pairs.py OUT [--data FOLDER]

A pair is a train query of SQuAD (CC BY-SA 4.0), PubMedQA (MIT) or MedQuAD (CC BY 4.0) with a
document that answers it; no document that a dev query is about is among them. Documents are cut
to the words that the encoder reads, about.
"""

import argparse
import gzip
import json
import os
import random
from pathlib import Path

from e2rank.corpus import read_corpus
from e2rank.evaluate import load_beir
from e2rank.train.examples import Example, write_examples

FOLDERS = {"squad": "squad-dev-passages", "pubmedqa": "pubmedqa-l", "medquad": "medquad"}
MOST = {"squad": 2000, "pubmedqa": 1000, "medquad": 5000}
WORDS = 200


def pairs(folder: Path, name: str) -> list[Example]:
    """Train queries with a relevant document each, over at most MOST documents."""
    texts = {each.id: " ".join(each.body.split()[:WORDS]) for each in read_corpus(folder)}
    train = load_beir(folder, "train")
    held_out = set[str]()
    if (folder / "qrels" / "dev.tsv").exists():
        held_out = {each for grades in load_beir(folder, "dev").qrels.values() for each in grades}
    found = [
        (train.queries[query], document)
        for query, grades in train.qrels.items()
        for document, grade in grades.items()
        if grade > 0 and document in texts and document not in held_out
    ]
    random.Random(3).shuffle(found)
    taken = set(list(dict.fromkeys(document for _, document in found))[: MOST[name]])
    return [
        Example(query, (texts[document],), (1.0,), ids=(f"{name}-pair-{document}",), source=name)
        for query, document in found
        if document in taken
    ]


def write(out: Path, name: str, examples: list[Example]) -> None:
    """The pairs, and the documents that they name."""
    write_examples(examples, out / f"{name}-pairs.jsonl.gz", texts=False)
    texts = {each.ids[0]: each.documents[0] for each in examples}
    with gzip.GzipFile(out / f"{name}-pairs-documents.jsonl.gz", "wb", mtime=0) as file:
        for identifier in sorted(texts):
            row = {"_id": identifier, "text": texts[identifier]}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    print(f"{name}: {len(examples)} pairs over {len(texts)} documents")


def main() -> None:
    """Write NAME-pairs.jsonl.gz and NAME-pairs-documents.jsonl.gz of each collection."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("E2RANK_DATA", "data"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, folder in FOLDERS.items():
        write(options.out, name, pairs(Path(options.data) / folder, name))


if __name__ == "__main__":
    main()
