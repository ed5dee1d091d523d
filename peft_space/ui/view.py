"""From results to what components show: pure functions, without gradio."""

import html
import time
from typing import Any

import pandas as pd

from peft_space import events
from peft_space.run import Run, Status, evaluations_of, steps_of

STATUS_WORDS: dict[Status, str] = {
    "new": "ready to train",
    "queued": "waiting for its turn",
    "running": "training",
    "paused": "paused",
    "stopped": "stopped",
    "interrupted": "interrupted; Resume goes on from the last checkpoint",
    "finished": "finished",
    "failed": "failed",
}


_MARKDOWN = set("\\`*_{}[]()#+-.!|~$")


def escape(text: str) -> str:
    """Text of a user or a model, so that Markdown shows it as it is."""
    return "".join(f"\\{character}" if character in _MARKDOWN else character for character in html.escape(text, quote=False))


def check_markdown(found: dict[str, Any]) -> str:
    """What was understood of the data, in a few sentences."""
    lines = [f"**{escape(found['source'])}**: {found['rows']:,} rows. {escape(found['why'])}"]
    lines.append(f"{found['to_train']:,} rows to train on, {found['held_out']:,} held out to score base and adapter.")
    if "lengths" in found:
        counted = found["lengths"]
        lines.append(
            f"A row has {counted['median']} tokens (median), {counted['longest']} at most; {counted['num_cut']} rows are cut off at the limit."
        )
    count = len(found["problems"])
    lines.append(f"⚠ {count} rows cannot be used and are left out; they are listed below." if count else "✓ Every row can be used.")
    return "\n\n".join(lines)


def problems_table(found: dict[str, Any]) -> pd.DataFrame:
    """One line a row that cannot be used."""
    return pd.DataFrame([[problem["row"], problem["problem"]] for problem in found["problems"]], columns=["row", "problem"])


def tokens_of(example: dict[str, Any]) -> list[tuple[str, str | None]]:
    """A rendered row for HighlightedText: neighbours of one fate together, what is trained carries the label."""
    spans: list[tuple[str, str | None]] = [(text, "trained" if trained else None) for text, trained in example["tokens"]]
    if example["cut"]:
        spans.append((f" … {example['cut']} tokens cut off", "cut off"))
    return spans


def layers_markdown(found: dict[str, Any]) -> str:
    """Which layers get an adapter, and which do not."""
    wrapped = [f"`{name}` ({found['layers'][name]})" for name in found["wrapped"]]
    others = [f"`{name}` ({count})" for name, count in found["layers"].items() if name not in found["wrapped"]]
    lines = [f"**{sum(found['layers'][name] for name in found['wrapped'])} layers get an adapter:** {', '.join(wrapped)}."]
    lines.append(f"Without one: {', '.join([*others, 'the output layer `' + found['head'] + '`'])}.")
    return "\n\n".join(lines)


def status_markdown(run: Run, happened: list[events.Event]) -> str:
    """How far a run is, and what was chosen for it, as it is now."""
    status = run.status(happened)
    steps = steps_of(happened)
    lines = [f"### {escape(run.name)}: {STATUS_WORDS[status]}"]
    failed = [event.message for event in happened if isinstance(event, events.Failed)]
    if status == "failed":
        lines.append(f"⚠ {escape(failed[-1])}")
    if steps:
        lines.append(_progress(happened, steps))
    elif status in ("queued", "running"):
        lines.append("Loading the base model…")
    lines += [f"- {escape(event.what)} {escape(event.why)}" for event in happened if isinstance(event, events.Adjusted)]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def _progress(happened: list[events.Event], steps: list[events.Step]) -> str:
    total = next(event.total_steps for event in reversed(happened) if isinstance(event, events.Started))
    last = steps[-1]
    recent = [step.seconds for step in steps[-20:]]
    left = (total - last.step) * sum(recent) / len(recent)
    words = f"Step {last.step} of {total} · loss {last.loss:.3f} · {last.tokens:,} tokens · {sum(step.seconds for step in steps):.0f} s"
    return words + (f" · about {left:.0f} s left" if last.step < total else "")


def losses(happened: list[events.Event]) -> pd.DataFrame:
    """Both loss curves, long form: step, loss, rows (training or held out)."""
    points = [(step.step, step.loss, "training") for step in steps_of(happened)]
    points += [(evaluation.step, evaluation.loss, "held out") for evaluation in evaluations_of(happened)]
    return pd.DataFrame(points, columns=["step", "loss", "rows"])


def scores_table(scores: dict[str, Any]) -> pd.DataFrame:
    """Both columns' scores, one line each."""
    lines = [
        [name, f"{scores[name]['exact_match']:.1%}", f"{scores[name]['loss']:.4f}", f"{scores[name]['perplexity']:.3f}"]
        for name in ("base", "adapter")
    ]
    return pd.DataFrame(lines, columns=["", "exact match", "loss", "perplexity"])


def run_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """(label, id) of each run, for a list to choose from."""
    return [
        (f"{run.name} · {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(run.about['created']))}", run.directory.name) for run in runs
    ]
