"""From results to what components show: pure functions, without gradio."""

import html
import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

import pandas as pd

from peft_space import events
from peft_space.data.check import source_of
from peft_space.data.hub_data import is_address
from peft_space.data.read import short_name
from peft_space.recipe import Recipe, Task
from peft_space.run import Run, Status, evaluations_of, steps_of
from peft_space.scores import TITLES, Evaluation, Scores, main_score, shown

TASKS_IN_WORDS: dict[Task, str] = {
    "causal-lm": "to answer, or to go on with a text",
    "seq2seq-lm": "to write one text from another",
    "sequence-classification": "which label a text has",
    "token-classification": "which tag each word has",
    "dpo": "which of two answers is better (DPO)",
    "kto": "which answers are good (KTO)",
}
STATUS_WORDS: dict[Status, str] = {
    "new": "ready to train",
    "queued": "waiting for its turn",
    "running": "training",
    "paused": "paused",
    "stopped": "stopped early",
    "interrupted": "interrupted",
    "finished": "finished",
    "failed": "failed",
}
UNFINISHED: tuple[Status, ...] = ("new", "queued", "running", "paused", "interrupted", "failed")
"""Of these runs the recipe is still what the visitor is busy with."""
_MARKDOWN = set("\\`*_{}[]()#+-.!|~$")
_MOST_TOKENS_SHOWN = 2_000
_LONGEST_CELL = 60


def escape(text: str) -> str:
    """Text of a user or a model, so that Markdown shows it as it is."""
    return "".join(f"\\{character}" if character in _MARKDOWN else character for character in html.escape(text, quote=False))


# Data


def check_markdown(found: dict[str, Any]) -> str:
    """What was understood of the data, in a few sentences."""
    lines = [f"**{escape(found['source'])}**: {found['rows']:,} rows. {escape(found['why'])} {escape(' '.join(found['notes']))}"]
    if " + " in found["source"]:
        lines.append("All files in the list are read as one. Take away with × what does not belong to them.")
    repeated = f"; {found['num_repeated']:,} that say the same as another are left out" if found["num_repeated"] else ""
    lines.append(f"{found['to_train']:,} rows to train on, {found['held_out']:,} held out to score base and adapter{repeated}.")
    if found["task"]:
        lines.append(f"The model will learn {TASKS_IN_WORDS[found['task']]}.")
    if "lengths" in found:
        counted = found["lengths"]
        cut = (
            f"{counted['num_cut']:,} of the rows are cut off at the limit of {found['max_length']}"
            if counted["num_cut"]
            else "no row is cut off"
        )
        lines.append(f"A row has {counted['median']:,} tokens (median), {counted['longest']:,} at most; {cut}.")
    count = found["num_problems"]
    left_out = "1 row cannot be used and is left out; it is" if count == 1 else f"{count:,} rows cannot be used and are left out; they are"
    lines.append(f"⚠ {left_out} listed below." if count else "✓ Every row can be used.")
    return "\n\n".join(lines)


def findings_markdown(found: dict[str, Any]) -> str:
    """What is worth telling before training, each with the first of its rows."""
    lines = []
    for finding in found["findings"]:
        rows = ", ".join(map(str, finding["rows"][:5])) + (" …" if finding["count"] > 5 else "")
        where = f" ({'rows' if finding['count'] > 1 else 'row'} {rows})" if rows else ""
        mended = " ✓ Mended." if finding["fix"] in found["reading"]["fixes"] else ""
        lines.append(f"- **{escape(finding['title'])}: {finding['count']:,}**{where}. {escape(finding['words'])}{mended}")
    return "\n".join(["**Worth knowing**", *lines]) if lines else "✓ Nothing else stands out in the rows."


def findings_rows(found: dict[str, Any]) -> dict[str, list[int]]:
    """Choice in the preview -> the numbers of its rows."""
    rows = {f"{one['title']} ({one['count']:,})": one["rows"] for one in found["findings"] if one["rows"] and one["kind"] != "leaks"}
    if found["problems"]:
        rows[f"Rows that cannot be used ({found['num_problems']:,})"] = [problem["row"] for problem in found["problems"]]
    return rows


