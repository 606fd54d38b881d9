"""The manifest: the one file that makes a folder an index, written last, by rename."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import xxhash

from e2rank.config import IndexConfig
from e2rank.errors import IndexFormatError
from e2rank.index.files import damaged, write_atomically

FORMAT = 4
"""What is read at most. Format 4 is written where there are sparse vectors or a setting that came
with them, else 3; formats 1 and 2, of one segment that never changed, are read too."""

SEALED = 3
"""The first format whose manifest has a seal."""

KIND = "e2rank-index"
NAME = "manifest.json"

_OLD = {"encoder", "config", "segments", "tombstones", "files"}
_SEAL = re.compile(rb',\n  "checksum": "([0-9a-f]{16})"\n}\n')
_SEAL_BYTES = 37


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
        truncated: how many of them were longer than the encoder reads, when they came.
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
    def deleted(self) -> int:
        """Documents that are deleted, and whose bytes are still there."""
        return sum(segment.deleted for segment in self.segments)

    @property
    def truncated(self) -> int:
        """Documents that were longer than the encoder reads, deleted ones among them."""
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
        fields = {"format": new.format, "kind": KIND, **dataclasses.asdict(new)}
        fields["encoder"] = self.encoder.to_dict()
        body = json.dumps(fields, indent=2, ensure_ascii=False).encode()
        seal = f',\n  "checksum": "{xxhash.xxh3_64_hexdigest(body)}"\n}}\n'
        write_atomically(folder / NAME, body.removesuffix(b"\n}") + seal.encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of an index folder.

        Raises:
            IndexFormatError: if the folder is no index, is damaged, or needs a newer e2rank.
        """
        fields, raw = _read(folder)
        if fields.pop("kind", None) != KIND:
            raise IndexFormatError(f"{folder / NAME} is not the manifest of an e2rank index")
        version = fields.pop("format", None)
        if version is None:
            raise damaged(folder / NAME, "it says no format")
        if not isinstance(version, int) or version > FORMAT:
            raise IndexFormatError(
                f"{folder} has index format {version}, and this e2rank reads up to {FORMAT}. "
                "Run: pip install -U e2rank"
            )
        try:
            if version < SEALED:
                _upgrade(fields, version)
            else:
                _unseal(fields, raw)
            segments = [SegmentInfo(**each) for each in fields.pop("segments")]
            encoder = EncoderInfo(**fields.pop("encoder"))
            manifest = cls(encoder=encoder, segments=segments, **fields)
            _check(manifest)
            object.__setattr__(manifest, "format", version)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise damaged(folder / NAME, error) from error
        return manifest


def _later(config: dict[str, Any]) -> bool:
    """Whether a configuration says something that format 3 does not know."""
    return any(name.startswith(("sparse", "token")) for name in config)


def _upgrade(fields: dict[str, Any], version: int) -> None:
    """Add what formats 1 and 2 left out, as there was no choice.

    Raises:
        TypeError, KeyError, ValueError: if it is no manifest of that format.
    """
    if version < 1:
        raise ValueError(f"it says format {version}")
    _exactly(fields, _OLD)
    if fields.pop("tombstones") or len(fields["segments"]) != 1:
        raise ValueError(f"format {version} has one segment, and no tombstones")
    if (fields["encoder"].get("token_dim", 0) > 0) != (version > 1):
        raise KeyError("token_dim")
    (only,) = fields["segments"]
    only["factory"] = fields["config"]["factory"]
    fields["next_segment"] = int(only["name"]) + 1


def _unseal(fields: dict[str, Any], raw: bytes) -> None:
    """Check the hash of every byte before it, and that no field is missing or more.

    Raises:
        KeyError, ValueError: if it is not what was written.
    """
    seal = _SEAL.fullmatch(raw[-_SEAL_BYTES:])
    body = raw[:-_SEAL_BYTES] + b"\n}"
    if seal is None or xxhash.xxh3_64_hexdigest(body).encode() != seal[1]:
        raise ValueError("it differs from its own checksum")
    del fields["checksum"]
    _exactly(fields, {each.name for each in dataclasses.fields(Manifest) if each.init})


def _exactly(fields: dict[str, Any], names: set[str]) -> None:
    if strange := fields.keys() ^ names:
        raise KeyError(sorted(strange)[0])


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
    for name in ("commit", "next_segment"):
        _is(int, getattr(manifest, name), name)
    IndexConfig(**manifest.config)
    _is(str, manifest.config["factory"], "factory")
    if not manifest.segments:
        raise KeyError("segments")
    for segment in manifest.segments:
        _check_segment(segment, manifest.next_segment)
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


def _check_segment(segment: SegmentInfo, bound: int) -> None:
    for name in ("count", "truncated", "deleted"):
        _is(int, getattr(segment, name), name)
        if getattr(segment, name) < 0:
            raise ValueError(f"{name} is {getattr(segment, name)}")
    for name in ("name", "factory", "deletions"):
        _is(str, getattr(segment, name), name)
    if not re.fullmatch(r"\d{6,}", segment.name) or int(segment.name) >= bound:
        raise ValueError(f"a segment is named {segment.name!r}")
    if bool(segment.deleted) != bool(segment.deletions) or segment.deleted > segment.count:
        raise ValueError(f"segment {segment.name} has {segment.deleted} deletions")


def _is(kind: Any, value: object, name: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    if not folder.is_dir():
        raise IndexFormatError(f"{folder} is not a folder; expected an e2rank index")
    try:
        raw = (folder / NAME).read_bytes()
        fields = json.loads(raw)
    except FileNotFoundError:
        raise IndexFormatError(
            f"{folder} has no {NAME}: not an e2rank index, or its build was cut short"
        ) from None
    except (ValueError, RecursionError) as error:
        raise damaged(folder / NAME, error) from error
    if not isinstance(fields, dict):
        raise damaged(folder / NAME, "expected a JSON object")
    return fields, raw
