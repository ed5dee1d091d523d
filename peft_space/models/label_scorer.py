"""Log-probabilities of labeled tokens, without computing the logits of any other token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from peft_space.data.arrow_store import MASKED
from peft_space.models.config_values import config_number
from peft_space.models.special_tokens import decoder_inputs

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**25}
"""Logits that exist at once: 16 MB in float32, which caches hold in part, or 134 MB on a GPU."""
_MIN_CHUNK_ROWS = 128
"""Labels that are scored at once at least. Each chunk reads the whole output layer: of 151,936 x
1,024 numbers, 128 labels at a time take 0.55 of the time that 27 at a time take."""
_MAX_DIFFERENCE = 1e-2
"""Nats by which a model's own logits may differ from those by way of this module, in 16 bits."""

_NO_CACHE = {"use_cache": False, "return_dict": True}

Head = Callable[["Tensor"], "Tensor"]
"""Turns hidden states (N, D) into logits (N, V)."""


@dataclass(frozen=True)
class LabelScores:
    """How likely a model finds the N labeled tokens of a batch, in row order."""

    log_probs: Tensor
    """(N,) float32, in nats."""
    statistics: Tensor
    """(N, 3) if asked for: whether no other token is likelier, the mean of the logits, and the
    entropy in nats. Otherwise (N, 0)."""
    mask: Tensor
    """Where the labels are: (B, T - 1) for models that predict the next token, else (B, T)."""

    def by_position(self, values: Tensor) -> Tensor:
        """Spread one of the above to the shape of `mask`, with zeros between labels."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)

    def row_sums(self) -> Tensor:
        """The sum of the log-probabilities of each row, (B,)."""
        return self.by_position(self.log_probs).sum(1)


class LabelScorer:
    """Computes log-probabilities of labels with a model that writes text.

    First it runs the model without its output layer. Then it hands the hidden states of labeled
    positions, in chunks, to the model's own `forward`, as if the body had returned them. So
    scaling, soft-capping, biases and whatever else a model does to its logits stay as they are.

    Args:
        model: a model with an output layer, without PEFT's outer wrapper.
        dtype: the dtype that training computes in. Weights of several dtypes need autocast.
    """

    def __init__(self, model: PreTrainedModel, dtype: str = "float32"):
        self._model, self._dtype = model, dtype
        self.forward = model.forward
        """The model's own, which takes no labels here."""
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._body: nn.Module = model
        self.computes_only_labeled = any(map(self._agrees_with_model, _bodies_of(model)))
        """False if the model's logits do not come from its body in this way. Then all logits of a
        batch are computed."""
        self._head_parameters = self._parameters_after_body()

    def __call__(
        self, labels: Tensor, inputs: dict[str, Any], statistics: bool = False
    ) -> LabelScores:
        """Score the labels of a batch.

        Args:
            labels: (B, T), with MASKED where there is none. Encoder-decoders predict them at their
                own position; other models predict each from the tokens before it.
            inputs: other arguments of the model's `forward`.
            statistics: whether to compute more than log-probabilities.
        """
        if self._is_encoder_decoder:
            inputs = inputs | {"decoder_input_ids": decoder_inputs(self._model, labels)}
        if not self.computes_only_labeled:
            logits = self.forward(**inputs).logits
            return self._score(logits, labels, lambda chunk: chunk, statistics)
        output = self._run_body(inputs)

        def head(states: Tensor) -> Tensor:
            return self._logits(states, type(output))

        return self._score(output.last_hidden_state, labels, head, statistics)

    def _score(self, states: Tensor, labels: Tensor, head: Head, statistics: bool) -> LabelScores:
        if not self._is_encoder_decoder:
            states, labels = states[:, :-1], labels[:, 1:]
        labels = labels.to(states.device)
        mask = labels != MASKED
        log_probs, others = self._in_chunks(states[mask], labels[mask], head, statistics)
        return LabelScores(log_probs, others, mask)

    def _in_chunks(
        self, states: Tensor, labels: Tensor, head: Head, statistics: bool
    ) -> tuple[Tensor, Tensor]:
        vocabulary = config_number(self._model.config, "vocab_size")
        size = _rows_at_once(vocabulary, states.device.type)
        trains_head = any(parameter.requires_grad for parameter in self._head_parameters)
        chunks = list(zip(states.split(size), labels.split(size), strict=True))
        if trains_head and torch.is_grad_enabled():
            scored = [
                checkpoint(_score_chunk, *chunk, head, statistics, use_reentrant=False)
                for chunk in chunks
            ]
            return torch.cat([one for one, _ in scored]), torch.cat([more for _, more in scored])
        return _ScoreWithFrozenHead.apply(states, chunks, head, statistics)

    def _run_body(self, inputs: dict[str, Any]) -> Any:
        return _run_without_head(self._model, self.forward, [self._body], inputs)

    def _logits(self, states: Tensor, output_class: type) -> Tensor:
        """Logits (N, V) of hidden states (N, D)."""
        output = output_class(last_hidden_state=states[None])
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if self._is_encoder_decoder:
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=states[None])
            inputs["decoder_input_ids"] = ids
        with _replaced_forward(self._body, lambda *args, **kwargs: output):
            return self.forward(**(inputs | _NO_CACHE)).logits[0]

    def _parameters_after_body(self) -> list[nn.Parameter]:
        """The parameters that turn hidden states into logits. Some models have several layers."""
        before = [self._body]
        if self._is_encoder_decoder:
            before.append(self._model.get_encoder())
        inside = {id(parameter) for part in before for parameter in part.parameters()}
        output_layer: Any = self._model.get_output_embeddings()
        tied = [] if output_layer is None else list(output_layer.parameters())
        # with tied embeddings, PEFT keeps trained rows of the output layer at the input layer
        return tied + [
            parameter
            for name, parameter in self._model.named_parameters()
            if id(parameter) not in inside or "trainable_tokens_delta" in name
        ]

    def _agrees_with_model(self, body: nn.Module) -> bool:
        """Take `body` for the body, and compare a few tokens with the model's own logits."""
        self._body = body
        was_training, device = self._model.training, self._model.device
        ids = torch.arange(3, 7, device=device)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        self._model.eval()
        try:
            with torch.no_grad(), computing_in(self._dtype, device.type):
                output = self._run_body(inputs)
                found = self._logits(output.last_hidden_state[0], type(output))
                expected = self.forward(**(inputs | _NO_CACHE)).logits[0]
            difference = found.float().log_softmax(-1) - expected.float().log_softmax(-1)
            return bool(difference.abs().max() < _MAX_DIFFERENCE)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            return False
        finally:
            self._model.train(was_training)