def reading_in_words(reading: dict[str, Any]) -> str:
    """One way to read a file, to choose from, with what the first row would then say."""
    chosen = ", ".join(f"“{column}” is the {role}" for role, column in reading["columns"].items())
    first = "; ".join(f"{role}: {_shortened(str(cell))}" for role, cell in reading["first_row"].items())
    return f"{reading['shape']}: {chosen}. First row: {first}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_CELL else line[: _LONGEST_CELL - 1] + "…"


def names_of(data: Any) -> str:
    """The names of the files or the dataset that were brought."""
    return " + ".join(short_name(path) for path in ([data] if isinstance(data, str) else data))


def labels_table(found: dict[str, Any]) -> pd.DataFrame:
    """The commonest labels and their rows."""
    return pd.DataFrame(list(found["labels"].items())[:40], columns=["label", "rows"])


def problems_table(found: dict[str, Any]) -> pd.DataFrame:
    """One line a row that cannot be used."""
    return pd.DataFrame([[problem["row"], problem["problem"]] for problem in found["problems"]], columns=["row", "problem"])


def lengths_table(found: dict[str, Any]) -> pd.DataFrame:
    """The histogram of token counts: tokens, rows, and whether a bar is within the limit."""
    bars = [[bar["tokens"], bar["rows"], "cut off" if bar["cut"] else "within the limit"] for bar in found["histogram"]]
    return pd.DataFrame(bars, columns=["tokens", "rows", "fate"])


_LEGEND = (
    '<p class="legend"><span class="trained">trained</span> <span class="trained end">end of the answer, trained</span> '
    '<span class="masked">read, not trained</span> <span class="cut">✂ cut off</span></p>'
)


def example_html(example: dict[str, Any]) -> str:
    """A row as it will be trained, token by token, with its label, tags, target or rejected answer; else what is wrong with it."""
    name = f"Row {example['row']}"
    if "problem" in example:
        raw = f'<pre class="raw">{html.escape(example["raw"])}</pre>' if "raw" in example else ""
        return f"<p><strong>{name} is left out:</strong> {html.escape(example['problem'])}.</p>{raw}"
    if "tags" in example:
        return _tags_html(name, example["tags"], example["cut"])
    own = tokens_html(name, example["tokens"], example["cut"])
    if "rejected" in example:
        worse = tokens_html(f"{name}, rejected", example["rejected"], example["rejected_cut"])
        return f"{_LEGEND}<p><strong>Preferred</strong></p>{own}<p><strong>Rejected</strong></p>{worse}"
    if "target" in example:
        target = tokens_html(f"{name}, target", example["target"], example["target_cut"])
        return f"{_LEGEND}<p><strong>Read</strong></p>{own}<p><strong>To be written</strong></p>{target}"
    label = f"<p><strong>Label:</strong> {html.escape(example['label'])}</p>" if "label" in example else ""
    legend = _LEGEND if any(trained for _, trained in example["tokens"]) else "<p>The text is read; what is trained is its label.</p>"
    return f"{legend}{own}{label}"


def _tags_html(name: str, tags: list[list[str]], cut: int) -> str:
    """Tokens, each that is trained with its tag below it; the others, such as the later parts of a word, grey."""
    tokens = [
        f'<span class="{"trained" if tag else "masked"}">{html.escape(text)}{f"<sub>{html.escape(tag)}</sub>" if tag else ""}</span>'
        for text, tag in tags
    ]
    end = f'<span class="cut">✂ {cut:,} tokens are cut off here</span>' if cut else ""
    legend = "<p>Trained is the tag below a token; grey tokens are read alone.</p>"
    return f'{legend}<div class="tokens" role="group" aria-label="{name}, tags" tabindex="0">{" ".join(tokens)}{end}</div>'


def tokens_html(name: str, row: list[list[Any]], cut: int) -> str:
    """A rendered row: trained tokens underlined on green, the end of an answer boxed, the others grey, and where it is cut off."""
    tokens = row[:_MOST_TOKENS_SHOWN]
    pieces = []
    for number, (text, trained) in enumerate(tokens):
        ends = trained and (number + 1 == len(row) or (number + 1 < len(tokens) and not tokens[number + 1][1])) and not cut
        kind = "trained end" if ends else "trained" if trained else "masked"
        shown = html.escape(text).replace("\n", '<span class="break">↵</span>\n') or '<span class="break">‧</span>'  # a character goes on
        pieces.append(f'<span class="{kind}" title="token {number + 1}: {kind}">{shown}</span>')
    if more := len(row) - len(tokens):
        pieces.append(f'<span class="masked"> … and {more:,} more tokens</span>')
    if cut:
        pieces.append(f'<span class="cut">✂ {cut:,} tokens are cut off here</span>')
    return f'<div class="tokens" role="group" aria-label="{name}, token by token" tabindex="0">{"".join(pieces)}</div>'


