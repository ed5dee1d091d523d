"""Verifies an export: loads the files that were written and compares their outputs.

Both models answer the same held-out rows, one model in memory at a time. The app compares a text
model on the adapter's own greedy answers. If the export ranks the same token first at each
position, it gives the same answer.
"""

import dataclasses
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from peft_space import hardware
from peft_space.compat.peft import dequantized_weight
from peft_space.data.arrow_store import TokenizedExample
from peft_space.data.dataset import load_run_data
from peft_space.data.row_normalization import Row, TextClassification
from peft_space.data.tokenization.render import render
from peft_space.errors import UserError
from peft_space.export.merge import Dtype, MergeInto, load_published_base
from peft_space.export.quantize import COMPRESSED, Compressed
from peft_space.models.architecture import CLASSIFYING, auto_class, forward_options
from peft_space.models.loading import (
    AdaptedModel,
    base_of,
    inference_dtype,
    load_adapted,
    load_base_model,
)
from peft_space.models.quantization import quantization_of
from peft_space.models.repo_files import read_header
from peft_space.models.resolve import add_picture_processor
from peft_space.models.special_tokens import decoder_inputs
from peft_space.recipe import TaskSpec
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


Precision = Dtype | Literal["q8_0", "q5_k_m", "q4_k_m"] | Compressed
"""How the weights of an export are rounded."""
COARSE = ("q5_k_m", "q4_k_m", *COMPRESSED)
"""Precisions that change answers. Their cost is measured; the same weights in 16 bits are verified
before, so that a wrong merge is found."""
MIN_AGREEMENT = {
    "float32": 0.99, "bfloat16": 0.95, "float16": 0.95, "q8_0": 0.95, "q5_k_m": 0.8, "q4_k_m": 0.7,
    "gptq": 0.7, "awq": 0.7,
}  # fmt: skip
"""Share of greedy tokens or labels that must agree. Rounding to 16 or 8 bits flips a few that were
nearly tied; float32 hardly any."""
MAX_KL = {
    "float32": 1e-6, "bfloat16": 3e-3, "float16": 3e-3, "q8_0": 3e-3, "q5_k_m": 0.1, "q4_k_m": 0.2,
    "gptq": 0.2, "awq": 0.2,
}  # fmt: skip
"""Nats per token between merged model and adapter on the same base. On the built-in model, rounding
alone gives 2e-12, 2e-4, 2e-6 and 4e-6 (docs/export.md)."""
MAX_LOGIT_DIFFERENCE = 1e-4
"""Of one adapter loaded twice. Only the order in which a GPU or 4-bit layers add differs."""

MAX_ROWS, MAX_TOKENS = 60, 64
MAX_ROWS_OF_ADAPTER = 8
_BATCH_SIZE = 8
_MAX_STORED_LOGITS = 2**27
"""Half a GiB. Of further rows only the tokens are compared."""


