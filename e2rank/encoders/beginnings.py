"""Tokenising of a long text no more than a budget can hold, with the same tokens."""

from collections.abc import Callable, Sequence

from tokenizers import Encoding as Pieces

# Few texts have more characters a token: of English they are four to five.
_CHARACTERS = 6

# Where a text ends early its last tokens may be others than in the whole: so many are never read.
_SPARE = 16

_BLANKS = (" ", "\n", "\t")


def read_beginnings(
    encode: Callable[[list[str]], Sequence[Pieces]],
    texts: Sequence[str],
    budget: int,
    before: str = "",
    after: str = "",
) -> tuple[list[str], list[Pieces]]:
    """Pieces of n texts, each whole or by more than `budget` tokens of its beginning.

    A text's first `budget` tokens are those of the whole text, wherever the tokenizer makes no
    token of what stands on both sides of a blank far away from it.

    Args:
        encode: a tokenizer's batches.
        texts: n texts.
        budget: tokens that are read of one, with all that is put around it.
        before: put before each.
        after: put behind each.
    Returns:
        What was tokenised of each text, and its pieces.
    """
    most = _CHARACTERS * (budget + _SPARE)
    begun = [_beginning(text, most) for text in texts]
    read = list(encode([f"{before}{text}{after}" for text in begun]))
    # Long words, blanks or another script: so few tokens do not tell where the budget ends.
    again = [
        place
        for place, (part, text) in enumerate(zip(begun, texts, strict=True))
        if len(part) < len(text) and len(read[place].ids) < budget + _SPARE
    ]
    if again:
        whole = encode([f"{before}{texts[place]}{after}" for place in again])
        for place, pieces in zip(again, whole, strict=True):
            begun[place], read[place] = texts[place], pieces
    return begun, read


def _beginning(text: str, most: int) -> str:
    """At most so many characters of a text, up to a blank; all of it where there is none."""
    if len(text) <= most:
        return text
    end = max(text.rfind(blank, 0, most) for blank in _BLANKS)
    return text[:end] if end > 0 else text