# Recipe


def layers_markdown(found: dict[str, Any]) -> str:
    """Which layers get an adapter, which do not, and how many parameters that trains."""
    wrapped = [f"`{name}` ({count})" for name, count in found["wrapped"].items()]
    left = {name: count - found["wrapped"].get(name, 0) for name, count in found["layers"].items()}
    others = [f"`{name}` ({count})" for name, count in left.items() if count]
    others += [f"the output layer `{found['head']}`"] if found["head"] else []
    share = found["trainable"] / found["parameters"]
    lines = [f"**{sum(found['wrapped'].values())} layers get an adapter:** {', '.join(wrapped)}."]
    if others:
        lines.append(f"Without one: {', '.join(others)}.")
    if found["saved"]:
        lines.append(f"Trained in full, and kept with the adapter: {', '.join(f'`{name}`' for name in found['saved'])}.")
    if found["fused_experts"]:
        taken = (
            f", and layers named {', '.join(found['taken_for_experts'])}, which PEFT takes for them" if found["taken_for_experts"] else ""
        )
        lines.append(f"{found['fused_experts']} blocks of experts get no adapter, because each is one block of numbers{taken}.")
    lines.append(f"Models of this kind can learn: {', '.join(found['tasks'])}.")
    lines.append(
        f"**{found['trainable']:,} trainable parameters**, {share:.2%} of {found['parameters']:,}. {_share_in_words(share, found['parameters'])}"
    )
    if found["memory"]:
        lines.append(_memory_in_words(found["memory"]))
    return "\n\n".join(lines)


def _memory_in_words(memory: dict[str, Any]) -> str:
    """What training will need, and what would make it fit."""
    need = f"**About {_gigabytes(memory['total'])} of memory** in training, if rows are as long as the limit of {memory['length']:,} tokens"
    largest = sorted(memory["parts"].items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in largest)
    if memory["total"] <= memory["free"]:
        return f"{need} (estimated: {parts}). {_gigabytes(memory['free'])} are free here."
    ways = "; or ".join(f"{one['what']} ({_gigabytes(one['total'])})" for one in memory["to_fit"])
    remedy = f"It would fit with {ways}." if ways else "No single change makes it fit: choose a smaller base model, or a larger machine."
    return f"⚠ {need} (estimated: {parts}), and {_gigabytes(memory['free'])} are free here. {remedy}"


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def advice_html(found: dict[str, Any]) -> str:
    """One line a choice: what is chosen now, what is recommended, why, and where that comes from."""
    lines = []
    for one in found["advice"]:
        recommended = f"<strong>{html.escape(_plain(one['value']))}</strong>" if one["changes"] else "as it is"
        why = f"{html.escape(one['why'])} <small>({html.escape(one['source'])})</small>"
        cells = {
            "Choice": html.escape(Recipe.model_fields[one["field"]].title or ""),
            "Now": html.escape(_plain(one["now"])),
            "Recommended": recommended,
            "Why": why,
        }
        lines.append("<tr>" + "".join(f'<td data-title="{title}">{cell}</td>' for title, cell in cells.items()) + "</tr>")
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Choice", "Now", "Recommended", "Why"))
    return f'<table class="answers advice"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def study_markdown(found: dict[str, Any]) -> str:
    """What a rank study came to: a table, and which rank is enough."""
    lines = [
        f"| {one['rank']} | {one['trainable_parameters']:,} | {one['loss']:.4f} | {one['seconds']:.1f} s |" for one in found["results"]
    ]
    words = f"After {found['steps']} steps, **rank {found['enough']}** is enough: its loss is within 2 %, or 0.01, of the best."
    return "\n".join([words, "", "| rank | trainable parameters | held-out loss | time |", "|---|---|---|---|", *lines])


def study_table(found: dict[str, Any]) -> pd.DataFrame:
    """Held-out loss by rank, for a plot."""
    return pd.DataFrame([[one["rank"], one["loss"]] for one in found["results"]], columns=["rank", "held-out loss"])


