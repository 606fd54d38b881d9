"""The errors a caller may want to catch by name; other bad arguments are plain ValueError."""


class CorpusError(ValueError):
    """A document, line or file of a corpus that cannot be used; says which and why."""


class IndexFormatError(ValueError):
    """A folder that is not an e2rank index, is damaged, or needs a newer e2rank."""


class IndexBusy(IndexFormatError):
    """An index that another process is writing; the same can be tried again later."""


class EncoderMismatch(ValueError):
    """An index was made by another model than the one offered."""


class UnknownEncoder(ValueError):
    """A name that is no preset's, no folder's and no model's on a hub."""


class AdapterError(ValueError):
    """A trained adapter that is damaged, or does not fit the model it is loaded on."""


class EncodingError(RuntimeError):
    """A model gave something that is not a usable vector (NaN, infinity, wrong shape)."""


class MissingExtra(ImportError):
    """A feature whose optional dependency is not installed.

    >>> str(MissingExtra("torch", extra="torch"))
    "torch is not installed. Run: pip install 'e2rank[torch]'"
    """

    def __init__(self, module: str, *, extra: str) -> None:
        super().__init__(f"{module} is not installed. Run: pip install 'e2rank[{extra}]'")
