"""Lists a base model's files, locally or on the Hub, and checks its weights before they are loaded.

Reads names, sizes and safetensors headers. Never opens pickles.
"""

import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from peft_space.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from peft_space.models.resolve import BaseModelRef

INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_VOCABULARIES = re.compile(r"tokenizer\.json|vocab\.(json|txt)|.*\.(model|tiktoken)|tekken\.json")
_PICKLE = re.compile(r"(pytorch_model|model|consolidated).*\.(bin|pt|pth|ckpt)")
_SMALL_BYTES = 1024
"""A Git LFS pointer is smaller; trainable weights are larger."""
_POINTER = b"version https://git-lfs"
FLOATS = {"F64", "F32", "F16", "BF16"}
"""The dtypes of weights that can be trained, as safetensors calls them."""
_MAX_PARAMETERS_PER_BYTE = 8
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


class Fault(NamedTuple):
    """Why a model cannot be used."""

    code: str
    reason: str
    """Continues "… cannot be loaded: ". Has no full stop at its end."""


UNREACHABLE = Fault(
    "models.unreachable",
    "it is not on this machine and the Hub cannot be reached. "
    "Check the spelling and the network, or use demo",
)
_DOWNLOAD_AGAIN = "Download the model again, or choose another base model"
_CHOOSE_SAFETENSORS = "Choose a model that is stored as safetensors"


def _damaged(reason: str, remedy: str = _DOWNLOAD_AGAIN) -> Fault:
    return Fault("models.weights_damaged", f"{reason}. {remedy}")


def _unsupported(reason: str, remedy: str = _CHOOSE_SAFETENSORS) -> Fault:
    return Fault("models.weights_unsupported", f"{reason}. {remedy}")


@dataclass(frozen=True)
class RepoFiles:
    """The files of a base model in a folder, or on the Hub at a revision."""

    location: str
    revision: str | None
    sizes: Mapping[str, int]
    """Bytes by file name."""
    partial: bool = False
    """True if these are only the files downloaded earlier. The Hub may have more."""

    @property
    def folder(self) -> Path | None:
        """None on the Hub."""
        return Path(self.location) if Path(self.location).is_dir() else None

    def path(self, name: str) -> Path | None:
        """The local path of a file. Downloads a small one; None for a large one on the Hub."""
        if self.folder:
            return self.folder / name
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.location, name, revision=self.revision)
        if isinstance(cached, str):
            return Path(cached)
        if self.sizes[name] > _SMALL_BYTES and name != INDEX:
            return None
        return Path(hf_hub_download(self.location, name, revision=self.revision))


def list_repo_files(location: str, revision: str | None) -> RepoFiles | None:
    """The files of a folder or of a repository on the Hub.

    Returns:
        The files downloaded earlier if the Hub cannot be reached; None if it gives no answer.
    """
    import httpx2
    from huggingface_hub import errors

    if Path(location).is_dir():
        return RepoFiles(location, None, _sizes_in(Path(location)))
    is_commit = re.fullmatch("[0-9a-f]{40}", revision or "")
    list_sizes = _sizes_of_commit if is_commit else _sizes_of_commit.__wrapped__
    try:
        return RepoFiles(location, revision, list_sizes(location, revision))
    except errors.HfHubHTTPError:
        return None
    except (httpx2.HTTPError, OSError):
        return list_cached_files(location, revision)