@dataclass(frozen=True)
class Verification:
    """How far an export is from the adapter on its base model."""

    compared: str
    """Both models, as a phrase."""
    rows: str
    """Number and kind of the rows, as a phrase."""
    num_answers: int
    num_tokens: int
    """Tokens of the answers; labels or tags of a classification."""
    identical: int
    """Answers that are the same from the first token to the last."""
    agreement: float
    """Share of tokens, 0 to 1, that both models rank first."""
    needed: float
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    mean_kl: float
    """KL divergence of the export from the adapter, in nats per token."""
    adapter_kl: float
    """KL divergence of the base model from the adapter: the total effect of the adapter."""
    what: str
    """The unit compared: tokens, labels or tags."""
    faults: list[str]
    """Why it did not pass."""
    greedy: bool = True
    """The answers are the adapter's own, not those of the rows."""
    adapter_loss: float | None = None
    """Of the rows' own answers, in nats per token; measured for coarse precisions."""
    export_loss: float | None = None

    @property
    def passed(self) -> bool:
        return not self.faults

    def words(self) -> str:
        """Return the result in sentences."""
        same = ""
        if self.what == "tokens":
            kind = "answers have the same likeliest tokens throughout"
            if self.greedy:
                kind = "greedy answers are the same from first to last token"
            same = f"{self.identical} of {self.num_answers} {kind}, and "
        agreement = f"{self.agreement:.2%} of {self.num_tokens:,} {self.what} agree"
        verdict = "✓ Passed." if self.passed else "✗ Not passed: " + "; ".join(self.faults) + "."
        return (
            f"{self.compared}, on {self.rows}. "
            f"{same}{agreement} (at least {self.needed:.0%} required). "
            f"Logits differ by at most {self.max_logit_difference:.2g} "
            f"({self.mean_logit_difference:.2g} on average), "
            f"probabilities by at most {100 * self.max_probability_difference:.2g} "
            "percentage points. "
            f"The KL divergence is {self.mean_kl:.2g} nats; "
            f"the adapter itself changes the base model by {self.adapter_kl:.2g}. "
            f"{self._loss_words()}{verdict}"
        )

    def _loss_words(self) -> str:
        if self.adapter_loss is None or self.export_loss is None:
            return ""
        return (
            f"The loss on the rows' own answers is {self.export_loss:.4f}, and "
            f"{self.adapter_loss:.4f} with the adapter. "
        )


@dataclass(frozen=True)
class _Question:
    """Token ids of a prompt and of its answer; a classification has no answer."""

    ids: list[int]
    answer: list[int]
    token_types: list[int]
    tag_positions: list[int]
    pictures: list[str]
    """Paths of the pictures in the prompt."""
    tokenizer: Any


@dataclass(frozen=True)
class _Output:
    """What the adapter predicts for one question, at each of its N tokens."""

    likeliest: "Tensor"
    """(N,)"""
    logits: "Tensor | None"
    """(N, V), if stored."""
    base_kl: "Tensor"
    """(N,), in nats."""


def verify_merged(
    run: Run,
    folder: Path,
    dtype: Precision,
    into: MergeInto,
    on_progress: OnProgress = no_progress,
    of_gguf: bool = False,
) -> Verification:
    """Compare a merged model, loaded as anyone would, with the adapter on its training base.

    Args:
        run: the run that trained the adapter.
        folder: the merged model.
        dtype: of its weights.
        into: the weights that the adapter was merged into.
        on_progress: called with the share that is done.
        of_gguf: `folder` contains the numbers of a GGUF file, which were rounded to `dtype`.
    """
    base, task_spec = base_of(run)
    quantization = quantization_of(run.recipe, base.config)
    same_base = quantization == "none" or into == "dequantized"
    on_progress(0.5, "Loading the adapter to compare")
    adapted = load_adapted(run)
    rows, examples = _examples(run, adapted, MAX_ROWS)
    questions = _with_greedy_answers(adapted, examples, on_progress)
    outputs = _adapter_outputs(adapted, questions)
    own = [_question(one, task_spec, adapted.tokenizer) for one in examples]
    own = own if dtype in COARSE else []
    losses: dict[str, Any] = {}
    if own:
        losses["adapter_loss"] = _loss(adapted.model, task_spec, own)
    published = None if same_base else load_published_base(run, base, task_spec)
    deltas = expected_deltas(adapted.model, published)
    faults = _tokenizer_faults(run, folder, task_spec, examples)
    faults += [] if of_gguf else _dtype_faults(folder, dtype)
    del adapted, published
    gc.collect()  # models are in reference cycles; two of them may not fit in memory
    on_progress(0.8, "Asking the merged model")
    model, missing = _load(folder, task_spec)
    faults += missing
    faults += [] if dtype in COARSE else layers_missing_delta(model, deltas, dtype)
    figures = _compare(model, task_spec, questions, outputs)
    if own:
        losses["export_loss"] = _loss(model, task_spec, own)
    # the adapter's own dtype counts if it is coarser
    coarsest = inference_dtype() if dtype == "float32" else dtype
    needed = MIN_AGREEMENT[coarsest]
    if not figures["agreement"] >= needed:
        faults.append(f"{figures['agreement']:.2%} agree and {needed:.0%} are required")
    if same_base and not figures["mean_kl"] <= MAX_KL[coarsest]:
        kl = f"the KL divergence is {figures['mean_kl']:.2g} nats"
        faults.append(f"{kl} and rounding to {dtype} causes less than {MAX_KL[coarsest]:g}")
    compared = _compared(quantization, into, f"written as GGUF in {dtype}" if of_gguf else dtype)
    return Verification(compared, rows, needed=needed, faults=faults, **figures, **losses)