def computing_in(dtype: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """Compute as a trainer does: with autocast, unless the dtype is float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device, getattr(torch, dtype))


def last_hidden_states(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """What the output layer of a model gets for a batch, (B, T, D). It computes no logits.

    Raises:
        ValueError: no part of the model computes them.
    """
    output = _run_without_head(model, model.forward, _bodies_of(model), inputs)
    if output is None:
        raise ValueError("this model has no body")
    return output.last_hidden_state


def _run_without_head(
    model: PreTrainedModel,
    forward: Callable[..., Any],
    bodies: list[nn.Module],
    inputs: dict[str, Any],
) -> Any:
    """What the first of `bodies` that the model calls on a batch returns; None if it calls none."""
    outputs: dict[nn.Module, Any] = {}
    head: Any = model.get_output_embeddings()
    hooks = [
        body.register_forward_hook(lambda body, _, output: outputs.update({body: output}))
        for body in bodies
    ]
    try:
        with _replaced_forward(head, lambda states: states.new_empty(0, 1)[:, None]):
            forward(**(inputs | _NO_CACHE))
    finally:
        for hook in hooks:
            hook.remove()
    return next((outputs[body] for body in bodies if body in outputs), None)


def logits_at_once(num_labels: int, vocabulary: int, device: str) -> int:
    """How many logits exist at once when this many labels are scored."""
    return vocabulary * min(num_labels, _rows_at_once(vocabulary, device))


def _rows_at_once(vocabulary: int, device: str) -> int:
    return max(_MIN_CHUNK_ROWS, _CHUNK_LOGITS[device] // vocabulary)


def _bodies_of(model: PreTrainedModel) -> list[nn.Module]:
    """The parts of a model that may end with the hidden states of the last block."""
    if model.get_output_embeddings() is None:
        return []
    candidates = [getattr(model, model.base_model_prefix, None), model.get_decoder()]
    return [body for body in candidates if body is not None and body is not model]


@contextlib.contextmanager
def _replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _score_chunk(
    states: Tensor, labels: Tensor, head: Head, statistics: bool
) -> tuple[Tensor, Tensor]:
    """(log-probabilities (N,), statistics (N, 3) or (N, 0))."""
    logits = head(states).float()
    chosen = logits.gather(1, labels[:, None])[:, 0]
    normalizer = logits.logsumexp(1)
    with torch.no_grad():
        others = logits.new_zeros(len(labels), 0)
        if statistics:
            probabilities = (logits - normalizer[:, None]).exp()
            entropy = normalizer - (probabilities * logits).sum(1)
            is_likeliest = (chosen >= logits.amax(1)).float()
            others = torch.stack([is_likeliest, logits.mean(1), entropy], 1)
    return chosen - normalizer, others


class _ScoreWithFrozenHead(torch.autograd.Function):
    """Scores labels, and keeps the gradient of each log-probability in place of its logits.

    A log-probability depends on the hidden state of one position alone. So its gradient is
    known at once, (N, D), and the backward pass multiplies it by a number a position.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, chunks: Any, head: Head, statistics: bool
    ) -> tuple[Tensor, Tensor]:
        scored: list[tuple[Tensor, Tensor]] = []
        gradients: list[Tensor] = []
        for part, labels in chunks:
            if not ctx.needs_input_grad[0]:
                scored.append(_score_chunk(part, labels, head, statistics))
                continue
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                log_probs, others = _score_chunk(part, labels, head, statistics)
                gradients += torch.autograd.grad(log_probs.sum(), part)
            scored.append((log_probs.detach(), others))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        others = torch.cat([more for _, more in scored])
        ctx.mark_non_differentiable(others)
        return torch.cat([one for one, _ in scored]), others

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (of_states,) = ctx.saved_tensors
        return (of_states * gradients[0][:, None]).to(of_states.dtype), None, None, None


