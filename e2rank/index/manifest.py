"""The manifest: the one file that makes a folder an index, written last, by rename."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from e2rank.errors import IndexFormatError
from e2rank.index.files import write_atomically

FORMAT = 2
"""The newest that is read; an index without token vectors is still written as format 1."""

KIND = "e2rank-index"
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
    """

    name: str
    fingerprint: str
    dim: int
    token_dim: int = 0
    tokens: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able; those of token vectors only where there are any."""
        fields = dataclasses.asdict(self)
        if not self.token_dim:
            del fields["token_dim"], fields["tokens"]
        return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an index is made of.

    Args:
        encoder: which encoder made it.
        config: the fields of the `IndexConfig` it was built with.
        segments: `{"name", "count", "truncated"}` of each; today there is exactly one.
        tombstones: ids of deleted documents; today always empty.
        files: path inside the folder to `{"bytes", "xxh3"}`, for every file but the manifest.
    """

    encoder: EncoderInfo
    config: dict[str, Any]
    segments: list[dict[str, Any]]
    tombstones: list[str]
    files: dict[str, dict[str, Any]]

    @property
    def count(self) -> int:
        """Documents in the index."""
        return sum(segment["count"] for segment in self.segments)

    @property
    def truncated(self) -> int:
        """Documents that were longer than the encoder reads."""
        return sum(segment["truncated"] for segment in self.segments)

    def save(self, folder: Path) -> None:
        """Put this manifest in place at once: readers see the old one or the new one."""
        version = FORMAT if self.encoder.token_dim else 1
        fields = {"format": version, "kind": KIND, **dataclasses.asdict(self)}
        fields["encoder"] = self.encoder.to_dict()
        text = json.dumps(fields, indent=2, ensure_ascii=False)
        write_atomically(folder / NAME, text.encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of an index folder.

        Raises:
            IndexFormatError: if the folder is no index, is damaged, or needs a newer e2rank.
        """
        fields = _read(folder)
        if fields.pop("kind", None) != KIND:
            raise IndexFormatError(f"{folder / NAME} is not the manifest of an e2rank index")
        version = fields.pop("format", None)
        if version is None:
            raise IndexFormatError(f"{folder / NAME} is damaged: it says no format")
        if not isinstance(version, int) or version > FORMAT:
            raise IndexFormatError(
                f"{folder} has index format {version}, and this e2rank reads up to {FORMAT}. "
                "Run: pip install -U e2rank"
            )
        try:
            manifest = cls(encoder=EncoderInfo(**fields.pop("encoder")), **fields)
            _check(manifest, version)
        except (TypeError, KeyError, AttributeError) as error:
            raise IndexFormatError(f"{folder / NAME} is damaged: {error}") from error
        return manifest


def _check(manifest: Manifest, version: int) -> None:
    """Look up everything that is read later, so that what is missing is missed here.

    Raises:
        TypeError, KeyError, AttributeError: for what is missing or of another type.
    """
    if not manifest.segments:
        raise KeyError("segments")
    _is(int, manifest.encoder.token_dim, "token_dim")
    _is(str, manifest.encoder.tokens, "tokens")
    if (manifest.encoder.token_dim > 0) != (version > 1):
        raise KeyError("token_dim")
    for name, kind in (("factory", str), ("nprobe", int | None), ("ef_search", int | None)):
        _is(kind, manifest.config[name], name)
    for segment in manifest.segments:
        _is(str, segment["name"], "name")
        _is(int, segment["count"], "count")
        _is(int, segment["truncated"], "truncated")
    for name, entry in manifest.files.items():
        _is(int, entry["bytes"], name)
        _is(str, entry["xxh3"], name)


def _is(kind: Any, value: object, name: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")


def _read(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise IndexFormatError(f"{folder} is not a folder; expected an e2rank index")
    try:
        fields = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IndexFormatError(
            f"{folder} has no {NAME}: not an e2rank index, or its build was cut short"
        ) from None
    except ValueError as error:
        raise IndexFormatError(f"{folder / NAME} is damaged: {error}") from error
    if not isinstance(fields, dict):
        raise IndexFormatError(f"{folder / NAME} is damaged: expected a JSON object")
    return fields
