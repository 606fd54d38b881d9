"""Stages of a long benchmark: what one has measured is kept, and a run cut short continues."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stage(path: Path, measure: Callable[[], Any]) -> Any:
    """What `measure` gives, JSON-able: read from `path` if it is there, else written to it."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found
