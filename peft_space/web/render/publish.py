"""Text and HTML of the Publish tab, made from results alone: without gradio."""

import html
from pathlib import Path
from typing import Any

from peft_space.evaluation.results import Evaluation, read_scores
from peft_space.export.readiness import Check, read_checklist
from peft_space.formatting import code_block, escape
from peft_space.runs.run import Run
from peft_space.web.render import verdict

_UNPACKED = "path/of/the/unpacked/"
"""How the operation `export` names the place of a .zip that was downloaded and unpacked."""
_PEFT = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})"""


def quality_checks(scores: Evaluation | None) -> list[Check]:
    """Return what an evaluation says about the adapter; nothing is done that was not measured."""
    if scores is None:
        words = "Not measured. Run the evaluation on Compare."
        titles = ("Better than the base model", "Enough test rows", "Other answers stay the same")
        return [Check(title, False, words) for title in titles]
    kind, words = verdict.headline(scores)
    effect, _, sentence = verdict.side_effects(scores)
    few = scores.num_rows < verdict.FEW_ROWS
    advice = f" Fewer than {verdict.FEW_ROWS} rows say little: add test rows." if few else ""
    kept = None if scores.general is None else effect == "good"
    return [
        Check("Better than the base model", kind == "good", words),
        Check("Enough test rows", not few, f"{scores.num_rows} test rows.{advice}"),
        Check("Other answers stay the same", kept, f"{sentence[0].upper()}{sentence[1:]}."),
    ]


def readiness_html(run: Run) -> str:
    """Return the checklist: quality first, then technique."""
    quality = _list(quality_checks(read_scores(run)))
    technique = _list(read_checklist(run))
    return (
        f'<div class="ready"><h4>Quality</h4>{quality}'
        f"<details><summary>Technique</summary>{technique}</details></div>"
    )


def _list(checks: list[Check]) -> str:
    signs = {True: ("ok", "✓", "done"), False: ("open", "○", "open"), None: ("", "–", "unknown")}
    lines = []
    for check in checks:
        css, sign, word = signs[check.done]
        lines.append(
            f'<li class="{css}"><span role="img" aria-label="{word}">{sign}</span>'
            f"<div><b>{html.escape(check.title)}.</b> {html.escape(check.words)}</div></li>"
        )
    return f'<ul class="checks">{"".join(lines)}</ul>'


def exported_markdown(result: dict[str, Any], target: str) -> str:
    """Return the verification of an export, and the commands that serve it.

    Args:
        result: of the operation `export`.
        target: where it will run; the commands of other engines are left out.
    """
    name = Path(result["path"]).name
    passed = result["proof"]["passed"]
    badge = "✓ Verified" if passed else "⚠ Not verified"
    folder = Path(_folder(result))
    commands = dict(result["commands"])
    if target == "PEFT":
        commands = {"Python": _PEFT.format(folder=str(folder))}
    elif target in commands:
        commands = {target: commands[target]}
    shown = [f"**{badge}.** {escape(result['words'])}"]
    for engine, command in commands.items():
        exact = command.replace(_UNPACKED, "")
        language = "python" if engine == "Python" else "shell"
        unpack = "" if engine == "Python" else f"unzip {name}\n"
        shown.append(f"{engine}:\n{code_block(unpack + exact, language)}")
    return "\n\n".join(shown)


def _folder(result: dict[str, Any]) -> str:
    """Return the folder that the downloaded .zip contains."""
    return "adapter" if "adapter" in Path(result["path"]).stem.rsplit("-", 1)[-1] else "merged"
