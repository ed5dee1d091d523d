"""Uses of internals of transformers and of its tokenizers."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.utils.data import Sampler
    from transformers import (
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )


def render_chat_template(
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    special_tokens: dict[str, str],
) -> str:
    """Render a chat template in Jinja's sandbox, without a tokenizer.

    Args:
        template: the chat template.
        messages: one conversation.
        tools: the functions that the conversation may call.
        add_generation_prompt: end with the opening of the assistant's turn.
        special_tokens: variables of the template, such as `eos_token`.
    """
    from transformers.utils import chat_template_utils

    render: Any = chat_template_utils.render_jinja_template
    [text], _ = render(
        [messages],
        tools,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **special_tokens,
    )
    return text


def template_variables(template: str) -> set[str]:
    """The variables that a chat template reads and does not always set itself."""
    from jinja2 import meta
    from transformers.utils import chat_template_utils

    environment = chat_template_utils._compile_jinja_template(template).environment
    return meta.find_undeclared_variables(environment.parse(template))


@contextlib.contextmanager
def special_tokens_as_text(tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Tokenize special tokens that occur in a text as the characters they consist of."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        yield
    finally:
        backend.encode_special_tokens = False


@contextlib.contextmanager
def experts_as_one_product(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute its experts without a loop over those that tokens were sent to.

    Such a loop needs numbers, which a model on the meta device does not have.
    """
    own = model.get_experts_implementation()
    try:
        model.set_experts_implementation("batched_mm")
        yield
    finally:
        model.set_experts_implementation(own)


@contextlib.contextmanager
def target_mode(tokenizer: Any) -> Iterator[None]:
    """Tokenize texts as targets: some tokenizers mark these with another language.

    Calls `_switch_to_target_mode` and `_switch_to_input_mode`, as `text_target` does.
    """
    switches = hasattr(tokenizer, "_switch_to_target_mode")
    if switches:
        tokenizer._switch_to_target_mode()
    try:
        yield
    finally:
        if switches:
            tokenizer._switch_to_input_mode()


def initialize(model: PreTrainedModel, layer: Module) -> None:
    """Draw the weights of a layer anew, as transformers does for weights that a file lacks.

    Calls `_init_weights`, which skips what the mark `_is_hf_initialized` says is loaded.
    """
    import torch

    marked: list[Any] = [layer, *layer.parameters()]
    for part in marked:
        part._is_hf_initialized = False
    with torch.no_grad():
        model._init_weights(layer)


def has_auto_model(auto_class: Any, config_class: type) -> bool:
    """Return True if an `AutoModelFor…` class of transformers has a model for this config class."""
    return config_class in auto_class._model_mapping


def refusal_of_model(error: ValueError) -> str | None:
    """Return what a model of transformers says about its inputs, if it raised this error itself."""
    frames = traceback.extract_tb(error.__traceback__)
    from_model = bool(frames) and "/transformers/models/" in frames[-1].filename.replace("\\", "/")
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return reason if from_model and reason else None


def auto_model_class(auto_class: Any, config_class: type) -> Any:
    """Return the class of model that an `AutoModelFor…` class makes of such a config.

    Of several, the first: that of a config which names none.
    """
    found = auto_class._model_mapping[config_class]
    return found[0] if isinstance(found, list | tuple) else found


