"""The Rust tokenizer inside one of transformers', the only kind that texts are read with here."""

from typing import Any

from tokenizers import Tokenizer

# Where a tokenizer's file is missing, transformers makes one of little more than special tokens.
_LEAST = 10


def backend(tokenizer: Any) -> Tokenizer:
    """What a loaded tokenizer of transformers reads texts with.

    Raises:
        ValueError: if it is none of Rust, or knows no words.
    """
    found, where = getattr(tokenizer, "backend_tokenizer", None), tokenizer.name_or_path
    if not isinstance(found, Tokenizer):
        raise ValueError(
            f"{where} is read by {type(tokenizer).__name__}, which runs in Python; expected a "
            "tokenizer that a tokenizer.json holds: convert it, or take another model"
        )
    ordinary = found.get_vocab_size() - len(found.get_added_tokens_decoder())
    if ordinary < _LEAST:
        raise ValueError(
            f"the tokenizer of {where} knows {ordinary} tokens besides special ones; put the "
            "model's tokenizer.json into the folder"
        )
    return found
