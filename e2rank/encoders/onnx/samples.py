"""Texts that an export is compared on and int8 is set by: real ones, and some of every length."""

import json
import random
from pathlib import Path

_WORDS = (
    "the of a in is to and wing flow heat pressure theory what does why how when cell protein "
    "treatment patients study trial vitamin blood risk therapy river city war law king market "
    "price bank music film game book school water energy light matter field force wave atom star "
    "planet earth climate ocean forest animal bird fish insect plant seed soil food health mind "
    "brain memory language word sentence meaning logic number set proof function graph network "
    "machine code data model error test result cause effect history future people family child"
)

_ODD = (
    "",
    " ",
    "?",
    "a",
    "naïve café façade",
    "Was hilft gegen Grippe?",
    "上海的天气怎么样",
    "что такое вихрь",
    "🪽🪽🪽",
    "e = mc^2; 3.14159 -- 10,000 m/s",
    "line one\nline two\n\n\tline three",
    "[CLS] [SEP] <|im_end|> </s>",
)

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 100, 130, 160, 200, 260, 400)


def sample_texts(count: int = 300) -> list[str]:
    """`count` texts, the same every time: odd ones, then words by chance, of 1 to 400 words."""
    words, chance = _WORDS.split(), random.Random(0)
    drawn = (
        " ".join(chance.choices(words, k=_LENGTHS[place % len(_LENGTHS)])).capitalize() + "."
        for place in range(count)
    )
    return [*_ODD, *drawn][:count]


def real_texts() -> tuple[list[str], list[str]]:
    """Paragraphs of Wikipedia and questions on them, the same every time; see wikipedia.md."""
    path = Path(__file__).with_name("wikipedia.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    paragraphs = [f"{line['title']} {line['text']}" for line in lines]
    return paragraphs, [line["question"] for line in lines]