def score_labels_only(model: PeftModel, dtype: str = "float32") -> LabelScorer:
    """Make `forward` of an adapted model compute only what its labels need.

    With labels it returns the loss without logits, and TRL's `fused_lm_head` works as TRL defines
    it. Without labels nothing changes.

    Args:
        model: a model that writes text.
        dtype: the dtype that training computes in.

    Returns:
        The scorer, which says if it needs only the logits of labels.
    """
    base: Any = model.get_base_model()
    scorer = LabelScorer(base, dtype)
    if not scorer.computes_only_labeled:
        logger.warning("%s needs the logits of all tokens", type(base).__name__)
    base.accepts_loss_kwargs = True  # Trainer then divides by the labels of a whole step

    def forward(
        *args: Any,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        fused_lm_head: bool = False,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return scorer.forward(*args, **inputs)
        scores = scorer(labels, inputs, statistics=fused_lm_head)
        count = scores.mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        result = ScoredOutput(loss=-scores.log_probs.sum() / count)
        if fused_lm_head:
            result["log_probs"] = scores.by_position(scores.log_probs)
            for name, values in zip(_TRL_NAMES, scores.statistics.unbind(1), strict=True):
                result[name] = scores.by_position(values)
            result["is_top1"] = result["is_top1"].bool()
        return result

    base.forward = forward
    return scorer


_TRL_NAMES = ("is_top1", "mean_logits", "entropy")


@dataclass
class ScoredOutput(ModelOutput):
    """The loss of a batch, and what TRL reads of its labeled tokens, each (B, T - 1)."""

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    is_top1: Tensor | None = None
    mean_logits: Tensor | None = None
    entropy: Tensor | None = None


def own_forward(model: PeftModel) -> None:
    """Undo `score_labels_only`, and what a trainer of TRL did to `forward`."""
    base: Any = model.get_base_model()
    base.forward = base.__dict__.setdefault("own_forward", base.forward)


@contextlib.contextmanager
def as_loaded(model: PeftModel) -> Iterator[None]:
    """Undo for a while what training did to `forward`. `generate` reads its signature."""
    base: Any = model.get_base_model()
    if (own := base.__dict__.get("own_forward")) is None:
        yield
        return
    with _replaced_forward(base, own):
        yield