def spectrum_table(found: dict[str, Any]) -> pd.DataFrame:
    """Singular values by their number, for a plot."""
    return pd.DataFrame(list(enumerate(found["curve"], 1)), columns=["number", "size"])


def compressed_markdown(found: dict[str, Any]) -> str:
    """What a smaller adapter lost."""
    change = found["loss_after"] / found["loss_before"] - 1
    return (
        f"Rank {found['rank']}: the loss on held-out rows is {found['loss_after']:.4f}, it was {found['loss_before']:.4f} ({change:+.1%})."
    )


def red_lines_markdown(lines: list[dict[str, Any]]) -> str:
    """What a recipe must not do, and what it had better not."""
    return "\n".join(f"- {'⛔' if line['kind'] == 'stop' else '⚠'} {escape(line['words'])}" for line in lines)


def _share_in_words(share: float, parameters: int) -> str:
    if share <= 0.01:
        return "Below 1 %, as usual for LoRA."
    if parameters < 1_000_000_000:
        return "More than the usual 1 %, because the model is small: an adapter's size grows with the width of the layers, the model's with its square."
    return "More than the usual 1 %: a lower rank, or attention alone, would do with less."


def commands(data: Any, held_out: str, reading: dict[str, Any], recipe: Recipe) -> tuple[str, str]:
    """The journey that the page is about to do, as command lines and as Python. Of files the names alone: where they are is another's machine."""
    chosen = recipe.model_dump(exclude_defaults=True)
    files = [_elsewhere(path) for path in ([data or "YOUR_FILE.jsonl"] if isinstance(data, str) else data)]
    held_out = _elsewhere(held_out)
    line = f"python -m peft_space train {shlex.join(files)} --recipe {shlex.quote(json.dumps(chosen))} --out my-run"
    line += f" --held-out {shlex.quote(held_out)}" if held_out else ""
    line += f" --reading {shlex.quote(json.dumps(reading, ensure_ascii=False))}" if reading else ""
    more = (f", held_out={held_out!r}" if held_out else "") + (f", reading={reading!r}" if reading else "")
    shell = [
        line,
        *(
            f"python -m peft_space {verb} my-run"
            for verb in ("evaluate", "compare --prompt 'Hello.'", "export --as adapter --out my-adapter", "push --repo OWNER/NAME")
        ),
    ]
    python = f"""\
from peft_space.settings import prepare_libraries

prepare_libraries()  # before torch is imported

from peft_space import verbs

run = verbs.make("my-run", {(files[0] if len(files) == 1 else files)!r}, {chosen!r}{more})["run"]
verbs.train(run)
print(verbs.evaluate(run))
print(verbs.compare(run, ["Hello."]))
verbs.export(run, "my-adapter")
# verbs.push(run, "OWNER/NAME")"""
    return "\n".join(shell), python


def _elsewhere(data: str) -> str:
    """How data are named on another machine: a file by its name alone, a dataset on the Hub as here."""
    return data if is_address(data) else Path(data).name


# Train


def about_to_train(source: str, num_rows: int, recipe: Recipe) -> str:
    """What *Start training* is about to train: the data, the base, and every choice that is not the default."""
    chosen = recipe.model_dump(exclude_defaults=True)
    chosen.pop("base_model", None)
    own = [f"{Recipe.model_fields[name].title} **{escape(_plain(value))}**" for name, value in chosen.items()]
    rows = f", {num_rows:,} rows" if num_rows else ""
    return f"*Start training* trains {escape(recipe.base_model)} on **{escape(source)}**{rows}. " + (
        f"Your choices: {', '.join(own)}; all else by default." if own else "All choices are the defaults."
    )


def status_markdown(run: Run, happened: list[events.Event]) -> str:
    """How far a run is and what to do next, as it is now."""
    status = run.status(happened)
    steps = steps_of(happened)
    lines = [f"### {escape(run.name)}: {STATUS_WORDS[status]}", _now(run, happened, status)]
    if steps:
        lines.append(_figures(happened, steps, status))
    return "\n\n".join(lines)


