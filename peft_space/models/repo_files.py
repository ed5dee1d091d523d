"""Which files a base model has, in a folder, on the Hub, or of it on this machine, by their names and sizes."""

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX = "model.safetensors.index.json"
OUT_OF_REACH = "it is not on this machine and the Hub cannot be reached. Check the spelling and the network, or use demo"
_VOCABULARIES = re.compile(r"tokenizer\.json|vocab\.(json|txt)|.*\.(model|tiktoken)|tekken\.json")
_SMALL = 1024
"""Bytes: a pointer has fewer, and weights that are to be trained have more."""


@dataclass(frozen=True)
class RepoFiles:
    """The files of a base model: their sizes by name. They are in a folder, or on the Hub at a commit."""

    location: str
    revision: str | None
    sizes: Mapping[str, int]
    partly: bool = False
    """Whether these are only those that were downloaded before; the Hub may have more."""

    @property
    def folder(self) -> Path | None:
        """None on the Hub."""
        return Path(self.location) if Path(self.location).is_dir() else None

    def path(self, name: str) -> Path | None:
        """Where a file can be read on this machine. Of those on the Hub the small ones are downloaded; None for the others."""
        if self.folder:
            return self.folder / name
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        kept = try_to_load_from_cache(self.location, name, revision=self.revision)
        if isinstance(kept, str):
            return Path(kept)
        if self.sizes[name] > _SMALL and name != INDEX:
            return None
        return Path(hf_hub_download(self.location, name, revision=self.revision))


def list_repo_files(location: str, revision: str | None) -> RepoFiles | None:
    """The files of a folder, or of a repository on the Hub; what was downloaded of it where the Hub cannot be reached.

    None where the Hub does not tell.
    """
    import httpx2
    from huggingface_hub import errors

    if Path(location).is_dir():
        return RepoFiles(location, None, _sizes(Path(location)))
    pinned = re.fullmatch("[0-9a-f]{40}", revision or "")
    try:
        return RepoFiles(
            location,
            revision,
            (_sizes_of_commit if pinned else _sizes_of_commit.__wrapped__)(location, revision),
        )
    except errors.HfHubHTTPError:
        return None
    except (httpx2.HTTPError, OSError):
        return downloaded(location, revision)


def downloaded(location: str, revision: str | None) -> RepoFiles | None:
    """The files of a repository on the Hub that are on this machine; None for folders, and where there are none."""
    from huggingface_hub import try_to_load_from_cache

    kept = (
        None
        if Path(location).is_dir()
        else try_to_load_from_cache(location, "config.json", revision=revision)
    )
    folder = Path(kept).parent if isinstance(kept, str) else None
    return RepoFiles(str(folder), None, _sizes(folder), partly=True) if folder else None


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


@functools.lru_cache(maxsize=64)
def _sizes_of_commit(name: str, revision: str | None) -> Mapping[str, int]:
    """Kept for as long as the process lives, since a commit does not change."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    return {
        file.path: file.size
        for file in HfApi().list_repo_tree(name, revision=revision)
        if isinstance(file, RepoFile)
    }


def without_config(location: str, revision: str | None) -> str | None:
    """What is there instead of a base model where config.json is missing, and what to do; None where config.json is there."""
    files = list_repo_files(location, revision)
    if files is None or "config.json" in files.sizes:
        return None
    if "adapter_config.json" in files.sizes:
        return "it is an adapter, not a base model. Give the base model that it was trained on"
    if reason := gguf_among(files):
        return reason
    return "it has no config.json. Give " + (
        "the folder that save_pretrained wrote" if files.folder else "another base model"
    )


def has_vocabulary(location: str, revision: str | None, names: Collection[str]) -> bool:
    """Whether there is a file that a tokenizer's vocabulary can come from, as far as can be told.

    Args:
        names: of such files, besides the usual ones.
    """

    def there(files: RepoFiles) -> bool:
        return any(name in names or _VOCABULARIES.fullmatch(name) for name in files.sizes)

    if (local := downloaded(location, revision)) and there(local):
        return True  # without asking the Hub
    files = list_repo_files(location, revision)
    return files is None or files.partly or there(files)


def gguf_among(files: RepoFiles) -> str | None:
    """What is to be said of a model that is there as GGUF; None where it is not."""
    name = next((name for name in files.sizes if name.lower().endswith(".gguf")), None)
    return (
        name
        and f"it is in GGUF ({name}), which is for running a model, not for training one. Choose the original that it was made from"
    )