def cached_repo_file(location: str, name: str, revision: str | None) -> Path | None:
    """The local path of a model's file, downloaded if necessary.

    Returns:
        None if the model has no such file, or if the file is not cached and the Hub is unreachable.
        `cached_file` raises an error in these cases unless two private arguments are set.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(
        location,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(path) if path else None


class EachRowOnce:
    """What lets a Trainer count each row of an epoch and each held-out row once.

    accelerate repeats rows in the last step of an epoch, so that all processes get as many. They
    are left out again here. A process that is left without a row trains one with a share of 0.
    Overrides the private `_get_num_items_in_batch`, which sees the batches of a step first.
    """

    first_rows: Callable[[dict[str, Any], int], dict[str, Any]]
    """Returns so many rows of a batch."""

    def rows_of_step(self) -> int:
        """The rows of the coming step, of all processes."""
        trainer: Any = self
        num_rows, whole = len(trainer.train_dataset), self._rows_of_whole_step()
        is_last = (trainer.state.global_step + 1) % math.ceil(num_rows / whole) == 0
        return (num_rows % whole or whole) if is_last else whole

    def _rows_of_whole_step(self) -> int:
        trainer: Any = self
        arguments = trainer.args
        rows = trainer._train_batch_size * arguments.gradient_accumulation_steps
        return rows * arguments.world_size

    def repeats_rows(self) -> bool:
        """True if batches of the coming step have rows that occur twice in the epoch."""
        trainer: Any = self
        return trainer.args.world_size > 1 and self.rows_of_step() < self._rows_of_whole_step()

    def own_rows(self, num_batches: int) -> list[int]:
        """The rows in each of this process's batches of the coming step, without repeated ones."""
        trainer: Any = self
        size, left = trainer._train_batch_size, self.rows_of_step()
        rank, processes = trainer.args.process_index, trainer.args.world_size
        starts = [size * (processes * batch + rank) for batch in range(num_batches)]
        return [min(size, max(0, left - start)) for start in starts]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        if self._evaluated is None and self.repeats_rows():
            counts = self.own_rows(len(batch_samples))
            batch_samples[:] = map(type(self).first_rows, batch_samples, counts)
        self._num_items = super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
        return self._num_items

    _evaluated: list[tuple[float, float]] | None = None
    """Sum of the losses, and weight, of each held-out batch; None while training."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the mean over all labels, or over all rows of preferences.

        Trainer takes the mean of the means of batches, and counts the last, shorter one as a whole.
        """
        import torch

        trainer: Any = self
        self._evaluated = []
        try:
            output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
            sums = torch.tensor(self._evaluated, dtype=torch.float64).sum(0)
        finally:
            self._evaluated = None
        total, weight = trainer.accelerator.reduce(sums.to(trainer.args.device)).tolist()
        name = next(name for name in output.metrics if name.endswith("_loss"))
        output.metrics[name] = total / weight
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute a held-out batch, and note its loss with its weight.

        Rows that accelerate repeats lose their labels. Preferences have no labels: their batch only
        weighs less.
        """
        trainer: Any = self
        assert self._evaluated is not None
        processes, size = trainer.args.world_size, trainer.args.eval_batch_size
        start = size * (processes * len(self._evaluated) + trainer.args.process_index)
        rows = min(size, max(0, len(trainer.eval_dataset) - start))
        if processes > 1 and "labels" in inputs:
            labels = inputs["labels"].clone()
            labels[rows:] = -100
            inputs = {**inputs, "labels": labels}
        self._num_items = None
        result = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        # Trainer divides by the labels of all processes, and multiplies by these
        weight = rows if self._num_items is None else float(self._num_items) / processes
        self._evaluated.append((float(result[0]) * weight if weight else 0.0, weight))
        return result


def trainer_with_row_order(
    order: Sampler[int] | None, first_rows: Any, eval_collator: Any = None, **kwargs: Any
) -> Trainer:
    """Create a Trainer that draws the training rows from `order`.

    Overrides the private hook `Trainer._get_train_sampler`.

    Args:
        order: a sampler of row indices, or None for the Trainer's own order.
        first_rows: returns so many rows of a batch.
        eval_collator: makes batches of held-out rows, if `data_collator` only makes those to train.
        kwargs: arguments of `Trainer`.
    """
    from transformers import Trainer

    class OrderedTrainer(EachRowOnce, Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return order or super()._get_train_sampler(train_dataset)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            own, self.data_collator = self.data_collator, eval_collator or self.data_collator
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self.data_collator = own

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # not reported anywhere, and counting visits all parameters in every step

    OrderedTrainer.first_rows = first_rows
    return OrderedTrainer(**kwargs)


def use_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """Make a Trainer use one GPU of those that this process sees.

    Otherwise a Trainer that no launcher started multiplies the batch by the number of GPUs, wraps
    the model in `DataParallel`, and adds up the losses of quantized models. Sets `_n_gpu`, which
    the first use of `device` computes.
    """
    assert arguments.device is not None
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def float32_modules(model: PreTrainedModel) -> Iterable[str]:
    """Return the names that transformers keeps in float32 when it loads a model in 16 bits.

    Reads `_keep_in_fp32_modules_strict`.
    """
    return model._keep_in_fp32_modules_strict or []


def forget_preparation(model: Module) -> None:
    """Let the next Accelerator prepare a model that another one has prepared.

    Without this, `Accelerator.prepare` would skip the model and its autocast. Removes the mark
    `_is_accelerate_prepared`.
    """
    model.__dict__.pop("_is_accelerate_prepared", None)


# Processors of models that read pictures


_NOT_FOR_THE_MODEL = ("rows", "cols", "num_crops")
"""Results of image processors that only say how many tokens a picture has."""


def load_processor(
    location: str, revision: str | None, config: PreTrainedConfig, tokenizer: Any
) -> Any:
    """Load a model's processor without its parts for videos and sound, which need torchvision.

    Overrides `check_argument_for_proper_class`, and reads the private mapping of processors.

    Args:
        location: a folder or a Hub id.
        revision: of a Hub id.
        config: of the model.
        tokenizer: of the model; the processor may add special tokens to it.

    Returns:
        The processor, or None if transformers has none for this kind of model.
    """
    from transformers import AutoImageProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if type(config) not in PROCESSOR_MAPPING:
        return None
    own_class: Any = PROCESSOR_MAPPING[type(config)]
    _do_without_num2words(own_class)

    class Lenient(own_class):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    Lenient.__name__ = own_class.__name__
    images = AutoImageProcessor.from_pretrained(
        location, revision=revision, backend="pil", trust_remote_code=False
    )
    values, _ = own_class.get_processor_dict(location, revision=revision)
    known = {"tokenizer": tokenizer, "image_processor": images}
    parts = [known.get(name) for name in own_class.get_attributes()]
    return Lenient.from_args_and_dict(parts, values)


def _do_without_num2words(processor_class: Any) -> None:
    """Let SmolVLM's processor start without a package that writes numbers of video frames."""
    module = sys.modules[processor_class.__module__]
    if getattr(module, "num2words", True) is None:
        module.num2words = str  # type: ignore[attr-defined]


