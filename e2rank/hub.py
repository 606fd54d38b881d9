"""Publishing an index on a Hugging Face hub, and fetching one: whole and as published, or not."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from e2rank.durable import file_entry
from e2rank.errors import IndexFormatError, MissingExtra
from e2rank.index.card import card
from e2rank.index.files import check_file
from e2rank.index.manifest import NAME, Manifest
from e2rank.index.shipping import (
    MAX_MANIFEST,
    beside,
    check_free,
    load_from_elsewhere,
    put_in_place,
    snapshot,
    unchanged,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Publish an index in a model repository of a hub, as one commit.

    The commit holds the manifest, the files it names, and a card in place of any other README.md.
    Files of the index that was there before, and are not of this one, go in the same commit;
    whatever else the repository holds stays.

    Args:
        folder: an index.
        repo_id: the repository, `owner/name`; made if it is not there.
        private: whether only its owner may read it.
        license: a licence for the card as the hub calls it, such as `apache-2.0`.
        endpoint: the address of the hub; Hugging Face's if not given.
    Returns:
        The commit, which `pull` takes as `revision`.
    Raises:
        IndexFormatError: if the index is damaged, naming the file; nothing is sent then.
        ValueError: for a repo_id of another shape, or if the repository holds other things and no
            index, or is public where a private one is asked for.
        OSError: if the hub cannot be reached, or refuses.
        MissingExtra: if huggingface_hub is not installed.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id is {repo_id!r}; expected owner/name")
    folder, api = Path(folder), _api(endpoint)
    manifest, text = snapshot(folder)
    files: dict[str, Path | bytes] = {NAME: text}
    with unchanged(folder, manifest):
        for name, entry in manifest.files.items():
            check_file(folder / name, entry)
            files[name] = folder / name
    about = card(manifest, repo_id, license=license).encode()
    with _asking(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    before = _Remote.at(api, repo_id)
    if private and not before.private:
        raise ValueError(f"{repo_id} is there already and public: make it private on the hub first")
    stale = before.indexed() - set(files)
    after = before.change({**files, CARD: about}, sorted(stale))
    sizes = {name: entry["bytes"] for name, entry in manifest.files.items()}
    for name, size in {NAME: len(text), **sizes}.items():
        # A .gitignore in the repository, for one, keeps files out without a word.
        if after.sizes.get(name) != size:
            raise OSError(f"{repo_id} did not take {name}: {after.commit} holds no whole index")
    return after.commit


def pull(
    repo_id: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Manifest:
    """Fetch an index from a hub: the files that its manifest names, into the folder, and no others.

    The folder appears when it is whole and every hash is right, or not at all.

    Args:
        repo_id: the repository, `owner/name`.
        folder: a new or empty folder.
        revision: a commit, a tag or a branch; the newest commit if not given.
        endpoint: the address of the hub; Hugging Face's if not given.
    Returns:
        The manifest of the index.
    Raises:
        IndexFormatError: if there is no index, or a file differs from its size or hash.
        ValueError: if the folder is not free.
        OSError: if the hub cannot be reached, or refuses.
        MissingExtra: if huggingface_hub is not installed.
    """
    folder, api = Path(folder), _api(endpoint)
    check_free(folder)
    remote = _Remote.at(api, repo_id, revision)
    with beside(folder) as side:
        manifest = remote.manifest(side, shutil.disk_usage(side.parent).free)
        for name, entry in manifest.files.items():
            if (size := remote.sizes.get(name)) != entry["bytes"]:
                raise IndexFormatError(
                    f"{repo_id} has {size or 'no'} bytes of {name}, expected {entry['bytes']}: it "
                    "holds no whole index"
                )
        for name, entry in manifest.files.items():
            remote.download(name, side)
            if file_entry(side / name) != entry:
                raise IndexFormatError(f"{repo_id} is damaged: {name} differs from its hash")
        # What the download keeps for itself.
        shutil.rmtree(side / ".cache")
        put_in_place(side, folder, manifest)
    return manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Remote:
    """A repository at one commit, with path and bytes of every file."""

    api: "HfApi"
    repo_id: str
    commit: str
    private: bool
    sizes: dict[str, int]

    @classmethod
    def at(cls, api: "HfApi", repo_id: str, revision: str | None = None) -> Self:
        """Look it up."""
        from huggingface_hub.hf_api import RepoFile

        with _asking(repo_id):
            info = api.model_info(repo_id, revision=revision)
            commit = str(info.sha)
            tree = list(api.list_repo_tree(repo_id, recursive=True, revision=commit))
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        private = bool(info.private)
        return cls(api=api, repo_id=repo_id, commit=commit, private=private, sizes=sizes)

    def download(self, name: str, side: Path) -> None:
        """Fetch a file into a folder, to the same path."""
        # A cache of its own: what others left in the shared one is not looked at.
        cache = side / ".cache" / "hub"
        with _asking(self.repo_id):
            self.api.hf_hub_download(
                self.repo_id, name, revision=self.commit, local_dir=side, cache_dir=cache
            )

    def manifest(self, side: Path, room: int | None = None) -> Manifest:
        """Fetch the manifest into a folder and check it."""
        if NAME not in self.sizes:
            raise IndexFormatError(f"{self.repo_id} has no {NAME}: not an e2rank index")
        if (size := self.sizes[NAME]) > MAX_MANIFEST:
            raise IndexFormatError(
                f"{self.repo_id} has a manifest of {size:,} bytes; expected {MAX_MANIFEST:,} at "
                "most"
            )
        self.download(NAME, side)
        return load_from_elsewhere(side, self.repo_id, room)

    def indexed(self) -> set[str]:
        """The files of the index that it holds; none if it is as good as empty."""
        if NAME in self.sizes:
            with tempfile.TemporaryDirectory() as scratch:
                return self.sizes.keys() & self.manifest(Path(scratch) / "index").files.keys()
        for name in sorted(self.sizes):
            if not name.startswith((".git", CARD, "LICENSE")):
                raise ValueError(
                    f"{self.repo_id} holds {name!r} and no index: push to a repository of its own"
                )
        return set()

    def change(self, files: dict[str, Path | bytes], stale: list[str]) -> Self:
        """Add and remove files in one commit; refused if another came in between."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        added = [CommitOperationAdd(name, data) for name, data in files.items()]
        removed = [CommitOperationDelete(name) for name in stale]
        with _asking(self.repo_id):
            made = self.api.create_commit(
                self.repo_id,
                [*added, *removed],
                commit_message="Index by e2rank",
                parent_commit=self.commit,
            )
        return self.at(self.api, self.repo_id, made.oid)


def _api(endpoint: str | None) -> "HfApi":
    if find_spec("huggingface_hub") is None:
        raise MissingExtra("huggingface_hub", extra="hub")
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, library_name="e2rank")


@contextlib.contextmanager
def _asking(repo_id: str) -> Iterator[None]:
    """Turn what goes wrong between here and a hub into one line that names the repository."""
    try:
        yield
    except Exception as error:  # of whichever HTTP library the hub's own uses
        if isinstance(error, ValueError) or getattr(error, "errno", None):
            # A bad argument, or this machine's own trouble.
            raise
        # An upload that failed is told by its file, and the reason is its cause.
        said = f"{error} {error.__cause__ or ''}".split() or [type(error).__name__]
        raise OSError(f"{repo_id} on the hub: {' '.join(said)}") from error
