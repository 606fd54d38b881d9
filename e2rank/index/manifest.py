"""The manifest: what an index is made of, in the one file that makes a folder an index."""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from e2rank.config import IndexConfig
from e2rank.index.files import damaged
from e2rank.index.manifest_file import FORMAT, SEALED, read, write

NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderInfo:
    """Which encoder made the vectors.

    Args:
        name: what it is called.
        fingerprint: of the model and its contract.
        dim: length of a document's vector.
        token_dim: length of a token vector; 0 if there are none.
        tokens: fingerprint of the head that made the token vectors; "" if there are none.
        sparse_dim: terms of the vocabulary of the sparse vectors; 0 if there are none.
        sparse: fingerprint of what made the sparse vectors; "" if there are none.
    """

    name: str
    fingerprint: str
    dim: int
    token_dim: int = 0
    tokens: str = ""
    sparse_dim: int = 0
    sparse: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able; those of token and sparse vectors only where there are any."""
        fields = dataclasses.asdict(self)
        if not self.token_dim:
            del fields["token_dim"], fields["tokens"]
        if not self.sparse_dim:
            del fields["sparse_dim"], fields["sparse"]
        return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentInfo:
    """One segment: documents that came in together, or were merged.

    Args:
        name: its folder, six digits; a number is never used twice.
        count: documents in its files, deleted ones too.
        truncated: how many of them were longer than a model of the encoder reads, when they came;
            of those whose rows were copied from another segment, the share that its count says.
        factory: what its FAISS index was made by; "Flat" needs none.
        deleted: how many are deleted.
        deletions: the file that says which, "" if none is.
    """

    name: str
    count: int
    truncated: int
    factory: str
    deleted: int = 0
    deletions: str = ""

    @property
    def folder(self) -> str:
        """Its folder, from the index's."""
        return f"segments/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an index is made of, at one commit.

    Args:
        encoder: which encoder made it.
        config: the fields of the `IndexConfig` it was built with.
        segments: in the order of their rows.
        files: path inside the folder to `{"bytes", "xxh3"}`, for every file but the manifest.
        commit: one more with every commit.
        next_segment: the number of the next segment.
        adapter: the folder of the index's own adapter, "" if it has none.

    `format` is the number of the format it was read in, or is to be saved in.
    """

    encoder: EncoderInfo
    config: dict[str, Any]
    segments: list[SegmentInfo]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    commit: int = 1
    next_segment: int = 2
    adapter: str = ""
    format: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Take the oldest format that holds it."""
        later = self.encoder.sparse_dim or _later(self.config)
        object.__setattr__(self, "format", FORMAT if later else SEALED)

    @property
    def count(self) -> int:
        """Documents in the index."""
        return sum(segment.count - segment.deleted for segment in self.segments)

    @property
    def noun(self) -> str:
        """What it counts: rows are documents, or the passages that these are split into."""
        return "passages" if self.index_config.passages else "documents"

    @property
    def deleted(self) -> int:
        """Documents that are deleted, and whose bytes are still there."""
        return sum(segment.deleted for segment in self.segments)

    @property
    def truncated(self) -> int:
        """Documents that were longer than a model of the encoder reads, deleted ones among them."""
        return sum(segment.truncated for segment in self.segments)

    @property
    def bytes(self) -> int:
        """What the index's files take on disk."""
        return sum(entry["bytes"] for entry in self.files.values())

    def inside(self, folder: str) -> dict[str, dict[str, Any]]:
        """The files in one folder of the index; none for ""."""
        return {k: v for k, v in self.files.items() if folder and k.startswith(f"{folder}/")}

    @property
    def index_config(self) -> IndexConfig:
        """How the index is built."""
        return IndexConfig(**self.config)

    def save(self, folder: Path) -> None:
        """Put this manifest in place at once: readers see the old one or the new one."""
        # What was read in an old format is saved in a new one.
        new = dataclasses.replace(self)
        fields = {**dataclasses.asdict(new), "encoder": self.encoder.to_dict()}
        write(folder / NAME, fields)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of an index folder.

        Raises:
            IndexFormatError: if the folder is no index, is damaged, or needs a newer e2rank.
        """
        path = folder / NAME
        version, fields = read(path, {each.name for each in dataclasses.fields(cls) if each.init})
        try:
            segments = [SegmentInfo(**each) for each in fields.pop("segments")]
            encoder = EncoderInfo(**fields.pop("encoder"))
            manifest = cls(encoder=encoder, segments=segments, **fields)
            _check(manifest)
            object.__setattr__(manifest, "format", version)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise damaged(path, error) from error
        return manifest


def _later(config: dict[str, Any]) -> bool:
    """Whether a configuration says something that format 3 does not know."""
    return any(name.startswith(("sparse", "token", "bm25", "passages")) for name in config)


def _check(manifest: Manifest) -> None:
    """Look up everything that is read later, so that what is missing is missed here.

    Raises:
        TypeError, KeyError, AttributeError, ValueError: for what is missing or is something else.
    """
    encoder = manifest.encoder
    for name in ("name", "fingerprint", "tokens", "sparse"):
        _is(str, getattr(encoder, name), name)
    for name in ("dim", "token_dim", "sparse_dim"):
        _is(int, getattr(encoder, name), name)
        least = 1 if name == "dim" else 0
        if getattr(encoder, name) < least:
            raise ValueError(f"{name} is {getattr(encoder, name)}")
    for name in ("commit", "next_segment"):
        _is(int, getattr(manifest, name), name)
    IndexConfig(**manifest.config)
    _is(str, manifest.config["factory"], "factory")
    _check_segments(manifest.segments, manifest.next_segment)
    for name, entry in manifest.files.items():
        _check_file(name, entry)
    if manifest.adapter:
        _check_adapter(manifest.adapter, manifest.files)


def _check_adapter(folder: str, files: Iterable[str]) -> None:
    if not re.fullmatch(r"adapter-\d{6,}", folder):
        raise ValueError(f"adapter is {folder!r}")
    if not any(name.startswith(f"{folder}/") for name in files):
        raise ValueError(f"it names no file of {folder}")


def _check_file(name: str, entry: dict[str, Any]) -> None:
    _is(int, entry["bytes"], name)
    _is(str, entry["xxh3"], name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
        raise ValueError(f"it names the file {name!r}")


def _check_segments(segments: list[SegmentInfo], bound: int) -> None:
    if not segments:
        raise KeyError("segments")
    for segment in segments:
        _check_segment(segment, bound)
    if len({segment.name for segment in segments}) < len(segments):
        raise ValueError("two segments have one name")


def _check_segment(segment: SegmentInfo, bound: int) -> None:
    for name in ("count", "truncated", "deleted"):
        _is(int, getattr(segment, name), name)
        if getattr(segment, name) < 0:
            raise ValueError(f"{name} is {getattr(segment, name)}")
    for name in ("name", "factory", "deletions"):
        _is(str, getattr(segment, name), name)
    if not segment.factory:
        raise ValueError("a segment has no factory")
    if not re.fullmatch(r"\d{6,}", segment.name) or int(segment.name) >= bound:
        raise ValueError(f"a segment is named {segment.name!r}")
    if bool(segment.deleted) != bool(segment.deletions) or segment.deleted > segment.count:
        raise ValueError(f"segment {segment.name} has {segment.deleted} deletions")


def _is(kind: Any, value: object, name: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")
