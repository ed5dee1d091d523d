"""Writes the README of an adapter, or of a model it is merged into: what it is, and figures of its run, none of which is typed or guessed."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

import peft_space
from peft_space.data.dataset import TrainingData
from peft_space.data.readers.hub import is_address, parse_address
from peft_space.errors import UserError
from peft_space.evaluation.results import (
    Evaluation,
    differences,
    majority_words,
    read_scores,
    shown_with_intervals,
)
from peft_space.export.checklist import checklist_markdown, read_checklist
from peft_space.export.loss_plot import loss_svg
from peft_space.formatting import code, code_block, escape, single_line
from peft_space.models.architecture import AUTO_CLASSES
from peft_space.models.resolve import license_of
from peft_space.recipe import Task
from peft_space.runs.plan import Plan
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, selected_checkpoint, steps_of

LOSS = "loss.svg"


@dataclass(frozen=True)
class Merged:
    """How an adapter was merged into its base."""

    dtype: str
    into: str
    """`full` or `dequantized`."""
    usage: str = ""
    """How it is used, in Markdown, where it is not by transformers but by what reads GGUF."""
    apart: bool = False
    """Whether it is not merged after all, but base and adapter lie beside each other."""


def write_card(
    run: Run, folder: Path, data: TrainingData, plan: Plan, merged: Merged | None = None
) -> None:
    """Write `folder`/README.md with what is known of the run by now.

    Args:
        merged: where `folder` holds a whole model, how it was merged.
    """
    text = card_text(run, data, plan, merged)
    if picture := loss_svg(run.history()):
        (folder / LOSS).write_text(picture, encoding="utf-8")
        text = text.replace(
            "## Training\n\n",
            f"## Training\n\n![Loss of each step, and of the held-out rows]({LOSS})\n\n",
            1,
        )
    (folder / "README.md").write_text(text, encoding="utf-8")


def put_card(folder: Path, text: str) -> None:
    """Put an edited card in the place of the one in `folder`. Raises UserError where its front matter is none, or no longer names the base."""
    path = folder / "README.md"
    before = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    try:
        after = ModelCard(text).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            "todo",
            f"The card's front matter, between the two lines of three hyphens, cannot be read ({error}). Mend it.",
        ) from None
    if before.get("base_model") != after.get("base_model"):
        raise UserError(
            "todo",
            f"The card has to name its base: put back base_model: {before.get('base_model')} into the front matter.",
        )
    path.write_text(text, encoding="utf-8")


def card_text(run: Run, data: TrainingData, plan: Plan, merged: Merged | None = None) -> str:
    """The same as text, without the picture."""
    parts = [
        _front_matter(plan, merged, data),
        f"# {escape(single_line(run.name))}\n\n{_what(plan, merged)} trained with peft_space {peft_space.__version__}.",
        "## Use it\n\n" + (merged.usage or _usage_merged(plan) if merged else _usage(run, plan)),
        "## Data\n\n" + _data(data),
        "## Training\n\n" + _training(run, plan),
        "## Scores\n\n" + _scores(scores := read_scores(run)),
        *(["## Side by side\n\n" + samples] if (samples := _samples(scores)) else []),
        "## Ready for production?\n\n"
        + (checklist_markdown(read_checklist(run)) or "Not looked at yet."),
        "## Recipe\n\n```json\n" + run.recipe.model_dump_json(indent=2) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


_PIPELINES: dict[Task, str] = {
    "seq2seq-lm": "text2text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
}


def _what(plan: Plan, merged: Merged | None) -> str:
    if merged is None:
        return f"A LoRA adapter for {_base_in_words(plan)},"
    if merged.apart:
        return f"{_base_in_words(plan)}, and beside it a LoRA adapter, in {merged.dtype}. The adapter was"
    into = "" if plan.quantization == "none" else MERGED_INTO[merged.into]
    return f"{_base_in_words(plan)}, with a LoRA adapter merged into it{into}, in {merged.dtype}. It needs no PEFT. The adapter was"


MERGED_INTO = {
    "full": " in full precision, while the adapter was trained on a quantized one",
    "dequantized": " as its quantized weights stand, on which the adapter was trained",
}


def _front_matter(plan: Plan, merged: Merged | None, data: TrainingData) -> str:
    """YAML, whose writer lets no name break out of it. A base that is not on the Hub cannot be named here."""
    fields: dict[str, object] = {
        "library_name": ("gguf" if merged.usage else "transformers") if merged else "peft",
        "pipeline_tag": _PIPELINES.get(plan.task, "text-generation"),
        "tags": ["lora", "peft", "peft_space"],
    }
    if merged:
        fields["base_model_relation"] = "finetune"
    if plan.base_on_hub:
        fields["base_model"] = plan.base_name
    if is_address(data.source):
        fields["datasets"] = [parse_address(data.source).name]
    if licence := license_of(plan.base_name, plan.base_revision):
        fields["license"] = licence
    return (
        "---\n"
        + yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=float("inf"))
        + "---"
    )


def _base_in_words(plan: Plan) -> str:
    revision = f" (revision {plan.base_revision})" if plan.base_revision else ""
    where = "" if plan.base_on_hub else ", a model that is not on the Hub"
    return f"{code(plan.base_name)}{revision}{where}"


def _usage_merged(plan: Plan) -> str:
    loader = AUTO_CLASSES[plan.task]
    return f"""\
