"""Finds the files of an adapter made elsewhere: in a folder, in a .zip file, or on the Hub."""

import lzma
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from peft_space import settings
from peft_space.errors import UserError, as_user_error
from peft_space.redaction import has_secret

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_PICKLE = "adapter_model.bin"
_MAX_ZIP_ENTRIES = 10_000
_MAX_ZIP_RATIO = 10
"""Weights hardly compress, so a file that unpacks to more times its size is not an adapter."""
_MAX_TEXT_RATIO = 100
_MAX_CONFIG_BYTES = 4_000_000
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def find_adapter(adapter: str, scratch: Path) -> Path:
    """Return a folder with the adapter's files.

    Args:
        adapter: a folder (not on a Space), a .zip of one, or a Hub id.
        scratch: an empty folder, into which a .zip is unpacked.

    Raises:
        UserError: there is no such adapter, or it is incomplete.
    """
    path = Path(os.path.expanduser(adapter))
    if path.suffix == ".zip" and os.path.isfile(path):
        return _unpack_zip(path, scratch)
    if not settings.on_space() and os.path.isdir(path):
        _check_complete(path.name, os.listdir(path), _checkpoints_in(path))
        return path
    return _download(adapter)


def _checkpoints_in(folder: Path) -> list[str]:
    names = [path.parent.name for path in folder.glob(f"*/{CONFIG}")]
    return sorted(names, key=_step)


def _step(name: str) -> tuple[int, str]:
    match = _CHECKPOINT.fullmatch(name)
    return (int(match[1]) if match else -1, name)


def _check_complete(name: str, files: Sequence[str], folders: Sequence[str]) -> None:
    """Check that both files of an adapter are there.

    Args:
        name: of the adapter.
        files: the names of its files.
        folders: the names of folders inside that contain an adapter.
    """
    missing = [file for file in (CONFIG, WEIGHTS) if file not in files]
    if not missing:
        return
    if WEIGHTS in missing and _PICKLE in files and CONFIG in files:
        raise UserError(
            "training.adapter_pickled",
            f"{name}: its weights are in {_PICKLE}, a pickle file. Opening a pickle can run code, "
            f"so it is not opened. If you trust its author, load the adapter in PEFT, and call "
            f"save_pretrained, which writes {WEIGHTS}.",
        )
    if folders:
        listed = ", ".join(folders[-5:])
        raise UserError(
            "training.adapter_incomplete",
            f"{name} has no {missing[0]}, but these folders in it have one: {listed}. "
            f"Give one of them, such as {name}/{folders[-1]}.",
        )
    if "config.json" in files and CONFIG in missing:
        raise UserError(
            "training.adapter_incomplete",
            f"{name} is not an adapter: it has a config.json and no {CONFIG}, as a whole model "
            "has. Set it as base_model in a recipe.",
        )
    raise UserError(
        "training.adapter_incomplete",
        f"{name} is not a complete adapter: it has no {missing[0]}. "
        "Give the output of PEFT's save_pretrained.",
    )


# On the Hub


def _download(adapter: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    from peft_space.compat.huggingface_hub import explain_hub_error

    try:
        if has_secret(adapter):
            raise HFValidationError("this is a token")
        folder = Path(hf_hub_download(adapter, CONFIG)).parent
        hf_hub_download(adapter, WEIGHTS, revision=folder.name)
    except RemoteEntryNotFoundError as error:
        names = _names_on_hub(adapter)
        folders = [str(path.parent) for path in map(PurePosixPath, names) if path.name == CONFIG]
        _check_complete(f"{adapter} on the Hub", names, [f for f in folders if f != "."])
        raise UserError(
            "training.adapter_incomplete",
            f"{adapter} on the Hub is not a complete adapter: it has no {CONFIG} or no "
            f"{WEIGHTS}. Choose the repository of an adapter saved by PEFT.",
        ) from error
    except (HFValidationError, OSError) as error:
        failure = explain_hub_error(error, adapter)
        reason = f": {failure.reason}" if failure else ""
        raise UserError(
            "training.adapter_not_found",
            f"The adapter {adapter!r} cannot be opened{reason}. Give a Hub id like OWNER/NAME, "
            "a .zip file, or a folder on your own machine.",
        ) from error
    for name in set(TOKENIZER_FILES) & set(_names_on_hub(adapter, folder.name)):
        hf_hub_download(adapter, name, revision=folder.name)
    return folder


def _names_on_hub(adapter: str, revision: str | None = None) -> list[str]:
    """The files of a repository; those in the cache if the Hub does not answer."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().list_repo_files(adapter, revision=revision)
    except (HfHubHTTPError, httpx2.HTTPError, OSError):
        return []


# In a .zip file


def _unpack_zip(path: Path, scratch: Path) -> Path:
    """Unpack the adapter's files from one folder of a .zip, by name alone."""
    damage = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MAX_ZIP_ENTRIES:
                raise UserError(
                    "training.adapter_ambiguous",
                    f"{path.name} has more than {_MAX_ZIP_ENTRIES:,} files. "
                    "Pack only the adapter's folder.",
                )
            folder = _folder_in_zip(archive, path.name)
            wanted = {CONFIG, WEIGHTS, *TOKENIZER_FILES}
            for entry in archive.infolist():
                place = PurePosixPath(entry.filename)
                if place.parent == folder and place.name in wanted:
                    _unpack_entry(archive, entry, scratch / place.name, path)
    except (*damage, RuntimeError) as error:  # RuntimeError: a password
        if as_user_error(error):
            raise
        raise UserError(
            "training.adapter_zip_damaged",
            f"{path.name} is not a .zip file that can be opened. Pack the adapter's folder again.",
        ) from None
    return scratch


def _folder_in_zip(archive: zipfile.ZipFile, name: str) -> PurePosixPath:
    """The folder of the only adapter, or of the one above its checkpoints."""
    places = [PurePosixPath(entry.filename) for entry in archive.infolist()]
    folders = list(dict.fromkeys(place.parent for place in places if place.name == CONFIG))
    top = min(folders, key=lambda folder: len(folder.parts), default=PurePosixPath())
    if not folders:
        with_weights = {place.parent for place in places if place.name in (WEIGHTS, _PICKLE)}
        top = next(iter(with_weights), top)
    files = [place.name for place in places if place.parent == top]
    if len(files) != len(set(files)):
        raise _ambiguous(name, f"two files named {next(f for f in files if files.count(f) > 1)}")
    checkpoints = [f for f in folders if f.parent == top and _CHECKPOINT.fullmatch(f.name)]
    if len(folders) - len(checkpoints) > 1:
        listed = ", ".join(str(folder) for folder in folders[:5])
        raise _ambiguous(name, f"{len(folders)} adapters, in {listed}")
    _check_complete(name, files, [])
    return top


def _ambiguous(name: str, found: str) -> UserError:
    return UserError(
        "training.adapter_ambiguous", f"{name} has {found}. Pack the folder of one adapter."
    )


def _unpack_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path
) -> None:
    size = path.stat().st_size
    limits = {CONFIG: _MAX_CONFIG_BYTES, WEIGHTS: _MAX_ZIP_RATIO * size}
    if entry.file_size > limits.get(target.name, max(_MAX_CONFIG_BYTES, _MAX_TEXT_RATIO * size)):
        raise UserError(
            "training.adapter_too_large",
            f"{path.name}: its {target.name} unpacks to {entry.file_size / 1e6:,.0f} MB, "
            "too large for an adapter. Pack it again.",
        )
    with archive.open(entry) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)  # reads no more than the entry's stated size
