"""Which weights a base model has, and whether they can be trained here at all, told before they are loaded.

Reads names, sizes and the headers of safetensors, in a folder or over the network. Opens no pickles.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.errors import UserError
from peft_space.models.repo_files import (
    INDEX,
    OUT_OF_REACH,
    RepoFiles,
    downloaded,
    gguf_among,
    list_repo_files,
)
from peft_space.models.resolve import BaseModelRef

WHOLE = "model.safetensors"
_PULL = "Run `git lfs pull` in its folder, or download the model again"
_AGAIN = "Download the model again, or choose another base model"
_AS_SAFETENSORS = "Choose a model that is stored as safetensors"
_PICKLE = re.compile(r"(pytorch_model|model|consolidated).*\.(bin|pt|pth|ckpt)")
_POINTER = b"version https://git-lfs"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_MOST_PARAMETERS_A_BYTE = 8
_LONGEST_HEADER = 100_000_000
"""Bytes, as the format has it."""


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file of safetensors says of itself: the dtype and shape of each tensor, and how many bytes the file has if it is whole."""

    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    num_bytes: int


def check_weights(base: BaseModelRef) -> None:
    """Raise UserError where there are no weights that can be trained here: of another kind, incomplete, damaged, or only named.

    The Hub is asked only for weights that are not on this machine; where it does not tell, loading will.
    """
    try:
        files = _with_weights(base)
        reason = (_fault(files, base.config) or _adapter_beside(base)) if files else None
    except OSError as error:
        reason = (
            f"{error.strerror or error}. {_AGAIN}" if Path(base.location).is_dir() else OUT_OF_REACH
        )
    if reason:
        raise UserError("todo", f"The weights of {base.name} cannot be loaded: {reason}.")


def check_claimed_size(base: BaseModelRef, num_parameters: int) -> None:
    """Raise UserError where the config claims a model so large that the weights cannot be all of it: memory would be taken before that is told."""
    files = _with_weights(base)
    parts = _parts(files) if files else []
    held = (
        sum(files.sizes.get(name, 0) for name in parts)
        if files and not isinstance(parts, str)
        else 0
    )
    if held and num_parameters > _MOST_PARAMETERS_A_BYTE * held:
        raise UserError(
            "todo",
            f"The weights of {base.name} cannot be loaded: its config claims {num_parameters:,} parameters, and its files have {held:,} bytes. "
            f"{_AGAIN}.",
        )


def download_weights(base: BaseModelRef) -> None:
    """Have the weights of a base from the Hub on this machine; where the Hub does not tell which they are, loading will."""
    from huggingface_hub import hf_hub_download

    local = downloaded(base.location, base.revision)
    files = (
        None
        if not base.on_hub or (local and not _missing(local))
        else list_repo_files(base.location, base.revision)
    )
    parts = _parts(files) if files else []
    for name in [] if isinstance(parts, str) else parts:
        hf_hub_download(base.location, name, revision=base.revision)


def _with_weights(base: BaseModelRef) -> RepoFiles | None:
    """Those on this machine where they are all there, else what the Hub tells."""
    local = downloaded(base.location, base.revision)
    return local if local and not _missing(local) else list_repo_files(base.location, base.revision)


def _adapter_beside(base: BaseModelRef) -> str | None:
    """An adapter_config.json beside a model makes transformers load another base that it names, or the adapter with it."""
    from transformers.utils.peft_utils import find_adapter_config_file

    there = find_adapter_config_file(base.location, revision=base.revision if base.on_hub else None)
    return (
        there
        and "an adapter lies beside them, which names another base. Give the base that it was trained on, or take adapter_config.json away"
    )


def _missing(files: RepoFiles) -> str | None:
    """Why weights, or a part of them, are not among the files."""
    parts = _parts(files)
    if isinstance(parts, str):
        return OUT_OF_REACH if files.partly else parts
    lacking = next((name for name in parts if name not in files.sizes), None)
    return lacking and (
        OUT_OF_REACH if files.partly else f"the part {lacking} is missing. {_AGAIN}"
    )


def _fault(files: RepoFiles, config: Any) -> str | None:
    if reason := _missing(files):
        return reason
    parts = _parts(files)
    for name in parts if files.folder else parts[:1]:  # each costs a request on the Hub
        if reason := _fault_of_part(files, name, config):
            return reason
    return None


def _parts(files: RepoFiles) -> list[str] | str:
    """The names of the weight files, or why there are none."""
    if WHOLE in files.sizes:
        return [WHOLE]
    if INDEX in files.sizes:
        try:
            path = files.path(INDEX)
            assert path is not None
            return sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{INDEX} is damaged. {_AGAIN}"
    if pickle := next(filter(_PICKLE.fullmatch, files.sizes), None):
        return f"they are kept in {pickle}, a pickle, which can run code and is never opened. {_AS_SAFETENSORS}"
    return gguf_among(files) or f"there is no {WHOLE} among its files. {_AS_SAFETENSORS}"


def _fault_of_part(files: RepoFiles, name: str, config: Any) -> str | None:
    path = files.path(name)
    if path is not None and (fault := weight_file_fault(path)):
        return f"{fault}. {_PULL if files.folder and not files.partly and 'Git LFS' in fault else _AGAIN}"
    header = read_header(path) if path else _header_on_hub(files, name)
    if header is None or header.num_bytes > files.sizes[name]:
        return f"{name} is damaged. {_AGAIN}"
    if getattr(config, "quantization_config", None) is not None:
        return None
    odd = next(
        (
            tensor
            for tensor, kind in header.dtypes.items()
            if tensor.endswith("weight") and kind not in _FLOATS
        ),
        None,
    )
    return (
        odd
        and f"{odd} is stored as {header.dtypes[odd]}, which cannot be trained. Choose the model in bfloat16, float16 or float32"
    )


def weight_file_fault(path: Path) -> str | None:
    """What is wrong with a file of safetensors on this machine: it is a pointer to one, or damaged; None where nothing is."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return f"{path.name} is a Git LFS pointer of {size} bytes, not the weights"
    header = read_header(path)
    if header is None:
        return f"{path.name} is damaged: its header cannot be read"
    if header.num_bytes != size:
        return f"{path.name} is damaged: it has {size:,} bytes and should have {header.num_bytes:,}"
    return None


def read_header(path: Path) -> SafetensorsHeader | None:
    """The header of a file of safetensors on this machine, or None where it cannot be read. Reads no tensor."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _LONGEST_HEADER else b""
    try:
        tensors = {
            name: tensor for name, tensor in json.loads(text).items() if name != "__metadata__"
        }
        return SafetensorsHeader(
            {name: tensor["dtype"] for name, tensor in tensors.items()},
            {name: tuple(tensor["shape"]) for name, tensor in tensors.items()},
            8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def _header_on_hub(files: RepoFiles, name: str) -> SafetensorsHeader | None:
    """The same of a file on the Hub, with at least so many bytes; one that says nothing where the Hub does not answer."""
    import httpx2
    from huggingface_hub import HfApi, errors

    try:
        found = (
            HfApi()
            .parse_safetensors_file_metadata(files.location, name, revision=files.revision)
            .tensors
        )
    except errors.SafetensorsParsingError:
        return None
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError):
        return SafetensorsHeader({}, {}, 0)
    return SafetensorsHeader(
        {tensor: told.dtype for tensor, told in found.items()},
        {tensor: tuple(told.shape) for tensor, told in found.items()},
        8 + max((told.data_offsets[1] for told in found.values()), default=0),
    )