def progress_html(happened: list[events.Event]) -> str:
    """A bar: how many steps of how many."""
    total = next((event.total_steps for event in reversed(happened) if isinstance(event, events.Started)), 0)
    steps = steps_of(happened)
    if not total:
        return ""
    done = steps[-1].step if steps else 0
    return f'<progress class="steps" value="{done}" max="{total}" aria-label="Step {done} of {total}"></progress>'


def adjustments_markdown(happened: list[events.Event]) -> str:
    """What was chosen for this machine, and why."""
    lines = [f"- {escape(event.what)} {escape(event.why)}" for event in happened if isinstance(event, events.Adjusted)]
    return "\n".join(lines) or "Nothing has been chosen yet."


def _now(run: Run, happened: list[events.Event], status: Status) -> str:
    leave = run.asked_to_leave()
    if leave and status in ("queued", "running"):
        return "Saving after this step, then it " + ("pauses." if leave == "pause" else "stops.")
    if status == "failed":
        return f"⚠ {escape(next(event.message for event in reversed(happened) if isinstance(event, events.Failed)))}"
    working = next(
        (event for event in reversed(happened) if isinstance(event, events.Working | events.Step | events.Queued | events.Started)), None
    )
    if status in ("queued", "running") and not isinstance(working, events.Step):
        return f"{escape(working.what)}…" if isinstance(working, events.Working) else "Starting…"
    return {
        "new": "Press *Start training*.",
        "running": "You can close this page; the training goes on, and the run is here when you come back.",
        "paused": "*Resume* goes on exactly from here.",
        "stopped": "The adapter is as it was at this step. Compare it, or *Resume* to go on.",
        "interrupted": "Its process ended. *Resume* goes on from the last checkpoint, and nothing before it is lost.",
        "finished": "Next: *Compare*.",
    }.get(status, "")


def _figures(happened: list[events.Event], steps: list[events.Step], status: Status) -> str:
    total = next(event.total_steps for event in reversed(happened) if isinstance(event, events.Started))
    last, recent = steps[-1], steps[-20:]
    seconds = sum(step.seconds for step in recent)
    tokens = last.tokens - (steps[-len(recent) - 1].tokens if len(steps) > len(recent) else 0)
    words = [
        f"Step {last.step} of {total}",
        f"loss {last.loss:.3f}",
        f"{tokens / seconds:,.0f} tokens a second",
        f"{last.memory / 2**30:.1f} GiB at most" if last.memory else "",
        f"{_duration(sum(step.seconds for step in steps))} so far",
        f"about {_duration((total - last.step) * seconds / len(recent))} left" if last.step < total and status == "running" else "",
    ]
    return " · ".join(word for word in words if word)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def losses(happened: list[events.Event]) -> pd.DataFrame:
    """Both loss curves, long form: step, loss, rows (training or held out)."""
    points = [(step.step, step.loss, "training") for step in steps_of(happened)]
    points += [(evaluation.step, evaluation.loss, "held out") for evaluation in evaluations_of(happened)]
    if points and points[-1][2] == "training":  # a curve that is not there from the start is not drawn when it comes
        points.append((points[0][0], math.nan, "held out"))
    return pd.DataFrame(points, columns=["step", "loss", "rows"])


def step_details(happened: list[events.Event]) -> pd.DataFrame:
    """Learning rate, gradient norm and speed of each step."""
    steps = steps_of(happened)
    before = [0, *(step.tokens for step in steps)]
    rows = [
        (step.step, step.learning_rate, step.grad_norm, (step.tokens - seen) / step.seconds if step.seconds else 0.0)
        for step, seen in zip(steps, before, strict=False)
    ]
    return pd.DataFrame(rows, columns=["step", "learning rate", "gradient norm", "tokens a second"])


# Compare