```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("path/or/id/of/this/model", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/or/id/of/this/model")
```"""


def _usage(run: Run, plan: Plan) -> str:
    loads = (
        f"{plan.base_name!r}, revision={plan.base_revision!r}"
        if plan.base_on_hub
        else f"{plan.base_name!r}"
    )
    loader, labels = AUTO_CLASSES[plan.task], ""
    if plan.labels:
        labels = f"labels = {list(plan.labels)!r}\n"
        loads += ", num_labels=len(labels), id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True"
    where = (
        ""
        if plan.base_on_hub
        else "  # put the path of the base model's folder here: it is not on the Hub"
    )
    code = f"""\
```python
from peft import PeftModel
from transformers import {loader}, AutoTokenizer

{labels}base = {loader}.from_pretrained({loads}){where}
model = PeftModel.from_pretrained(base, "path/or/id/of/this/adapter")
tokenizer = AutoTokenizer.from_pretrained("path/or/id/of/this/adapter")
```"""
    quantization = (
        plan.quantization or run.recipe.quantization
    )  # the first versions' plans do not say it
    if quantization == "none":
        return code
    return (
        code
        + f"\n\nIt was trained on the base quantized as {quantization}; on the full-precision base its answers can differ a little."
    )


def _data(data: TrainingData) -> str:
    return (
        f"{code(data.source)} (SHA-256 {data.sha256}), {data.num_rows} rows read as {data.column_mapping.schema}: "
        f"{len(data.train)} to train, {len(data.held_out)} held out, {data.num_problems} left out because of problems, "
        f"{data.num_repeated} because they say the same as another. Mended: {', '.join(data.column_mapping.fixes) or 'nothing'}."
    )


def _training(run: Run, plan: Plan) -> str:
    happened = run.history()
    steps = steps_of(happened)
    share = 100 * plan.trainable_parameters / plan.all_parameters
    if not steps:
        return "The adapter was made elsewhere, and has not been trained on here."
    reason = run.recipe.high_rank_reason if run.recipe.lora_rank > 64 else None
    lines = [
        f"- {len(steps)} steps, {steps[-1].tokens:,} tokens, {sum(step.seconds for step in steps):.0f} s on {plan.device_name}, in {plan.compute_dtype}",
        f"- loss of the first step {steps[0].loss:.4f}, of the last {steps[-1].loss:.4f}",
        f"- {plan.trainable_parameters:,} trainable of {plan.all_parameters:,} parameters ({share:.2f} %), in {plan.num_wrapped} layers: "
        + ", ".join(map(code, plan.target_modules)),
        f"- learning rate {plan.learning_rate:g} ({plan.learning_rate_why})",
        "- versions: "
        + ", ".join(f"{library} {version}" for library, version in plan.versions.items()),
    ]
    if reason:
        lines.append(f"- rank {run.recipe.lora_rank}, because: {escape(single_line(reason))}")
    evaluations = evaluations_of(happened)
    if evaluations:
        lines.insert(
            2,
            f"- loss on held-out rows {evaluations[-1].loss:.4f} after step {evaluations[-1].step}",
        )
    if kept := selected_checkpoint(happened):
        lines.insert(
            3 if evaluations else 2, f"- the adapter of step {kept.step} was kept: {kept.why}"
        )
    return "\n".join(lines)


def _scores(scores: Evaluation | None) -> str:
    if scores is None:
        return "Not measured yet."
    base, adapter, change = (
        shown_with_intervals(scores, "base"),
        shown_with_intervals(scores, "adapter"),
        differences(scores),
    )
    rows = [
        f"| {title} | {base.get(title, '–')} | {figure} | {change.get(title, '–')} |"
        for title, figure in adapter.items()
    ]
    sure = ", with the intervals that 95 % of samples of them give" if scores.intervals else ""
    table = [
        f"On {scores.num_rows} held-out rows{sure}:\n",
        "| | base | adapter | difference |",
        "|---|---|---|---|",
        *rows,
    ]
    said = [
        words
        for words in (
            majority_words(scores),
            scores.general and scores.general.in_words(),
            scores.fairness,
        )
        if words
    ]
    return "\n\n".join(["\n".join(table), *(escape(single_line(words)) for words in said)])


_SAMPLES = 5
_LONGEST_SAMPLE = 600
"""Characters; of longer texts the beginning."""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SAMPLE else text[:_LONGEST_SAMPLE] + " …"


def _samples(scores: Evaluation | None) -> str:
    """Held-out rows with what both columns answered, in fences that no text can close."""
    shown = []
    for sample in scores.samples[:_SAMPLES] if scores else ():
        parts = {
            "Prompt": sample["prompt"],
            "Base": sample["base"],
            "Adapter": sample["adapter"],
            "The row's own answer": sample["expected"],
        }
        shown.append(
            "\n\n".join(
                f"{title}:\n\n{code_block(_cut(text), 'text')}" for title, text in parts.items()
            )
        )
    return "\n\n---\n\n".join(shown)
