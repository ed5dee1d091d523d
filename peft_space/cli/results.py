"""compare, evaluate, votes, compress, export, push."""

import argparse
from pathlib import Path
from typing import Any

from peft_space import operations
from peft_space.cli.output import Show, tell
from peft_space.errors import UserError
from peft_space.evaluation.blind_vote import as_csv
from peft_space.evaluation.prompts import read_prompts
from peft_space.evaluation.results import (
    differences,
    evaluation_from_json,
    majority_words,
    shown_with_intervals,
)


def compare(given: argparse.Namespace, show: Show) -> None:
    """Let base and adapter answer the same prompt."""
    sampling = {
        "max_new_tokens": given.max_new_tokens,
        "temperature": given.temperature,
        "top_p": given.top_p,
        "seed": given.seed,
    }
    prompts = [*given.prompt, *(prompt for file in given.prompts for prompt in read_prompts(file))]
    if not prompts:
        raise UserError(
            "todo",
            "There is no prompt. Give one with --prompt TEXT, or a file of them with --prompts FILE.",
        )
    found = operations.compare(given.run, prompts, given.system, sampling, also=given.also)
    texts = []
    for answer in found["answers"]:
        columns = {
            "Prompt": answer["prompt"],
            "Base": answer["base"],
            "Adapter": answer["adapter"],
            **answer["others"],
        }
        texts.append("\n\n".join(f"{title}:\n{text}" for title, text in columns.items()))
    show(
        found,
        "\n\n---\n\n".join(
            [
                *texts,
                f"{found['fairness']['words']}\nNext: python -m peft_space evaluate {given.run}",
            ]
        ),
    )


def evaluate(given: argparse.Namespace, show: Show) -> None:
    """Score base and adapter on the held-out rows."""
    found = operations.evaluate(given.run, tell)
    scores = evaluation_from_json(found)
    base, adapter, change = (
        shown_with_intervals(scores, "base"),
        shown_with_intervals(scores, "adapter"),
        differences(scores),
    )
    lines = [
        f"{title}: base {base[title]}, adapter {adapter[title]}, difference {change[title]}"
        for title in adapter
    ]
    lines += [
        words
        for words in (
            majority_words(scores),
            scores.general and scores.general.in_words(),
            scores.fairness,
        )
        if words
    ]
    following = f"Next: python -m peft_space compare {given.run} --prompt TEXT"
    show(
        found,
        "\n".join(
            [f"On {found['num_rows']} held-out rows, with 95 % intervals:", *lines, following]
        ),
    )


def votes(given: argparse.Namespace, show: Show) -> None:
    """Say how the blind vote of the page, or of the API, stands."""
    found = operations.vote_results(given.run)
    if given.csv:
        Path(given.csv).write_text(as_csv(found["votes"]), encoding="utf-8", newline="")
    show(found, found["words"])


def compress(given: argparse.Namespace, show: Show) -> None:
    """Write a smaller adapter, of the rank that is used or another, and say what it loses."""
    found = operations.reduce_rank(given.run, given.out, given.rank)
    change = f"held-out loss {found['loss_before']:.4f} before, {found['loss_after']:.4f} after"
    show(found, f"An adapter of rank {found['rank']} is in {found['path']}: {change}.")


def export(given: argparse.Namespace, show: Show) -> None:
    """Write the adapter, or the model it is merged into, to a folder of its own, and prove it."""
    found = operations.export(
        given.run,
        given.out,
        given.target,
        given.dtype,
        given.merge_into,
        given.insist,
        gguf=_gguf(given),
    )
    what = (
        "adapter"
        if given.target == "adapter"
        else "merged model"
        if given.target == "merged"
        else "GGUF"
    )
    serve = [f"Serve it in {engine}: {command}" for engine, command in found["commands"].items()]
    following = [
        f"Next: python -m peft_space push {given.run} --repo OWNER/NAME --target {given.target}"
    ]
    show(
        found, "\n".join([f"The {what} is in {found['path']}.", found["words"], *serve, *following])
    )


def push(given: argparse.Namespace, show: Show) -> None:
    """Push the adapter to the Hugging Face Hub, private unless --public. The token is HF_TOKEN, or this machine's."""
    wanted = {
        "target": given.target,
        "dtype": given.dtype,
        "merge_into": given.merge_into,
        "insist": given.insist,
        "gguf": _gguf(given),
    }
    found = operations.push(
        given.run,
        given.repo,
        None,
        given.public,
        _text_of(given.card) if given.card else None,
        wanted,
    )
    show(found, f"Pushed to {found['url']}.")


def _gguf(given: argparse.Namespace) -> dict[str, Any]:
    return {"numbers": given.numbers, "apart": given.apart, "system": given.system}


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "todo", f"The card {path} cannot be read ({error}). Give the path of a text file."
        ) from None
