"""Which encoder an index is searched by: the one that is given, or what the index names itself."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from e2rank.encoders import DType, Encoder
from e2rank.encoders.presets import absent_folder, load_encoder
from e2rank.index import Store
from e2rank.ingest import check_same

_log = logging.getLogger("e2rank")


@dataclass(frozen=True, slots=True)
class Chosen:
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
        if self.encoder is None and (absent := absent_folder(source)):
            raise ValueError(
                f"{folder} was made with the encoder of {absent}, which is not here: pass its "
                "folder (encoder=, --encoder)"
            )
        encoder = load_encoder(source if self.encoder is None else self.encoder, dtype=self.dtype)
        check_same(encoder, manifest.encoder, str(folder))
        if self.adapted and self.encoder is not None and manifest.adapter:
            _warn_of_another(encoder, folder / manifest.adapter)
        return encoder


def _warn_of_another(encoder: Encoder, adapter: Path) -> None:
    """Say that an adapted index is searched without what it was adapted by."""
    fields = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))
    # Adapters did not always say it.
    if fields.get("fingerprint", "") not in ("", getattr(encoder, "adapter_fingerprint", "")):
        _log.warning(
            "%s was adapted, and is searched by %s without that adapter: leave the encoder out, or "
            "export the index's own (e2rank export %s)",
            adapter.parent,
            encoder.name,
            adapter.parent,
        )