def _compared(quantization: str, into: MergeInto, form: str) -> str:
    merged_into = "the base model"
    if quantization != "none":
        merged_into = {
            "full": "the base model in full precision",
            "dequantized": "the dequantized base model",
        }[into]
    adapter = f"the adapter on {_base_name(quantization)}"
    return f"The model merged into {merged_into} ({form}), compared with {adapter}"


def verify_adapter(run: Run, folder: Path, on_progress: OnProgress = no_progress) -> Verification:
    """Compare an exported adapter in plain PEFT, on a base loaded alone, with the app's adapter.

    Args:
        run: the run that trained the adapter.
        folder: the exported adapter.
        on_progress: called with the share that is done.
    """
    from peft import PeftModel

    base, task_spec = base_of(run, folder)
    on_progress(0.2, "Loading the adapter to compare")
    adapted = load_adapted(run)
    rows, examples = _examples(run, adapted, MAX_ROWS_OF_ADAPTER)
    questions = [_question(one, task_spec, adapted.tokenizer) for one in examples]
    outputs = _adapter_outputs(adapted, questions)
    faults = _tokenizer_faults(run, folder, task_spec, examples)
    del adapted
    gc.collect()  # models are in reference cycles; two of them may not fit in memory
    on_progress(0.6, "Loading the exported adapter in PEFT")
    plain = load_base_model(base, run.recipe, inference_dtype(base.config), task_spec)
    figures = _compare(
        PeftModel.from_pretrained(plain, folder).eval(), task_spec, questions, outputs
    )
    difference = figures["max_logit_difference"]
    if not difference <= MAX_LOGIT_DIFFERENCE:
        faults.append(f"logits differ by {difference:.2g}, and must be the same")
    base_name = _base_name(quantization_of(run.recipe, base.config))
    compared = f"The exported adapter in plain PEFT, on {base_name}, compared with the run's"
    return Verification(compared, rows, needed=1.0, faults=faults, greedy=False, **figures)


def _base_name(quantization: str) -> str:
    quantized = "" if quantization == "none" else f" quantized as {quantization}"
    return f"the base model{quantized}, computed in {inference_dtype()}"


def reject_mismatch(verification: Verification, remedy: str) -> None:
    """Reject an export that did not pass.

    Args:
        verification: its result.
        remedy: a sentence that says what to do.

    Raises:
        UserError: it did not pass.
    """
    if not verification.passed:
        message = "Export rejected: its outputs differ from the adapter's. "
        message += f"{verification.words()} {remedy} To keep it anyway, use --force or check the "
        raise UserError("export.mismatch", message + "box on the Publish tab.")


def write_verification(folder: Path, verification: Verification) -> None:
    """Write proof.json, and add the result to the README in `folder`."""
    text = verification.words()
    values = asdict(verification) | {"passed": verification.passed, "words": text}
    report = json.dumps(values, ensure_ascii=False, indent=2)
    atomic_io.write_text(folder / "proof.json", report + "\n")
    card = folder / "README.md"
    atomic_io.write_text(card, f"{card.read_text(encoding='utf-8')}\n## Verification\n\n{text}\n")


# The questions


