"""Writes the README of an adapter or an exported model from the figures of its run."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

import peft_space
from peft_space.data.dataset import TrainingData, load_run_data
from peft_space.data.pictures import FOLDER
from peft_space.data.readers.hub import is_address, parse_address
from peft_space.errors import UserError
from peft_space.evaluation.results import (
    Evaluation,
    cut_words,
    differences,
    majority_words,
    read_scores,
    shown_with_intervals,
)
from peft_space.export.readiness import checklist_markdown, read_checklist
from peft_space.formatting import code, code_block, escape, single_line
from peft_space.models.architecture import AUTO_CLASSES
from peft_space.models.resolve import license_of
from peft_space.models.vocabulary import find_base_of_run, has_resized_base
from peft_space.recipe import Task
from peft_space.runs.events import Event, evaluations_of, selected_checkpoint, steps_of
from peft_space.runs.plan import Plan, read_plan
from peft_space.runs.run import Run

PLOT, EXAMPLE = "loss.svg", "example.png"


@dataclass(frozen=True)
class ModelFormat:
    """How a model was exported, unless as a PEFT adapter."""

    dtype: str
    merged_into: str
    """`full` or `dequantized`."""
    usage: str = ""
    """How to use it, in Markdown, if it is not for transformers but in GGUF."""
    separate_adapter: bool = False
    """Base and adapter are separate files: nothing was merged."""


def write_card(
    run: Run, folder: Path, data: TrainingData, plan: Plan, model_format: ModelFormat | None = None
) -> None:
    """Write README.md and the loss plot into `folder`, from the current contents of the run.

    Args:
        run: the run that trained the adapter.
        folder: the folder of the adapter or the model.
        data: the rows that the run was trained on.
        plan: how the run was trained.
        model_format: how the model was exported; None for an adapter.
    """
    text, scores = card_text(run, data, plan, model_format), read_scores(run)
    if plot := loss_svg(run.history()):
        (folder / PLOT).write_text(plot, encoding="utf-8")
        heading = "## Training\n\n"
        picture = f"![Training loss and held-out loss by step]({PLOT})\n\n"
        text = text.replace(heading, heading + picture, 1)
    shown = next(
        (sample for sample in (scores.samples if scores else []) if "pictures" in sample), {}
    )
    if pictures := shown.get("pictures"):
        source = run.path("data", FOLDER, pictures[0])
        if source.is_file():
            shutil.copyfile(source, folder / EXAMPLE)
            heading = "## Examples\n\n"
            text = text.replace(heading, f"{heading}![A picture of a held-out row]({EXAMPLE})\n\n")
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_export_card(run: Run, folder: Path, model_format: ModelFormat | None = None) -> None:
    """Write the card of a trained run with the data and the plan stored in the run."""
    plan = read_plan(run)
    assert plan is not None, "training writes the plan before it saves an adapter"
    write_card(run, folder, load_run_data(run), plan, model_format)


def put_card(folder: Path, text: str) -> None:
    """Replace the card in `folder` by an edited one.

    Raises:
        UserError: its front matter cannot be read, or no longer names the base model.
    """
    path = folder / "README.md"
    before = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    try:
        after = ModelCard(text).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        message = (
            f"The card's front matter, between the two --- lines, is not valid YAML ({error})."
        )
        raise UserError("export.invalid_card", f"{message} Correct it.") from None
    base = before.get("base_model")
    if base != after.get("base_model"):
        message = f"The card must name its base model. Put base_model: {base} back."
        raise UserError("export.card_without_base", message)
    path.write_text(text, encoding="utf-8")


def card_text(
    run: Run, data: TrainingData, plan: Plan, model_format: ModelFormat | None = None
) -> str:
    """Return the card in Markdown, without the plot."""
    scores = read_scores(run)
    if model_format is None:
        rows = None
        if run.recipe.new_tokens or has_resized_base(run):
            rows = find_base_of_run(run, plan.base_revision).num_embeddings
        usage = _adapter_usage(plan, rows)
    else:
        usage = model_format.usage or _model_usage(plan)
    checklist = checklist_markdown(read_checklist(run))
    version = f"trained with peft_space {peft_space.__version__}"
    parts = [
        _front_matter(plan, model_format, data),
        f"# {escape(single_line(run.name))}\n\n{_summary(plan, model_format)} {version}.",
        f"## Usage\n\n{usage}",
        f"## Data\n\n{_data(data)}",
        f"## Training\n\n{_training(run, plan)}",
        f"## Scores\n\n{_scores(scores)}",
        *([f"## Examples\n\n{samples}"] if (samples := _samples(scores)) else []),
        f"## Ready for production?\n\n{checklist or 'Not checked yet.'}",
        f"## Recipe\n\n```json\n{run.recipe.model_dump_json(indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(plan: Plan, model_format: ModelFormat | None) -> str:
    base = _base_name(plan)
    if model_format is None:
        return f"A LoRA adapter for {base},"
    if model_format.separate_adapter:
        return f"{base} and a separate LoRA adapter, in {model_format.dtype}. The adapter was"
    into = "" if plan.quantization == "none" else _MERGED_INTO[model_format.merged_into]
    return (
        f"{base} with a LoRA adapter merged into it{into}, in {model_format.dtype}. "
        "It does not need PEFT. The adapter was"
    )


_MERGED_INTO = {
    "full": " in full precision (the adapter was trained on a quantized base)",
    "dequantized": " after dequantizing the weights that the adapter was trained on",
}
_PIPELINES: dict[Task, str] = {
    "seq2seq-lm": "text2text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "image-text-to-text": "image-text-to-text",
}


def _front_matter(plan: Plan, model_format: ModelFormat | None, data: TrainingData) -> str:
    """YAML written by a library, so that a name cannot break out of it."""
    library = "peft"
    if model_format:
        library = "gguf" if model_format.usage else "transformers"
    fields: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": _PIPELINES.get(plan.task, "text-generation"),
        "tags": ["lora", "peft", "peft_space"],
    }
    if model_format:
        fields["base_model_relation"] = "finetune"
    if plan.base_on_hub:  # the Hub rejects a base model that it does not have
        fields["base_model"] = plan.base_name
    if is_address(data.source):
        fields["datasets"] = [parse_address(data.source).name]
    if license_id := license_of(plan.base_name, plan.base_revision):
        fields["license"] = license_id
    text = yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=float("inf"))
    return f"---\n{text}---"


def _base_name(plan: Plan) -> str:
    revision = f" (revision {plan.base_revision})" if plan.base_revision else ""
    where = "" if plan.base_on_hub else ", a model that is not on the Hub"
    return f"{code(plan.base_name)}{revision}{where}"


def _model_usage(plan: Plan) -> str:
    loader, path = AUTO_CLASSES[plan.task], '"path/or/id/of/this/model"'
    reader, variable = _reader(plan)
    return f"""\
