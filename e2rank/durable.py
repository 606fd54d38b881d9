"""Files that are whole or not there, and say so: durable writes, hashes, seals."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

_SEAL = re.compile(rb',\n  "checksum": "([0-9a-f]{16})"\n}\n')
_SEAL_BYTES = 37


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, make it durable, and rename it into place."""
    side = path.with_name(path.name + ".part")
    with naming(side), side.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    side.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a closed file's bytes durable, or a folder's renames.

    A disk that was full says so here at the latest.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of writing it, such as of a full disk; the system does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def file_entry(path: Path) -> dict[str, int | str]:
    """Size and xxh3 of a file, as an index's manifest and a bundle record them."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return {"bytes": path.stat().st_size, "xxh3": state.hexdigest()}


def sealed(fields: dict[str, Any]) -> bytes:
    """Fields, JSON-able, at least one, with the checksum of all before it at their end."""
    body = json.dumps(fields, indent=2, ensure_ascii=False).encode()
    seal = f',\n  "checksum": "{xxhash.xxh3_64_hexdigest(body)}"\n}}\n'
    return body.removesuffix(b"\n}") + seal.encode()


def is_sealed(raw: bytes) -> bool:
    """Whether these are bytes of `sealed`, none of them another than it was."""
    seal = _SEAL.fullmatch(raw[-_SEAL_BYTES:])
    body = raw[:-_SEAL_BYTES] + b"\n}"
    return seal is not None and xxhash.xxh3_64_hexdigest(body).encode() == seal[1]
