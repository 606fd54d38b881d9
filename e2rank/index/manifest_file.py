"""The manifest's file: its format, its seal, and what older formats left out."""

import json
import stat
from pathlib import Path
from typing import Any

from e2rank.durable import is_sealed, sealed, write_atomically
from e2rank.errors import IndexFormatError
from e2rank.index.files import damaged

FORMAT = 4
"""What is read at most. Format 4 is written where there are sparse vectors or a setting that came
with them or later, else 3; formats 1 and 2, of one segment that never changed, are read too."""

SEALED = 3
"""The first format whose manifest has a seal."""

KIND = "e2rank-index"

MAX_BYTES = 64 << 20
"""What a manifest may have at most: that of 100,000 files is a fifth of it."""

_OLD = {"encoder", "config", "segments", "tombstones", "files"}


def write(path: Path, fields: dict[str, Any]) -> None:
    """Put the file in place at once, sealed: readers see the old one or the new one.

    Args:
        path: of the file.
        fields: what it says, JSON-able; "format" is the number of its format.
    """
    said = {"format": fields["format"], "kind": KIND, **fields}
    write_atomically(path, sealed(said))


def read(path: Path, names: set[str]) -> tuple[int, dict[str, Any]]:
    """The number of the file's format, and its fields as the newest format has them.

    Args:
        path: of the file.
        names: of the fields that it must have, no more and no less.
    Raises:
        IndexFormatError: if the folder is no index, is damaged, or needs a newer e2rank.
    """
    fields, raw = _parsed(path)
    if fields.pop("kind", None) != KIND:
        raise IndexFormatError(f"{path} is not the manifest of an e2rank index")
    version = fields.pop("format", None)
    if version is None:
        raise damaged(path, "it says no format")
    if not isinstance(version, int) or version > FORMAT:
        raise IndexFormatError(
            f"{path.parent} has index format {version}, and this e2rank reads up to {FORMAT}. "
            "Run: pip install -U e2rank"
        )
    try:
        if version < SEALED:
            _upgrade(fields, version)
        else:
            _unseal(fields, raw, names)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise damaged(path, error) from error
    return version, fields


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


def _unseal(fields: dict[str, Any], raw: bytes, names: set[str]) -> None:
    """Check the hash of every byte before it, and that no field is missing or more.

    Raises:
        KeyError, ValueError: if it is not what was written.
    """
    if not is_sealed(raw):
        raise ValueError("it differs from its own checksum")
    del fields["checksum"]
    _exactly(fields, names)


def _exactly(fields: dict[str, Any], names: set[str]) -> None:
    if strange := fields.keys() ^ names:
        raise KeyError(sorted(strange)[0])


def _parsed(path: Path) -> tuple[dict[str, Any], bytes]:
    folder = path.parent
    if not folder.is_dir():
        raise IndexFormatError(f"{folder} is not a folder; expected an e2rank index")
    try:
        about = path.stat()
        # Asked before it is opened: a pipe would wait for who writes to it.
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no regular file")
        if about.st_size > MAX_BYTES:
            raise ValueError(f"it has {about.st_size:,} bytes, expected {MAX_BYTES:,} at most")
        raw = path.read_bytes()
        fields = json.loads(raw)
    except FileNotFoundError:
        raise IndexFormatError(
            f"{folder} has no {path.name}: not an e2rank index, or its build was cut short"
        ) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(fields, dict):
        raise damaged(path, "expected a JSON object")
    return fields, raw
