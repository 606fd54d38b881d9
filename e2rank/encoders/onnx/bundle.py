"""The folder of an exported encoder: what is in it, and that it is whole."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

from e2rank.contract import Contract
from e2rank.durable import file_entry, is_sealed, naming, sealed

NAME, CONTRACT, TOKENIZER, PARITY = "bundle.json", "contract.json", "tokenizer.json", "parity.json"
CARD = "README.md"
"""For a reader, who may edit it or leave it out: nothing depends on it."""

SPARSE_QUERIES = "sparse_queries.npy"
"""(terms,) float32, what each term of a query counts."""

DIRECTIONS = "query_directions.npz"
"""What an adapted index's terms add to a query, see `Directions`; absent without an adaptation."""

_PRECISIONS = ("fp32", "fp16", "int8")

KIND, FORMAT = "e2rank-onnx", 2
"""Format 1 had no seal, and no release wrote it."""


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
        files: size and xxh3 of every other file but the card.
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
        """Write bundle.json, sealed, with the hashes of what lies beside it now."""
        others = sorted(each for each in folder.iterdir() if each.name not in (NAME, CARD))
        fields = dataclasses.asdict(self) | {
            "files": {each.name: file_entry(each) for each in others}
        }
        with naming(folder / NAME):
            (folder / NAME).write_bytes(sealed({"kind": KIND, "format": FORMAT} | fields))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read bundle.json and check every file that it counts on.

        Raises:
            BundleError: if a file is missing or one byte differs, or it needs another e2rank.
        """
        fields = _read(folder)
        known = {each.name for each in dataclasses.fields(cls)}
        if strange := sorted(fields.keys() ^ known):
            raise BundleError(
                f"{folder / NAME} was written by another version of e2rank: {strange[0]!r} is "
                f"{'not there' if strange[0] in known else 'unknown here'}; run: pip install -U "
                "e2rank, or export the bundle again"
            )
        with reading(folder / NAME):
            bundle = cls(**fields | {"blend": tuple(map(float, fields["blend"]))})
            bundle.check_fields()
        # Cards were hashed once.
        bundle.files.pop(CARD, None)
        for name, entry in bundle.files.items():
            _check(folder / name, entry)
        return bundle

    def check_fields(self) -> None:
        """Refuse what no export writes, such as a graph outside the folder.

        Raises:
            ValueError: naming the field.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (str, int) and type(value) is not field.type:
                raise ValueError(f"{field.name} is {value!r:.60}")
        if self.padding not in ("left", "right") or self.precision not in _PRECISIONS:
            raise ValueError(f"padding is {self.padding!r:.60}, precision {self.precision!r:.60}")
        for name, entry in self.files.items():
            if Path(name).name != name or set(entry) != {"bytes", "xxh3"}:
                raise ValueError(f"it names the file {name!r:.60}")
        # Only what is listed is compared with what was exported.
        if missing := sorted({CONTRACT, TOKENIZER, *self.graphs} - self.files.keys()):
            raise ValueError(f"its files lack {missing[0]!r:.60}")

    def check_unchanged(self, folder: Path, graph: str) -> None:
        """Compare a graph, and weights beside it, with what they were when this was read.

        Raises:
            BundleError: if one is gone or one byte differs.
        """
        for name in {graph, f"{graph}.data"} & self.files.keys():
            try:
                same = file_entry(folder / name) == self.files[name]
            except (FileNotFoundError, NotADirectoryError):
                raise BundleError(
                    f"{folder / name} was removed since the bundle was opened, and is first needed "
                    "now: put it back, or open a bundle that is there"
                ) from None
            if not same:
                raise BundleError(
                    f"{folder / name} was changed since the bundle was opened: open it anew"
                )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of which file it is that it holds something else than an export writes.

    Raises:
        BundleError: for whatever is raised meanwhile.
    """
    try:
        yield
    except Exception as error:  # of foreign data anything may be raised
        said = [*str(error).splitlines(), type(error).__name__][0]
        raise BundleError(
            f"{path} holds something else than an export writes ({said}); copy or export it again"
        ) from error


def is_bundle(folder: Path) -> bool:
    """Whether a folder claims to be an exported encoder."""
    return (folder / NAME).is_file()


def load_contract(folder: Path) -> Contract:
    """The contract of a bundle."""
    with reading(folder / CONTRACT):
        return Contract.from_dict(json.loads((folder / CONTRACT).read_text(encoding="utf-8")))


def load_report(folder: Path) -> dict[str, Any]:
    """The parity report of a bundle that was compared with its model."""
    with reading(folder / PARITY):
        report: dict[str, Any] = json.loads((folder / PARITY).read_text(encoding="utf-8"))
    return report


def kept_in_words(report: dict[str, Any]) -> str:
    """How near an export is to its model, by its parity report."""
    kinds = ("documents", "queries", "prompts", "vector_prompts")
    least = min(report[kind]["cosine"] for kind in kinds if kind in report)
    return f"least cosine to torch {least:.4f}, {report['top10']:.3f} of the ten nearest kept"


def save_json(folder: Path, name: str, fields: dict[str, Any]) -> None:
    """Write one of a bundle's JSON files."""
    _write_json(folder / name, fields)


def _read(folder: Path) -> dict[str, Any]:
    """What bundle.json says beside its kind, format and seal, which are right."""
    path = folder / NAME
    try:
        raw = path.read_bytes()
        fields = json.loads(raw)
        kind, version = fields.pop("kind"), fields.pop("format")
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder} holds no whole bundle: {error}") from error
    if kind != KIND or not isinstance(version, int) or version > FORMAT:
        raise BundleError(
            f"{folder} is no bundle this e2rank reads (kind {kind!r}, format {version!r}, "
            f"expected {FORMAT}); run: pip install -U e2rank"
        )
    if version < FORMAT:
        raise BundleError(
            f"{folder} is a bundle of format {version}, without a seal, that no release wrote: "
            "export it again"
        )
    if not is_sealed(raw):
        raise BundleError(
            f"{path} is damaged: it differs from its own checksum; copy or export the bundle again"
        )
    del fields["checksum"]
    return cast(dict[str, Any], fields)


def _check(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing: the bundle is damaged; copy or export it again")
    if (found := file_entry(path)) != entry:
        raise BundleError(
            f"{path} is damaged: {found['bytes']} bytes of hash {found['xxh3']}, expected "
            f"{entry['bytes']} of {entry['xxh3']}; copy or export it again"
        )


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    with naming(path):
        path.write_text(text, encoding="utf-8")
