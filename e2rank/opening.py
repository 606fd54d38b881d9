"""Which encoder an index is searched by: the one that is given, or what the index names itself."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from e2rank.encoders import DType, Encoder
from e2rank.encoders.presets import absent_folder, load_encoder
from e2rank.errors import AdapterError, UnknownEncoder
from e2rank.index import Store
from e2rank.ingest import check_same

_log = logging.getLogger("e2rank")


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """What was asked for when an index was opened.

    Args:
        encoder: given, or None for what the index names.
        dtype: what an encoder that is loaded by name computes in.
        adapted: whether the index's own adapter is used.
    """

    encoder: str | Path | Encoder | None
    dtype: DType | None
    adapted: bool

    def source(self, store: Store) -> str:
        """The name or folder of what the index is searched by; "" where it is given."""
        if self.encoder is not None:
            return ""
        manifest = store.manifest
        own = self.adapted and manifest.adapter
        return str(store.folder / manifest.adapter) if own else manifest.encoder.name

    def load(self, store: Store) -> Encoder:
        """The encoder, which is the one that made the index.

        Raises:
            EncoderMismatch: if it is not.
            ValueError: if none is given and its folder is gone, or it does not compute in `dtype`.
        """
        folder, manifest, source = store.folder, store.manifest, self.source(store)
        if self.encoder is None:
            encoder = _named(source, folder, self.dtype)
        else:
            encoder = load_encoder(self.encoder, dtype=self.dtype)
        check_same(encoder, manifest.encoder, str(folder))
        if self.encoder is not None:
            own = self.adapted and manifest.adapter
            _warn_of_another(encoder, folder, folder / manifest.adapter if own else None)
        return encoder


def _named(source: str, folder: Path, dtype: DType | None) -> Encoder:
    try:
        if absent := absent_folder(source):
            raise ValueError(
                f"{folder} was made with the encoder of {absent}, which is not here: pass its "
                "folder, or the model that was exported to it (encoder=, --encoder)"
            )
        return load_encoder(source, dtype=dtype)
    except (OSError, UnknownEncoder) as error:
        raise UnknownEncoder(
            f"{folder} names {source!r:.200} as the encoder that made it: {error}; one of your own "
            "is passed, Engine.open(folder, encoder)"
        ) from error


def _warn_of_another(encoder: Encoder, folder: Path, adapter: Path | None) -> None:
    """Say that an index is searched without what it was adapted by, or by what another was."""
    known = _fingerprint_of(adapter) if adapter else ""
    if known not in ("", getattr(encoder, "adapter_fingerprint", "")):
        _log.warning(
            "%s was adapted, and is searched by %s without that adapter: leave the encoder out, or "
            "export the index's own (e2rank export %s)",
            folder,
            encoder.name,
            folder,
        )
    elif not adapter and getattr(encoder, "adapted", False):
        _log.warning(
            "%s reads queries as it was adapted to an index, and %s is not searched by such an "
            "adapter: adapt it too, or take the encoder as it was before",
            encoder.name,
            folder,
        )


def _fingerprint_of(adapter: Path) -> str:
    """What an adapter says of itself, without torch; "" of one that was made before it did.

    Raises:
        AdapterError: if it says nothing.
    """
    try:
        fields = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))
        return str(fields.get("fingerprint", ""))
    except (OSError, AttributeError, ValueError, RecursionError) as error:
        raise AdapterError(f"{adapter} holds no whole adapter: {error}") from error