```python
from transformers import {loader}, {reader}

model = {loader}.from_pretrained({path}, dtype="auto")
{variable} = {reader}.from_pretrained({path})
```"""


def _reader(plan: Plan) -> tuple[str, str]:
    """The class that prepares texts, and pictures if the model reads them, and a variable."""
    if plan.task == "image-text-to-text":
        return "AutoProcessor", "processor"
    return "AutoTokenizer", "tokenizer"


def _adapter_usage(plan: Plan, num_embeddings: int | None) -> str:
    loader, labels, path = AUTO_CLASSES[plan.task], "", '"path/or/id/of/this/adapter"'
    arguments, comment = repr(plan.base_name), ""
    if plan.base_on_hub:
        arguments += f", revision={plan.base_revision!r}"
    else:
        comment = "  # not on the Hub: put the path of the base model's folder here"
    if plan.labels:
        labels = f"labels = {list(plan.labels)!r}\n"
        arguments += ", num_labels=len(labels), id2label=dict(enumerate(labels))"
        arguments += ", ignore_mismatched_sizes=True"
    reader, variable = _reader(plan)
    resize = ""
    if num_embeddings:
        resize = f"base.resize_token_embeddings({num_embeddings})  # it has new tokens\n"
    usage = f"""\
```python
from peft import PeftModel
from transformers import {loader}, {reader}

{labels}base = {loader}.from_pretrained({arguments}){comment}
{resize}model = PeftModel.from_pretrained(base, {path})
{variable} = {reader}.from_pretrained({path})
```"""
    if plan.quantization == "none":
        return usage
    return (
        f"{usage}\n\nIt was trained on the base model quantized as {plan.quantization}. "
        "On the full-precision base its answers can differ a little."
    )


def _data(data: TrainingData) -> str:
    fixes = ", ".join(data.column_mapping.fixes) or "none"
    return (
        f"{code(data.source)} (SHA-256 {data.sha256}): {data.num_rows} rows, read as "
        f"{data.column_mapping.schema}. {len(data.train)} to train, {len(data.held_out)} held out, "
        f"{data.num_problems} rejected, {data.num_repeated} duplicates skipped. Fixes: {fixes}."
    )


def _training(run: Run, plan: Plan) -> str:
    history = run.history()
    steps = steps_of(history)
    if not steps:
        return "The adapter was imported and has not been trained here."
    seconds, first, last = sum(step.seconds for step in steps), steps[0], steps[-1]
    lines = [
        f"{len(steps)} steps, {last.tokens:,} tokens, {seconds:.0f} s "
        f"on {plan.device_name}, in {plan.compute_dtype}",
        f"loss of the first step {first.loss:.4f}, of the last {last.loss:.4f}",
    ]
    if evaluations := evaluations_of(history):
        final = evaluations[-1]
        lines.append(f"loss on held-out rows {final.loss:.4f} after step {final.step}")
    if selected := selected_checkpoint(history):
        lines.append(f"the adapter of step {selected.step} was kept: {selected.why}")
    share = 100 * plan.trainable_parameters / plan.all_parameters
    versions = [f"{library} {version}" for library, version in plan.versions.items()]
    targets = ", ".join(map(code, plan.target_modules))
    lines += [
        f"{plan.trainable_parameters:,} of {plan.all_parameters:,} parameters trained "
        f"({share:.2f} %), in {plan.num_wrapped} layers: {targets}",
        *map(escape, plan.not_adapted),
        f"learning rate {plan.learning_rate:g} ({plan.learning_rate_why})",
        f"versions: {', '.join(versions)}",
    ]
    if run.recipe.lora_rank > 64 and (reason := run.recipe.high_rank_reason):
        lines.append(f"rank {run.recipe.lora_rank}, because: {escape(single_line(reason))}")
    return "\n".join(f"- {line}" for line in lines)


def _scores(scores: Evaluation | None) -> str:
    if scores is None:
        return "Not measured yet."
    base, change = shown_with_intervals(scores, "base"), differences(scores)
    intervals = ", with 95 % bootstrap confidence intervals" if scores.intervals else ""
    table = [
        f"On {scores.num_rows} held-out rows{intervals}:\n",
        "| | base | adapter | difference |",
        "|---|---|---|---|",
    ]
    for title, figure in shown_with_intervals(scores, "adapter").items():
        table.append(f"| {title} | {base.get(title, '–')} | {figure} | {change.get(title, '–')} |")
    forgetting = scores.general.in_words() if scores.general else ""
    remarks = [majority_words(scores), cut_words(scores), forgetting, scores.fairness]
    sentences = [escape(single_line(remark)) for remark in remarks if remark]
    return "\n\n".join(["\n".join(table), *sentences])


_NUM_SAMPLES = 5
_MAX_SAMPLE_CHARACTERS = 600


def _samples(scores: Evaluation | None) -> str:
    """Held-out rows with both answers, in fences that no text can close."""
    titles = {
        "Prompt": "prompt",
        "Base": "base",
        "Adapter": "adapter",
        "Expected answer": "expected",
    }
    shown = []
    for sample in scores.samples[:_NUM_SAMPLES] if scores else ():
        texts = {title: sample[key] for title, key in titles.items()}
        blocks = [f"{title}:\n\n{code_block(_cut(text), 'text')}" for title, text in texts.items()]
        shown.append("\n\n".join(blocks))
    return "\n\n---\n\n".join(shown)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SAMPLE_CHARACTERS else text[:_MAX_SAMPLE_CHARACTERS] + " …"


# The plot

_WIDTH, _HEIGHT, _MARGIN = 720, 300, 48
_COLORS = {"training": "#0f766e", "held out": "#d97706"}


def loss_svg(history: list[Event]) -> str | None:
    """Return the loss curves as SVG, or None if there are fewer than two finite steps."""
    events: dict[str, list[Any]] = {
        "training": steps_of(history),
        "held out": evaluations_of(history),
    }
    curves = {
        name: [(event.step, event.loss) for event in series if abs(event.loss) < float("inf")]
        for name, series in events.items()
    }
    if len(curves["training"]) < 2:
        return None
    points = [point for curve in curves.values() for point in curve]
    last, losses = max(step for step, _ in points), [loss for _, loss in points]
    low, high = min(losses), max(losses)
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - _MARGIN
    parts = [
        f'<path d="M{_MARGIN},{_MARGIN} V{bottom} H{right}" fill="none" stroke="#94a3b8"/>',
        f'<text x="8" y="{_MARGIN + 4}">{high:.3g}</text>',
        f'<text x="8" y="{bottom + 4}">{low:.3g}</text>',
        f'<text x="{right}" y="{_HEIGHT - 28}" text-anchor="end">step {last}</text>',
        f'<text x="{_MARGIN}" y="24">loss</text>',
    ]
    for row, (name, curve) in enumerate(curves.items()):
        parts += _curve(name, row, [_place(*point, last, low, high) for point in curve])
    style = 'font-family="sans-serif" font-size="13" fill="#334155"'
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _place(step: int, loss: float, last: int, low: float, high: float) -> tuple[str, str]:
    across = _MARGIN + (_WIDTH - 2 * _MARGIN) * step / last
    down = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (loss - low) / ((high - low) or 1)
    return f"{across:.1f}", f"{down:.1f}"


def _curve(name: str, row: int, places: list[tuple[str, str]]) -> list[str]:
    """A line with its legend; held-out losses, of which there are few, with dots."""
    if not places:
        return []
    color, points = _COLORS[name], " ".join(map(",".join, places))
    parts = [f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>']
    if name == "held out":
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
    x, y = _WIDTH - _MARGIN - 90, 24 + 16 * row
    return [*parts, f'<text x="{x}" y="{y}" fill="{color}">{name}</text>']
