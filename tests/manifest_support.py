"""What tests do to an index by hand: change its manifest with a new seal, or make it an old one."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from e2rank.config import IndexConfig
from e2rank.durable import file_entry
from e2rank.index import dense
from e2rank.index.manifest import NAME

Change = Callable[[dict[str, Any]], object]


def fields_of(folder: Path) -> dict[str, Any]:
    """The manifest's fields, without the seal."""
    fields: dict[str, Any] = json.loads((folder / NAME).read_bytes())
    fields.pop("checksum", None)
    return fields


def reseal(folder: Path, change: Change) -> None:
    """Change what a manifest says, and give it the checksum of that."""
    fields = fields_of(folder)
    change(fields)
    body = json.dumps(fields, indent=2, ensure_ascii=False).encode()
    seal = f',\n  "checksum": "{xxhash.xxh3_64_hexdigest(body)}"\n}}\n'.encode()
    (folder / NAME).write_bytes(body.removesuffix(b"\n}") + seal)


def rewrite(folder: Path, change: Change) -> None:
    """Change what a manifest says, under the seal of what it said before."""
    fields = json.loads((folder / NAME).read_bytes())
    change(fields)
    (folder / NAME).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def as_before(folder: Path) -> int:
    """Make a new index what e2rank wrote before format 3; gives its format, 1 or 2.

    There was a FAISS index for every factory, no table of fields, and no seal.
    """
    fields = fields_of(folder)
    (segment,) = fields["segments"]
    inside = f"segments/{segment['name']}"
    config = fields["config"]
    for name in ("rescore", "raw"):
        del config[name]
    vectors = np.load(folder / inside / "vectors.npy", mmap_mode="r")
    dense.build(folder / inside / "dense.faiss", vectors, IndexConfig(**config))
    connection = sqlite3.connect(folder / inside / "documents.sqlite")
    connection.execute("DROP TABLE fields")
    connection.close()
    version = 2 if "token_dim" in fields["encoder"] else 1
    old = {
        "format": version,
        "kind": fields["kind"],
        "encoder": fields["encoder"],
        "config": config,
        "segments": [{name: segment[name] for name in ("name", "count", "truncated")}],
        "tombstones": [],
        "files": {
            f"{inside}/{path.name}": file_entry(path)
            for path in sorted((folder / inside).iterdir())
        },
    }
    (folder / NAME).write_text(json.dumps(old, indent=2, ensure_ascii=False))
    return version
