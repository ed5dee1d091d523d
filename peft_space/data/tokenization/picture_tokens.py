"""Pictures as a model gets them: its processor's arrays, and the tokens that stand for a picture.

The arrays of a picture are computed once and kept on the disk.
"""

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_space.compat.transformers import (
    expand_placeholders,
    picture_token_types,
    process_picture,
    processor_identity,
)
from peft_space.data.tokenization.answer_spans import Span
from peft_space.storage.atomic_io import atomic_file
from peft_space.storage.content_cache import get_or_create

if TYPE_CHECKING:
    import torch

_PROBE_SIZE = (64, 48)
_SPARE_BYTES = 4 << 30
"""With less free space on the disk, arrays are computed again for each batch."""


@dataclass(frozen=True)
class ProcessedPicture:
    """A picture as a model gets it."""

    arrays: dict[str, np.ndarray]
    """Arguments of the model, such as `pixel_values`."""
    text: str
    """The text that replaces the placeholder."""


class PictureProcessor:
    """Prepares pictures for one model.

    Args:
        processor: of transformers, with the model's tokenizer.
    """

    def __init__(self, processor: Any):
        self._processor = processor
        self.placeholder: str = processor.image_token
        """What a chat template writes for a picture."""
        self.digest = hashlib.sha256(processor_identity(processor).encode()).hexdigest()

    @functools.cached_property
    def types_name(self) -> str | None:
        """The model's argument that tells image tokens from text, or None."""
        return picture_token_types(self._processor, _probe())

    def types_of(self, ids: list[int]) -> list[int]:
        """Return 1 for each image token and 0 for others (T,)."""
        return self._processor.create_mm_token_type_ids([ids])[0]

    def special_ids(self, text: str) -> set[int]:
        """Return the ids of the special tokens in what stands for a picture."""
        return _special_ids(self._processor.tokenizer, text)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of what stands for a picture."""
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def expand(self, text: str, pictures: Sequence[ProcessedPicture]) -> tuple[str, list[Span]]:
        """Put what stands for each picture in the place of its placeholder.

        Returns:
            The text, and [(end of a placeholder, characters gained up to there)] in order.
        """
        return expand_placeholders(self._processor, text, [picture.text for picture in pictures])

    def process(self, path: str) -> ProcessedPicture:
        """Return a picture as the model gets it, from the disk if it was processed before.

        Args:
            path: the copy of a picture, named after its digest.
        """
        from PIL import Image

        folder = get_or_create("pictures", self.digest, lambda folder: None)
        stored = folder / f"{Path(path).stem}.safetensors"
        with contextlib.suppress(FileNotFoundError):
            return _read(stored)
        with Image.open(path) as image:
            arrays, text = process_picture(self._processor, [image.convert("RGB")])
        processed = ProcessedPicture(arrays, text[0])
        size = sum(array.nbytes for array in arrays.values())
        if shutil.disk_usage(folder).free > _SPARE_BYTES + size:
            _write(stored, processed)
        return processed

    def witness(self, text: str) -> "tuple[list[int], dict[str, torch.Tensor]]":
        """Return the inputs of a model for a picture of our own, followed by a text.

        Returns:
            Token ids, and the arguments of the model for the picture.
        """
        import torch

        arrays, texts = process_picture(self._processor, [_probe()])
        ids = self._processor.tokenizer(texts[0] + text, add_special_tokens=False)["input_ids"]
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.types_name:
            inputs[self.types_name] = torch.tensor([self.types_of(ids)])
        return ids, inputs

    def batch(self, rows: Sequence[Sequence[str]]) -> "dict[str, torch.Tensor]":
        """Return the arguments of the model for the pictures of a batch.

        Args:
            rows: paths of the pictures of each row.
        """
        import torch

        processed = [[self.process(path).arrays for path in row] for row in rows if row]
        if not processed:
            return {}
        batch = {}
        for name in processed[0][0]:
            axis = self._axes[name]
            of_rows = [_joined([arrays[name] for arrays in row], axis) for row in processed]
            batch[name] = torch.from_numpy(_joined(of_rows, 0))
        return batch

    @functools.cached_property
    def _axes(self) -> dict[str, int]:
        """The axis of each array along which the pictures of a row lie.

        It is the first one, unless the first one is for rows, as in Idefics3.
        """
        one, two = (process_picture(self._processor, [_probe()] * count)[0] for count in (1, 2))
        return {
            name: next((n for n, (a, b) in enumerate(zip(one[name].shape, two[name].shape,
                                                         strict=True)) if a != b), 0)
            for name in one
        }  # fmt: skip


def _probe() -> Any:
    from PIL import Image

    return Image.linear_gradient("L").resize(_PROBE_SIZE).convert("RGB")


def _special_ids(tokenizer: Any, text: str) -> set[int]:
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special & set(tokenizer(text, add_special_tokens=False)["input_ids"])


def _joined(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    """Join arrays along an axis. Their other axes are padded with zeros to the longest."""
    if len(arrays) == 1:
        return arrays[0]
    shape = np.max([array.shape for array in arrays], axis=0)
    padded = []
    for array in arrays:
        missing = shape - array.shape
        missing[axis] = 0
        padded.append(np.pad(array, [(0, int(count)) for count in missing]))
    return np.concatenate(padded, axis)


def _write(path: Path, processed: ProcessedPicture) -> None:
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in processed.arrays.items()}
    with atomic_file(path, shared=True) as aside:
        save_file(arrays, aside, {"text": json.dumps(processed.text)})


def _read(path: Path) -> ProcessedPicture:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return ProcessedPicture(arrays, json.loads(file.metadata()["text"]))
