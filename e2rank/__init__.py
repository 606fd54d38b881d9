"""One embedding model that retrieves and reranks. Start with `Engine`."""

from e2rank.config import IndexConfig
from e2rank.contract import Contract
from e2rank.corpus import read_corpus
from e2rank.documents import Candidates, Document
from e2rank.engine import Engine
from e2rank.errors import (
    CorpusError,
    EncoderMismatch,
    EncodingError,
    IndexBusy,
    IndexFormatError,
    MissingExtra,
)
from e2rank.gather.hybrid import Hybrid
from e2rank.hits import Hit, Hits
from e2rank.rerank.cross_encoder import CrossEncoderReranker
from e2rank.rerank.plans import Full, Groups, Windows
from e2rank.rerank.refine import MaxSim

__all__ = [
    "Candidates",
    "Contract",
    "CorpusError",
    "CrossEncoderReranker",
    "Document",
    "EncoderMismatch",
    "EncodingError",
    "Engine",
    "Full",
    "Groups",
    "Hit",
    "Hits",
    "Hybrid",
    "IndexBusy",
    "IndexConfig",
    "IndexFormatError",
    "MaxSim",
    "MissingExtra",
    "Windows",
    "read_corpus",
]
__version__ = "0.1.0"
