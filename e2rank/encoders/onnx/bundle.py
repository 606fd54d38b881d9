"""The folder of an exported encoder: what is in it, that it is whole, how it comes into place."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import xxhash

from e2rank.contract import Contract

NAME, CONTRACT, TOKENIZER, PARITY = "bundle.json", "contract.json", "tokenizer.json", "parity.json"
SPARSE_QUERIES = "sparse_queries.npy"
"""(terms,) float32, what each term of a query counts."""

DIRECTIONS = "query_directions.npz"
"""What an adapted index's terms add to a query, see `Directions`; absent without an adaptation."""

KIND, FORMAT = "e2rank-onnx", 1


class BundleError(ValueError):
    """A folder that is no exported encoder, is damaged, or cannot be run here."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What bundle.json says.

    Args:
        name: of the encoder that was exported.
        precision: "fp32", "fp16" or "int8".
        fingerprint: of that encoder, whose vectors these graphs give within the parity report.
        token_fingerprint: of its token vectors; "" where it gives none.
        sparse_fingerprint: of its sparse vectors; "" where it gives none.
        adapter_fingerprint: of its adapter; "" without one.
        blend: what MaxSim and cosine are multiplied with; empty where it gives no token vectors.
        padding: side on which shorter sequences of a batch are padded, "left" or "right".
        documents: the graph that reads documents.
        queries: the graph that reads queries and prompts, perhaps the same.
        sparse: the graph that makes sparse vectors of documents; "" where it gives none.
        opset: of the graphs.
        versions: of the packages that made them.
        files: size and xxh3 of every other file.
    """

    name: str
    precision: str
    fingerprint: str
    token_fingerprint: str
    sparse_fingerprint: str
    adapter_fingerprint: str
    blend: tuple[float, ...]
    padding: str
    documents: str
    queries: str
    sparse: str
    opset: int
    versions: dict[str, str]
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def graphs(self) -> set[str]:
        """Names of the files with its graphs."""
        return {self.documents, self.queries, self.sparse} - {""}

    def save(self, folder: Path) -> None:
        """Write bundle.json, with the hashes of every file that lies beside it now."""
        others = sorted(each for each in folder.iterdir() if each.name != NAME)
        fields = dataclasses.asdict(self) | {"files": {each.name: _entry(each) for each in others}}
        _write_json(folder / NAME, {"kind": KIND, "format": FORMAT} | fields)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read bundle.json and check every file against it.

        Raises:
            BundleError: if a file is missing or one byte differs, or it needs a newer e2rank.
        """
        try:
            fields = json.loads((folder / NAME).read_text(encoding="utf-8"))
            kind, version = fields.pop("kind"), fields.pop("format")
            if kind != KIND or version > FORMAT:
                raise BundleError(
                    f"{folder} is no bundle this e2rank reads (kind {kind!r}, format {version}, "
                    f"expected up to {FORMAT}); run: pip install -U e2rank"
                )
            bundle = cls(**fields | {"blend": tuple(fields["blend"])})
            if missing := {*bundle.graphs, CONTRACT, TOKENIZER} - bundle.files.keys():
                raise BundleError(
                    f"{folder / NAME} is damaged: it names no hash of {min(missing)}; copy or "
                    "export the bundle again"
                )
            if bundle.padding not in ("left", "right"):
                raise BundleError(
                    f"{folder / NAME} is damaged: padding is {bundle.padding!r}; copy or export "
                    "the bundle again"
                )
            for name, entry in bundle.files.items():
                _check(folder / name, entry)
        except BundleError:
            raise
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder} holds no whole bundle: {error}") from error
        return bundle


def is_bundle(folder: Path) -> bool:
    """Whether a folder claims to be an exported encoder."""
    return (folder / NAME).is_file()


def load_contract(folder: Path) -> Contract:
    """The contract of a bundle."""
    return Contract.from_dict(json.loads((folder / CONTRACT).read_text(encoding="utf-8")))


def load_report(folder: Path) -> dict[str, Any]:
    """The parity report of a bundle that was compared with its model."""
    report: dict[str, Any] = json.loads((folder / PARITY).read_text(encoding="utf-8"))
    return report


def save_json(folder: Path, name: str, fields: dict[str, Any]) -> None:
    """Write one of a bundle's JSON files."""
    _write_json(folder / name, fields)


@contextlib.contextmanager
def in_place_when_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, renamed to it at the end; an error leaves nothing behind.

    Raises:
        FileExistsError: if `folder` is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; export into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    side = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield side
        for each in side.iterdir():
            _sync(each)
        side.chmod(0o755)
        side.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _entry(path: Path) -> dict[str, Any]:
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return {"bytes": path.stat().st_size, "xxh3": state.hexdigest()}


def _check(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing: the bundle is damaged; copy or export it again")
    if (found := _entry(path)) != entry:
        raise BundleError(
            f"{path} is damaged: {found['bytes']} bytes of hash {found['xxh3']}, expected "
            f"{entry['bytes']} of {entry['xxh3']}; copy or export it again"
        )


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
