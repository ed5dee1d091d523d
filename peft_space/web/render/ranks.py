"""What the rank study and the spectrum of an adapter show, from results alone: without gradio."""

from typing import Any

import pandas as pd


def study_markdown(found: dict[str, Any]) -> str:
    """What a rank study came to: a table, and which rank is enough."""
    lines = [
        f"| {one['rank']} | {one['trainable_parameters']:,} | {one['loss']:.4f} | {one['seconds']:.1f} s |"
        for one in found["results"]
    ]
    words = f"After {found['steps']} steps, **rank {found['enough']}** is enough: its loss is within 2 %, or 0.01, of the best."
    return "\n".join(
        [
            words,
            "",
            "| rank | trainable parameters | held-out loss | time |",
            "|---|---|---|---|",
            *lines,
        ]
    )


def study_table(found: dict[str, Any]) -> pd.DataFrame:
    """Held-out loss by rank, for a plot."""
    return pd.DataFrame(
        [[one["rank"], one["loss"]] for one in found["results"]], columns=["rank", "held-out loss"]
    )


def spectrum_table(found: dict[str, Any]) -> pd.DataFrame:
    """Singular values by their number, for a plot."""
    return pd.DataFrame(list(enumerate(found["curve"], 1)), columns=["number", "size"])


def compressed_markdown(found: dict[str, Any]) -> str:
    """What a smaller adapter lost."""
    change = found["loss_after"] / found["loss_before"] - 1
    return f"Rank {found['rank']}: the loss on held-out rows is {found['loss_after']:.4f}, it was {found['loss_before']:.4f} ({change:+.1%})."
