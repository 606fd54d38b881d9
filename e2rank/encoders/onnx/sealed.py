"""Fields as JSON that carries the hash of its own bytes: a flipped digit is found."""

import json
import re
from typing import Any

import xxhash

_SEAL = re.compile(rb',\n  "checksum": "([0-9a-f]{16})"\n}\n')
_SEAL_BYTES = 37


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