def processor_identity(processor: Any) -> str:
    """Return everything that decides what a processor makes of a picture."""
    import transformers

    return f"{transformers.__version__} {type(processor).__name__} {processor.to_json_string()}"


def process_picture(processor: Any, pictures: list[Any]) -> tuple[dict[str, Any], list[str]]:
    """Process the pictures of one row, as `processor(images=[pictures])` does.

    Calls `_process_images` and `_merge_kwargs`.

    Returns:
        NumPy arrays for the model, and the text that replaces the placeholder of each picture.
    """
    import numpy as np

    options = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs)
    options = options["images_kwargs"] | {"return_tensors": "np"}
    processed, texts = processor._process_images(pictures, **options)
    unused = {*processor.unused_input_names, *_NOT_FOR_THE_MODEL}
    arrays = {name: np.asarray(value) for name, value in processed.items() if name not in unused}
    return arrays, texts


def expand_placeholders(
    processor: Any, text: str, replacements: list[str]
) -> tuple[str, list[tuple[int, int]]]:
    """Replace the placeholders of pictures in a text.

    Calls `get_text_with_replacements`.

    Returns:
        The text, and (end of a placeholder, characters gained up to there) for each.
    """
    [expanded], offsets = processor.get_text_with_replacements([text], list(replacements))
    gains = [
        (one["span"][1], one["new_span"][1] - one["span"][1])
        for one in (offsets[0] if offsets else [])
    ]
    return expanded, gains


def picture_token_types(processor: Any, picture: Any) -> str | None:
    """Return the name of the argument with which a processor marks image tokens, or None."""
    inputs = processor(text=[processor.image_token], images=[[picture]])
    names = ("token_type_ids", "mm_token_type_ids")
    return next((name for name in names if name in inputs and any(inputs[name][0])), None)


@contextlib.contextmanager
def watch_pictures(model: PreTrainedModel, note: Callable[[list[Any]], None]) -> Iterator[None]:
    """Within this context, call `note` with the tensors of pictures that a model gets.

    Wraps `get_image_features`, which `forward` calls, and `generate` before it.

    Args:
        model: a model with an output layer.
        note: receives the tensors, at each call.
    """
    body: Any = model.base_model
    own = getattr(body, "get_image_features", None)
    if own is None:
        yield
        return

    @functools.wraps(own)
    def watched(*args: Any, **kwargs: Any) -> Any:
        note([value for value in (*args, *kwargs.values()) if hasattr(value, "numpy")])
        return own(*args, **kwargs)

    body.get_image_features = watched
    try:
        yield
    finally:
        del body.get_image_features
