"""The card of a published index: what it holds and how to open it, from its manifest alone."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from e2rank.index.manifest import Manifest
from e2rank.index.tokens import kinds_of

SHOWN = 1000
"""Files that a card lists."""

_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")


def card(manifest: Manifest, repo_id: str, *, license: str | None = None) -> str:
    """The README.md of an index on a hub: front matter in YAML, then Markdown.

    Args:
        manifest: of the index.
        repo_id: where it is published, `owner/name`.
        license: a licence as the hub calls it, such as `apache-2.0`; no word of one if not given.
    Raises:
        ValueError: if the licence is no such identifier.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(f"license is {license!r}; expected an identifier, such as apache-2.0")
    name = repo_id.split("/")[-1]
    lines = (
        *("---", "library_name: e2rank"),
        *((f"license: {license}",) if license else ()),
        *("tags:", "- e2rank", "- search-index", "- embeddings", "---", ""),
        *(f"# {name}", "", "A search index for the Python package `e2rank`.", ""),
        *_table(("", ""), _facts(manifest)),
        *("## Open it", "", "```python"),
        *("from e2rank import Engine", "from e2rank.hub import pull", ""),
        *(f'pull("{repo_id}", "{name}")', f'engine = Engine.open("{name}")', "```", ""),
        "Sizes and hashes of all files are compared as they arrive. The encoder is not part of the "
        "index: if it is not found by its name, say where it is, as in "
        f'`Engine.open("{name}", "a-folder")`. Another model than the one with this fingerprint is '
        "refused.",
        *("", "## Files", ""),
        *_table(("file", "bytes", "xxh3"), _files(manifest)),
    )
    return "\n".join(lines)


def _facts(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    encoder, path = manifest.encoder, PurePath(manifest.encoder.name)
    config = manifest.index_config
    yield manifest.noun, f"{manifest.count:,}"
    if manifest.deleted:
        yield "deleted, still in the files", f"{manifest.deleted:,}"
    yield "longer than a model of the encoder reads", f"{manifest.truncated:,}"
    # Where the folder of a model was is nobody's business.
    yield "encoder", _code(path.name if path.is_absolute() else encoder.name)
    yield "fingerprint", _code(encoder.fingerprint)
    yield "adapted to its documents", "yes, queries only" if manifest.adapter else "no"
    yield "dimension", f"{encoder.dim:,}"
    kinds = f"{encoder.token_dim:,} components, kept as {' and '.join(kinds_of(manifest))}"
    yield "token vectors", kinds if encoder.token_dim else "none"
    terms = f"of {encoder.sparse_dim:,} terms, search {config.sparse}"
    yield "sparse vectors", terms if encoder.sparse_dim else "none"
    yield "FAISS factory", _code(config.factory)
    if config.token_factory:
        yield "FAISS factory of single tokens", _code(config.token_factory)
    yield "index format", f"{manifest.format}"
    yield "bytes", f"{manifest.bytes:,}"


def _files(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for place, (name, entry) in enumerate(sorted(manifest.files.items())):
        if place == SHOWN:
            yield f"and {len(manifest.files) - SHOWN:,} more, see manifest.json", "", ""
            return
        yield _code(name), f"{entry['bytes']:,}", _code(entry["xxh3"])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _code(text: str) -> str:
    """A value as code, with nothing in it that would end the code or the cell.

    >>> _code("minilm"), _code("a`b|c")
    ('`minilm`', '`a b c`')
    """
    return f"`{' '.join(re.sub('[`|]', ' ', text).split())}`"