def answers_html(rows: list[dict[str, str]]) -> str:
    """Prompts with both columns' answers side by side; each row has prompt, base, adapter, and may have rendered and expected."""
    if not rows:
        return ""
    with_own = any(row.get("expected") for row in rows)
    head = "".join(
        f'<th scope="col">{title}</th>' for title in ("Prompt", "Base", "Adapter", *(["The row's own answer"] if with_own else []))
    )
    lines = []
    for row in rows:
        rendered = (
            f"<details><summary>as the model sees it</summary><pre>{html.escape(row['rendered'])}</pre></details>"
            if row.get("rendered")
            else ""
        )
        cells = [("Prompt", f"<pre>{html.escape(row['prompt'])}</pre>{rendered}")]
        cells += [(title, f"<pre>{html.escape(row[key])}</pre>") for title, key in (("Base", "base"), ("Adapter", "adapter"))]
        if with_own:
            cells.append(("The row's own answer", f"<pre>{html.escape(row.get('expected') or '')}</pre>"))
        lines.append("<tr>" + "".join(f'<td data-title="{html.escape(title)}">{cell}</td>' for title, cell in cells) + "</tr>")
    return f'<table class="answers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def scores_table(scores: dict[str, Any]) -> pd.DataFrame:
    """Both columns' scores, one line each."""
    figures = {name: shown(Scores(**scores[name])) for name in ("base", "adapter")}
    return pd.DataFrame([[name, *line.values()] for name, line in figures.items()], columns=["column", *figures["adapter"]])


def score_bars(scores: dict[str, Any]) -> tuple[str, pd.DataFrame]:
    """The title and the bars of the score that says most about the task; shares in percent."""
    main = main_score(Scores(**scores["adapter"]))
    factor, unit = (1, "") if main == "margin" else (100, ", %")
    bars = [[name, factor * scores[name][main]] for name in ("base", "adapter")]
    return f"{TITLES[main]}{unit}".capitalize(), pd.DataFrame(bars, columns=["column", "score"])


# Runs


def run_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """(label, id) of each run, for a list to choose from."""
    return [(f"{run.name} · {_date(run)}", run.directory.name) for run in runs]


def runs_table(runs: list[Run], scores: dict[str, Evaluation | None]) -> pd.DataFrame:
    """One line a run: name, base, data, state, exact match of the adapter, date, size."""
    columns = ["name", "base", "data", "state", "score", "made", "size"]
    lines = []
    for run in runs:
        score = scores[run.directory.name]
        told = " ".join(reversed(next(iter(shown(score.adapter).items())))) if score else ""
        lines.append(
            [run.name, run.recipe.base_model, source_of(run), STATUS_WORDS[run.status()], told, _date(run), f"{run.size() / 1e6:.1f} MB"]
        )
    return pd.DataFrame(lines, columns=columns)


def recipe_differences(one: Run, other: Run) -> pd.DataFrame:
    """The fields in which two recipes differ, line by line."""
    left, right = one.recipe.model_dump(), other.recipe.model_dump()
    lines = [[Recipe.model_fields[name].title, _plain(left[name]), _plain(right[name])] for name in left if left[name] != right[name]]
    return pd.DataFrame(
        lines or [["no difference", "", ""]], columns=["choice", one.name, other.name if other.name != one.name else f"{other.name} (2)"]
    )


def _plain(value: Any) -> str:
    return "automatic" if value is None else ", ".join(value) if isinstance(value, list) else str(value)


def _date(run: Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.about["created"]))


# Guidance


def guide(fresh: bool, num_rows: int, status: Status | None, has_adapter: bool) -> tuple[list[str], str]:
    """The marks of the five steps (done, next, busy, blocked), and one sentence that says what to do next.

    Args:
        fresh: whether there are data that no training was started with.
        num_rows: rows of them that can be trained on, 0 while they are read, doubtful or refused.
        status: of the chosen run, None where there is none.
    """
    after = "→" if has_adapter else "○"
    if status in ("queued", "running"):
        return ["✓", "✓", "●", "○", "○"], "The training runs. Watch it on **Train**; **Compare** opens when it is finished."
    if fresh and num_rows:
        words = "Data and recipe are ready: press *Start training* on **Train**."
        return ["✓", "✓", "→", after, after], words if has_adapter else f"{words} Compare and Publish need its adapter."
    if fresh:
        return ["→", "✓", "○", after, after], "Your data are not ready yet: **Data** says what they need."
    if has_adapter:
        words = "The adapter is there: see on **Compare** what it learnt, take it with you on **Publish**, or start another on **Data**."
        return ["✓", "✓", "✓", "→", "→"], words
    if status in ("paused", "interrupted", "failed"):
        return ["✓", "✓", "→", "○", "○"], "The run has not finished: press *Resume* on **Train**. Compare and Publish need its adapter."
    return ["→", "✓", "○", "○", "○"], "Bring your data, or try the demo. Training needs data; Compare and Publish need a trained adapter."