def list_cached_files(location: str, revision: str | None) -> RepoFiles | None:
    """The cached files of a repository on the Hub; None for a folder, or if there are none."""
    from huggingface_hub import try_to_load_from_cache

    if Path(location).is_dir():
        return None
    config = try_to_load_from_cache(location, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return RepoFiles(str(folder), None, _sizes_in(folder), partial=True)


def _sizes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


@functools.lru_cache(maxsize=64)
def _sizes_of_commit(name: str, revision: str | None) -> Mapping[str, int]:
    """Cached for the life of the process, because a commit does not change."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(name, revision=revision)
    return {file.path: file.size for file in tree if isinstance(file, RepoFile)}


def config_fault(location: str, revision: str | None) -> Fault | None:
    """Why there is no config.json, by the files that are there; None if there is one."""
    files = list_repo_files(location, revision)
    if files is None or "config.json" in files.sizes:
        return None
    if "adapter_config.json" in files.sizes:
        reason = "it is an adapter, not a base model. Choose the base model that it was trained on"
        return Fault("models.not_a_base_model", reason)
    if fault := _gguf_fault(files):
        return fault
    remedy = "the folder that save_pretrained wrote" if files.folder else "another base model"
    return Fault("models.not_a_base_model", f"it has no config.json. Choose {remedy}")


def has_vocabulary(location: str, revision: str | None, names: Collection[str]) -> bool:
    """Return True if a tokenizer's vocabulary is among the files, or if that is unknown.

    Args:
        location: a folder or a Hub id.
        revision: of a Hub id.
        names: file names of vocabularies, in addition to the usual ones.
    """

    def contains_one(files: RepoFiles) -> bool:
        return any(name in names or _VOCABULARIES.fullmatch(name) for name in files.sizes)

    if (cached := list_cached_files(location, revision)) and contains_one(cached):
        return True  # without a request to the Hub
    files = list_repo_files(location, revision)
    return files is None or files.partial or contains_one(files)


def _gguf_fault(files: RepoFiles) -> Fault | None:
    name = next((name for name in files.sizes if name.lower().endswith(".gguf")), None)
    reason = f"it is in GGUF ({name}), a format for running a model, not for training one"
    return _unsupported(reason, "Choose the original that it was made from") if name else None


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a safetensors file."""

    dtypes: Mapping[str, str]
    """By tensor."""
    shapes: Mapping[str, tuple[int, ...]]
    num_bytes: int
    """The size of the whole file."""


def check_weights(base: "BaseModelRef") -> None:
    """Check that the base has weights that can be trained here.

    Asks the Hub only about weights that are not on this machine. If it gives no answer, loading
    reports the fault.

    Raises:
        UserError: the weights are missing, damaged, or in an unsupported format.
    """
    try:
        files = _files_with_weights(base)
        fault = _weights_fault(files, base.config) or _adapter_fault(base) if files else None
    except OSError as error:
        is_local = Path(base.location).is_dir()
        fault = _damaged(str(error.strerror or error)) if is_local else UNREACHABLE
    if fault:
        raise _weights_error(base, fault)


def _weights_error(base: "BaseModelRef", fault: Fault) -> UserError:
    return UserError(fault.code, f"The weights of {base.name} cannot be loaded: {fault.reason}.")


def check_claimed_size(base: "BaseModelRef", num_parameters: int) -> None:
    """Check that the weights are large enough for the model that the config describes.

    Otherwise the memory would be taken before loading reports the fault.

    Raises:
        UserError: the config claims far more parameters than the files can hold.
    """
    files = _files_with_weights(base)
    parts = _part_names(files) if files else []
    if files is None or isinstance(parts, Fault):
        return
    num_bytes = sum(files.sizes.get(name, 0) for name in parts)
    if num_bytes and num_parameters > _MAX_PARAMETERS_PER_BYTE * num_bytes:
        claim = f"its config claims {num_parameters:,} parameters, but its files have only"
        reason = f"{claim} {num_bytes:,} bytes. {_DOWNLOAD_AGAIN}"
        raise _weights_error(base, Fault("models.invalid_config", reason))


def download_weights(base: "BaseModelRef") -> None:
    """Download the weights of a base from the Hub, unless they are cached.

    Does nothing if the Hub does not say which files they are: loading then downloads them.
    """
    from huggingface_hub import hf_hub_download

    cached = list_cached_files(base.location, base.revision)
    if not base.on_hub or (cached and not _missing_weights(cached)):
        return
    files = list_repo_files(base.location, base.revision)
    parts = _part_names(files) if files else []
    for name in [] if isinstance(parts, Fault) else parts:
        hf_hub_download(base.location, name, revision=base.revision)


def local_weights(base: "BaseModelRef") -> list[Path]:
    """The files with the weights of a base, if all are on this machine. Asks the Hub nothing."""
    folder = Path(base.location)
    local = RepoFiles(base.location, None, _sizes_in(folder)) if folder.is_dir() else None
    files = local or list_cached_files(base.location, base.revision)
    if files is None or files.folder is None or _missing_weights(files):
        return []
    parts = _part_names(files)
    return [] if isinstance(parts, Fault) else [files.folder / name for name in parts]


def _files_with_weights(base: "BaseModelRef") -> RepoFiles | None:
    """The cached files if the weights are complete there, otherwise those on the Hub."""
    cached = list_cached_files(base.location, base.revision)
    if cached and not _missing_weights(cached):
        return cached
    return list_repo_files(base.location, base.revision)


def _adapter_fault(base: "BaseModelRef") -> Fault | None:
    """With an adapter_config.json, transformers loads the base that it names, or the adapter."""
    from transformers.utils.peft_utils import find_adapter_config_file

    revision = base.revision if base.on_hub else None
    if not find_adapter_config_file(base.location, revision=revision):
        return None
    reason = (
        "the same folder has an adapter, which names another base. "
        "Choose the base that it was trained on, or remove adapter_config.json"
    )
    return Fault("models.not_a_base_model", reason)


def _missing_weights(files: RepoFiles) -> Fault | None:
    """Why the weights, or a part of them, are not among the files."""
    parts = _part_names(files)
    if isinstance(parts, Fault):
        return UNREACHABLE if files.partial else parts
    missing = next((name for name in parts if name not in files.sizes), None)
    if missing is None:
        return None
    return UNREACHABLE if files.partial else _damaged(f"the part {missing} is missing")


def _weights_fault(files: RepoFiles, config: "PreTrainedConfig") -> Fault | None:
    if fault := _missing_weights(files):
        return fault
    parts = _part_names(files)
    assert not isinstance(parts, Fault)
    checked = parts if files.folder else parts[:1]  # each costs a request to the Hub
    return next(filter(None, (_part_fault(files, name, config) for name in checked)), None)


def _part_names(files: RepoFiles) -> list[str] | Fault:
    """The names of the weight files, or why there are none."""
    if _WEIGHTS in files.sizes:
        return [_WEIGHTS]
    if INDEX in files.sizes:
        try:
            path = files.path(INDEX)
            assert path is not None
            return sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return _damaged(f"{INDEX} is damaged")
    if pickle := next(filter(_PICKLE.fullmatch, files.sizes), None):
        return _unsupported(f"{pickle} is a pickle, which can run code and is never opened")
    return _gguf_fault(files) or _unsupported(f"there is no {_WEIGHTS} among its files")


def _part_fault(files: RepoFiles, name: str, config: "PreTrainedConfig") -> Fault | None:
    path = files.path(name)
    if path is not None and (problem := weight_file_fault(path)):
        is_pointer = "Git LFS" in problem and files.folder and not files.partial
        pull = "Run `git lfs pull` in its folder, or download the model again"
        return _damaged(problem, pull if is_pointer else _DOWNLOAD_AGAIN)
    header = read_header(path) if path else _read_header_on_hub(files, name)
    if header is None or header.num_bytes > files.sizes[name]:
        return _damaged(f"{name} is damaged")
    if getattr(config, "quantization_config", None) is not None:
        return None
    for tensor, dtype in header.dtypes.items():
        if tensor.endswith("weight") and dtype not in FLOATS:
            reason = f"{tensor} is stored as {dtype}, which cannot be trained"
            return _unsupported(reason, "Choose the model in bfloat16, float16 or float32")
    return None


def weight_file_fault(path: Path) -> str | None:
    """Why a local safetensors file cannot be read; None if it is complete."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return f"{path.name} is a Git LFS pointer of {size} bytes, not the weights"
    header = read_header(path)
    if header is None:
        return f"{path.name} is damaged: its header cannot be read"
    if header.num_bytes != size:
        return f"{path.name} is damaged: it has {size:,} bytes instead of {header.num_bytes:,}"
    return None


def read_header(path: Path) -> SafetensorsHeader | None:
    """The header of a local safetensors file; None if it cannot be read. Reads no tensor."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
        return SafetensorsHeader(
            {name: tensor["dtype"] for name, tensor in tensors.items()},
            {name: tuple(tensor["shape"]) for name, tensor in tensors.items()},
            8 + length + max(ends, default=0),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def _read_header_on_hub(files: RepoFiles, name: str) -> SafetensorsHeader | None:
    """The header of a file on the Hub, with a lower bound of its size.

    Returns:
        None if the file is damaged; an empty header if the Hub does not answer.
    """
    import httpx2
    from huggingface_hub import HfApi, errors

    try:
        metadata = HfApi().parse_safetensors_file_metadata(
            files.location, name, revision=files.revision
        )
    except errors.SafetensorsParsingError:
        return None
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError):
        return SafetensorsHeader({}, {}, 0)
    tensors = metadata.tensors
    return SafetensorsHeader(
        {tensor: info.dtype for tensor, info in tensors.items()},
        {tensor: tuple(info.shape) for tensor, info in tensors.items()},
        8 + max((info.data_offsets[1] for info in tensors.values()), default=0),
    )