def _examples(run: Run, adapted: AdaptedModel, max_rows: int) -> tuple[str, list[TokenizedExample]]:
    """Evenly spaced held-out rows, or training rows if none was held out, with a description."""
    data = load_run_data(run)
    kind, rows = "held-out rows", data.held_out
    if not len(rows):
        kind, rows = "training rows, because none was held out", data.train
    positions = np.linspace(0, len(rows) - 1, min(len(rows), max_rows))
    chosen = [rows[int(position)] for position in positions]
    known = [row for row in chosen if _has_known_label(row, adapted.task_spec)]
    rendered = render_rows(run, adapted.tokenizer, adapted.task_spec, known)
    examples = [example for example in rendered if example.input_ids and example.num_trained]
    if not examples:
        message = f"No row can be used to verify the export: at {run.recipe.max_length} tokens "
        message += "every answer is cut off. Raise max_length in the recipe and train again."
        raise UserError("export.no_rows_to_verify", message)
    return f"{len(examples)} {kind}", examples


def _has_known_label(row: Row, task_spec: TaskSpec) -> bool:
    return not isinstance(row, TextClassification) or row.label in task_spec.labels


def render_rows(
    run: Run, tokenizer: "PreTrainedTokenizerFast", task_spec: TaskSpec, rows: Sequence[Row]
) -> list[TokenizedExample]:
    """Return the tokens of rows as the run trains them."""
    recipe = run.recipe
    return render(
        tokenizer,
        rows,
        recipe.max_length,
        recipe.train_on,
        task_spec.task,
        recipe.reasoning_of_rows,
        with_texts=False,
    )


