"""What the Compare tab shows, from results alone: without gradio."""

import html
from typing import Any

import pandas as pd

from peft_space.scores import TITLES, Scores, main_score, shown


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