def _question(example: TokenizedExample, task_spec: TaskSpec, tokenizer: Any) -> _Question:
    """The row's own answer after its prompt; a plain text is split in half."""
    ids, others = example.input_ids, (example.pictures, tokenizer)
    if task_spec.task in CLASSIFYING:
        positions = [position for position, tag in enumerate(example.tags) if tag]
        return _Question(ids, [], example.types, positions, *others)
    if example.target is not None:
        return _Question(ids, example.target.input_ids[:MAX_TOKENS], [], [], *others)
    start = example.trained[-1][0] or max(1, len(ids) // 2)
    return _Question(ids[:start], ids[start : start + MAX_TOKENS], [], [], *others)


def _with_greedy_answers(
    adapted: AdaptedModel, examples: Sequence[TokenizedExample], on_progress: OnProgress
) -> list[_Question]:
    """The questions, with the adapter's greedy answers in place of the rows' own."""
    from peft_space.evaluation.generate import generate_greedy

    questions = [_question(one, adapted.task_spec, adapted.tokenizer) for one in examples]
    if adapted.task_spec.task in CLASSIFYING:
        return questions
    answered = []
    for start in range(0, len(questions), _BATCH_SIZE):
        batch = questions[start : start + _BATCH_SIZE]
        prompts = [question.ids for question in batch]
        progress = f"The adapter answers rows {start + 1} to {start + len(prompts)}"
        on_progress(0.5 + 0.25 * start / len(questions), progress)
        pictures = [question.pictures for question in batch]
        answers = generate_greedy(adapted, prompts, MAX_TOKENS, pictures)
        answered += [
            dataclasses.replace(question, answer=answer)
            for question, answer in zip(batch, answers, strict=True)
        ]
    return answered


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    ends = (position + 1 for position, token in enumerate(ids) if token in stops)
    return ids[: next(ends, len(ids))]


# The outputs


def _adapter_outputs(adapted: AdaptedModel, questions: Sequence[_Question]) -> list[_Output]:
    outputs, num_logits = [], 0
    for question in questions:
        logits = _logits(adapted.model, adapted.task_spec, question)
        with adapted.model.disable_adapter():
            base_kl = _kl(logits, _logits(adapted.model, adapted.task_spec, question))
        num_logits += logits.numel()
        stored = logits if num_logits <= _MAX_STORED_LOGITS else None
        outputs.append(_Output(logits.argmax(-1), stored, base_kl))
    return outputs


def _logits(
    model: "PreTrainedModel | PeftModel", task_spec: TaskSpec, question: _Question
) -> "Tensor":
    """(N, V) in float32, (N, L) for a classification; one row at a time, so without padding."""
    import torch

    from peft_space.data.batches import picture_inputs

    def batch(ids: list[int]) -> "Tensor":
        return torch.tensor([ids], device=model.device)

    is_text = task_spec.task not in (*CLASSIFYING, "seq2seq-lm")
    inputs = {"input_ids": batch(question.ids + question.answer if is_text else question.ids)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    of_pictures = picture_inputs(
        question.tokenizer, inputs["input_ids"].tolist(), [question.pictures]
    )
    inputs |= {name: tensor.to(model.device) for name, tensor in of_pictures.items()}
    if question.token_types:
        inputs["token_type_ids"] = batch(question.token_types)
    if task_spec.task == "seq2seq-lm":
        base = getattr(model, "get_base_model", lambda: model)()
        inputs["decoder_input_ids"] = decoder_inputs(base, batch(question.answer))
    # the prompt's logits would take more memory than the rest of a model with a large vocabulary
    options = forward_options(model, len(question.answer) + 1 if is_text else None)
    with torch.inference_mode():
        logits = model(**inputs, **options).logits
    if task_spec.task == "token-classification":
        logits = logits[0, question.tag_positions]
    elif is_text:
        logits = logits[0, -len(question.answer) - 1 : -1]
    return logits.reshape(-1, logits.shape[-1]).float().cpu()


def _loss(
    model: "PreTrainedModel | PeftModel", task_spec: TaskSpec, questions: Sequence[_Question]
) -> float:
    """The mean negative log-likelihood of the answers' tokens, in nats."""
    import torch

    parts = [
        -_logits(model, task_spec, question).log_softmax(-1)[range(len(answer)), answer]
        for question in questions
        if (answer := question.answer)
    ]
    return torch.cat(parts).mean().item()


def _kl(logits: "Tensor", other: "Tensor") -> "Tensor":
    """KL(logits || other) per token, in nats, (N,)."""
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def _compare(
    model: "PreTrainedModel | PeftModel",
    task_spec: TaskSpec,
    questions: Sequence[_Question],
    outputs: Sequence[_Output],
) -> dict[str, Any]:
    """The figures of a `Verification`."""
    import torch

    agrees, logit_differences, probability_differences, kl = [], [], [], []
    for question, expected in zip(questions, outputs, strict=True):
        logits = _logits(model, task_spec, question)
        agrees.append(logits.argmax(-1) == expected.likeliest)
        if expected.logits is not None:
            probabilities = logits.softmax(-1) - expected.logits.softmax(-1)
            logit_differences.append((logits - expected.logits).abs().flatten())
            probability_differences.append(probabilities.abs().max())
            kl.append(_kl(expected.logits, logits))
    all_agrees, differences = torch.cat(agrees), torch.cat(logit_differences)
    units = {"sequence-classification": "labels", "token-classification": "tags"}
    return {
        "num_answers": len(agrees),
        "num_tokens": len(all_agrees),
        "identical": sum(bool(answer.all()) for answer in agrees),
        "agreement": all_agrees.double().mean().item(),
        "max_logit_difference": differences.max().item(),
        "mean_logit_difference": differences.double().mean().item(),
        "max_probability_difference": torch.stack(probability_differences).max().item(),
        "mean_kl": torch.cat(kl).mean().item(),
        "adapter_kl": torch.cat([output.base_kl for output in outputs]).mean().item(),
        "what": units.get(task_spec.task, "tokens"),
    }


# The files


def _load(folder: Path, task_spec: TaskSpec) -> tuple["PreTrainedModel", list[str]]:
    """Load the model in its own dtype; report missing weights."""
    import torch

    where = {"device_map": {"": torch.cuda.current_device()}} if hardware.device() == "cuda" else {}
    model, info = auto_class(task_spec.task).from_pretrained(
        folder, dtype="auto", output_loading_info=True, **where
    )
    missing = sorted(info["missing_keys"])
    faults = [f"{len(missing)} weights are missing, such as {missing[0]}"] if missing else []
    return model.eval(), faults


def _dtype_faults(folder: Path, dtype: str) -> list[str]:
    config = json.loads((folder / "config.json").read_text())
    if dtype in COMPRESSED:
        method = config.get("quantization_config", {}).get("quant_method")
        return [] if method == dtype else [f"config.json says {method}, not {dtype}"]
    expected = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    stored = {kind for header in headers if header for kind in header.dtypes.values()}
    others = sorted(kind for kind in stored - {expected} if "F" in kind)
    faults = [f"weights are stored as {', '.join(others)}, not {expected}"] if others else []
    if config.get("dtype") != dtype:
        faults.append(f"config.json says {config.get('dtype')}, not {dtype}")
    return faults


def _tokenizer_faults(
    run: Run, folder: Path, task_spec: TaskSpec, examples: Sequence[TokenizedExample]
) -> list[str]:
    """Check that the exported tokenizer and chat template give the token ids of the training."""
    from transformers import AutoTokenizer

    data, ids = load_run_data(run), {example.row: example.input_ids for example in examples}
    rows = data.held_out if len(data.held_out) else data.train
    chosen = [row for row in rows if row.row in ids]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if task_spec.task == "image-text-to-text":
        base, _ = base_of(run)
        add_picture_processor(tokenizer, dataclasses.replace(base, location=str(folder)))
    rendered = render_rows(run, tokenizer, task_spec, chosen)
    if all(ids[example.row] == example.input_ids for example in rendered):
        return []
    return ["its tokenizer gives other tokens for the same rows"]


_TOLERANCE = 0.02
_MAX_ROWS = 64
_MIN_RELATIVE_CHANGE = 1e-10
"""Squared change relative to the squared weight; anything smaller is rounding."""
_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12, "q8_0": 2.0**-7}
"""Bound on the root mean square of the relative rounding error; for q8_0, relative to the weight's
root mean square. Coarser rounding hides an update."""


@dataclass(frozen=True)
class ExpectedDelta:
    """The update of one layer, scale B A, stored as its factors."""

    name: str
    down: "Tensor"
    """A, (rank, inputs)."""
    up: "Tensor"
    """B, (outputs, rank)."""
    scale: float
    along: float = 0.0
    """Inner product of the base weight with the update."""

    @property
    def squared(self) -> float:
        """Squared norm of the update."""
        return self.scale**2 * float(((self.up.T @ self.up) * (self.down @ self.down.T)).sum())

    def dot(self, weight: "Tensor") -> float:
        """Return the inner product of a weight, (outputs, inputs), with the update."""
        return self.scale * float(((self.up.T @ weight) * self.down).sum())


@dataclass(frozen=True)
class Rescaled:
    """The change to some rows of one layer: by DoRA, or of a tensor that holds many experts."""

    name: str
    rows: "Tensor"
    change: "Tensor"
    """(rows, inputs)"""
    along: float
    """Inner product of these rows of the base weight with the change."""
    squared: float
    """Squared norm of the change; 0 if float32 rounds it away."""

    def dot(self, weight: "Tensor") -> float:
        """Return the inner product of a weight's rows, (outputs, inputs), with the change."""
        return float((weight[self.rows] * self.change).sum())


def expected_deltas(
    adapted: "PeftModel", base: "PreTrainedModel | None" = None
) -> list[ExpectedDelta | Rescaled]:
    """Return the update of each layer by the active adapter.

    Args:
        adapted: a base model with the adapter.
        base: the model that was merged into, if its weights differ from those under the adapter.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    deltas: list[ExpectedDelta | Rescaled] = []
    for full_name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer) or not layer.lora_A:
            continue
        name = full_name.removeprefix("base_model.model.")
        if isinstance(layer, ParamWrapper):
            tensor = f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
            before = _matrix(layer.get_param() if base is None else base.get_parameter(tensor))
            deltas.append(_experts_delta(tensor, layer.get_delta_weight("default"), before))
            continue
        down, up = (_float(pair["default"].weight) for pair in (layer.lora_A, layer.lora_B))
        delta = ExpectedDelta(name, down, up, layer.scaling["default"])
        before = _weight(layer.get_base_layer() if base is None else base.get_submodule(name))
        if not layer.lora_variant:
            deltas.append(dataclasses.replace(delta, along=delta.dot(before)))
        elif layer.use_dora.get("default"):
            magnitude = _float(layer.lora_magnitude_vector["default"].weight)
            deltas.append(_rescaled(delta, before, magnitude))
    return deltas


def _experts_delta(name: str, delta: "Tensor", before: "Tensor") -> Rescaled:
    """The update of some rows of all experts' matrices, one below the other."""
    import torch

    rows = torch.linspace(0, len(before) - 1, min(_MAX_ROWS, len(before))).long()
    change = _matrix(delta)[rows]
    along = float((before[rows] * change).sum())
    return Rescaled(name, rows, change, along, float(change.square().sum()))


def _rescaled(delta: ExpectedDelta, before: "Tensor", magnitude: "Tensor") -> Rescaled:
    """DoRA makes each row magnitude x (W0 + B A) / |W0 + B A|."""
    import torch

    rows = torch.linspace(0, len(before) - 1, min(_MAX_ROWS, len(before))).long()
    base_rows = before[rows]
    moved = base_rows + delta.scale * delta.up[rows] @ delta.down
    scaled = magnitude.flatten()[rows, None] * moved / torch.linalg.norm(moved, dim=1, keepdim=True)
    change = scaled - base_rows
    squared = float(change.square().sum())
    if squared <= _MIN_RELATIVE_CHANGE * float(base_rows.square().sum()):
        squared = 0.0
    return Rescaled(delta.name, rows, change, float((base_rows * change).sum()), squared)


def layers_missing_delta(
    model: "PreTrainedModel", deltas: Sequence[ExpectedDelta | Rescaled], dtype: str
) -> list[str]:
    """Check the weights of a merged model.

    Args:
        model: the merged model.
        deltas: the expected update of each layer.
        dtype: to which the merged weights were rounded.

    Returns:
        One sentence for each of the first three wrong layers, and one for the others.
    """
    from torch.nn import Parameter

    faults = []
    for delta in deltas:
        if not delta.squared:
            continue
        parent, _, leaf = delta.name.rpartition(".")
        layer = getattr(model.get_submodule(parent), leaf)
        weight = _matrix(layer) if isinstance(layer, Parameter) else _weight(layer)
        share = (delta.dot(weight) - delta.along) / delta.squared
        size = float(weight.square().mean().sqrt())
        rounding = 5 * _ROUNDING[dtype] * size / delta.squared**0.5
        if not abs(share - 1) <= _TOLERANCE + rounding:
            percent = f"{round(share, 2) + 0.0:.0%}"
            faults.append(f"{delta.name} has {percent} of the adapter's update")
    others = [f"{len(faults) - 3} more layers are wrong"] if len(faults) > 3 else []
    return [*faults[:3], *others]


def _weight(module: "nn.Module") -> "Tensor":
    """(outputs, inputs), dequantized, in float32."""
    from transformers.pytorch_utils import Conv1D

    weight = _float(dequantized_weight(module))
    return weight.T if isinstance(module, Conv1D) else weight


def _matrix(experts: Any) -> "Tensor":
    """The matrices of all experts, one below the other, in float32."""
    return _float(experts).flatten(0, -2)


def _float(weight: Any) -> "Tensor":
    return weight.detach().float().cpu()
