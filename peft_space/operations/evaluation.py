"""What base and adapter answer, side by side and unseen, and how they score."""

import functools
from dataclasses import asdict

from peft_space.errors import UserError
from peft_space.operations.model_cache import load_cached
from peft_space.operations.progress import Json, Report, progress
from peft_space.runs.run import Run

_ANSWERED_AT_ONCE = 8


def compare(
    run: str,
    prompts: list[str],
    system: str = "",
    sampling: Json | None = None,
    history: list[Json] | None = None,
    also: list[str] | None = None,
    report: Report | None = None,
) -> Json:
    """Both columns' answers to each prompt, and whether the comparison was fair; while they grow, `report` gets {column, prompt, text}.

    Args:
        history: the turns before, as earlier `answers` give them: {prompt, base, adapter} each. Each column goes on with its own.
        also: checkpoints of the run (`checkpoint-40`), or directories of other runs on the same base, that answer too: `others` of each answer.
    """
    from peft_space.evaluation import base_check, extra_adapters
    from peft_space.evaluation import compare as comparing
    from peft_space.evaluation.evaluate import commonest_label

    conversations = {
        column: [_turns(system, history or [], column, prompt) for prompt in prompts]
        for column in base_check.SIDES
    }

    def on_text(column: str, prompt: int, text: str) -> None:
        if report:
            report({"column": column, "prompt": prompt, "text": text})

    progress(report)(0.0, "Loading the base and the adapter")
    wanted = comparing.Sampling(**(sampling or {}))
    adapted = load_cached(run)
    if history and adapted.goal.task in ("seq2seq-lm", *comparing.CLASSIFYING):
        raise UserError(
            "todo",
            "This model answers one text at a time, without a conversation. Ask without a history.",
        )
    if history and also:
        raise UserError(
            "todo",
            "Others can answer beside the adapter only where a conversation begins. Ask without a history.",
        )
    seen: base_check.SeenTokens = {"base": [], "adapter": []}
    answers = comparing.compare(
        adapted,
        conversations["base"],
        wanted,
        on_text if report else None,
        seen,
        conversations["adapter"],
    )
    progress(report)(0.5, "The others answer") if also else None
    others = (
        extra_adapters.extra_answers(adapted, Run(run), also, conversations["adapter"], wanted)
        if also
        else [{} for _ in prompts]
    )
    checked = base_check.check(
        adapted, seen, comparing.can_batch_both_sides(adapted, wanted), own_histories=bool(history)
    )
    return {
        "task": adapted.goal.task,
        "commonest": commonest_label(Run(run)) if adapted.goal.labels else None,
        "sampling": asdict(wanted),
        "answers": [
            asdict(given) | {"others": more} for given, more in zip(answers, others, strict=True)
        ],
        "fairness": asdict(checked) | {"fair": checked.fair, "words": checked.in_words()},
    }


def _turns(system: str, history: list[Json], column: str, prompt: str) -> list[Json]:
    turns = [
        [
            {"role": "user", "content": turn["prompt"]},
            {"role": "assistant", "content": turn[column]},
        ]
        for turn in history
    ]
    opened = [{"role": "system", "content": system}] if system.strip() else []
    return [
        *opened,
        *(message for turn in turns for message in turn),
        {"role": "user", "content": prompt},
    ]


def evaluate(run: str, report: Report | None = None) -> Json:
    """Scores of `base` and `adapter` on the held-out rows, with `intervals`, and how much general answers changed (`general`).

    A scoring that was interrupted goes on where it was.
    """
    from peft_space.evaluation.evaluate import evaluate as evaluate_run

    progress(report)(0.0, "Loading the base and the adapter")
    return asdict(evaluate_run(Run(run), load_cached(run), progress(report)))


def vote_pairs(
    run: str,
    prompts: list[str] | None = None,
    count: int = 10,
    system: str = "",
    sampling: Json | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Json:
    """A new blind vote: `pairs` of answers without their columns, in random order and on random sides. Votes before are forgotten.

    Answers that were interrupted go on where they were.

    Args:
        prompts: what to ask; without them, `count` of the held-out rows.
    """
    from peft_space.evaluation import blind_vote
    from peft_space.evaluation.prompts import held_out_prompts
    from peft_space.evaluation.resumable import ANSWERING, ResumableBatches, key_of

    opened, on_progress = Run(run), progress(report)

    def both(prompts: list[str], system: str, start: int) -> list[Json]:
        def still(_: Json) -> None:  # not what they say: it would be seen whose it is
            on_progress(start / len(asked), "Both answer, unseen")

        given = compare(run, prompts, system, sampling, report=still)
        if given["task"].endswith("classification"):
            raise UserError(
                "todo",
                "A label is right or wrong, so there is nothing to vote on. Score both columns instead.",
            )
        if not given["fairness"]["fair"]:
            raise UserError("todo", given["fairness"]["words"])
        return given["answers"]

    asked = (
        [{"prompt": prompt, "system": system} for prompt in prompts]
        if prompts
        else held_out_prompts(opened, count)
    )
    answers: list[Json] = []
    answering = ResumableBatches(opened, key_of(opened, asked, sampling), lambda _: None, ANSWERING)
    for start in range(0, len(asked), _ANSWERED_AT_ONCE):
        on_progress(start / len(asked), "Both answer, unseen")
        some = asked[start : start + _ANSWERED_AT_ONCE]
        for said in dict.fromkeys(
            one["system"] for one in some
        ):  # the rows of one system message together
            together = [one["prompt"] for one in some if one["system"] == said]
            answers += answering.batch(said, start, functools.partial(both, together, said, start))
    answering.done()
    return {"pairs": blind_vote.create_pairs(opened, answers, seed)}


def vote(run: str, pair: str, choice: str) -> Json:
    """Keep a vote on a pair: `left`, `right`, or `same`. Returns how many pairs are left, `left_to_vote`."""
    from peft_space.evaluation import blind_vote

    blind_vote.vote(Run(run), pair, choice)  # type: ignore[arg-type]
    return {"left_to_vote": len(blind_vote.open_pairs(Run(run)))}


def vote_results(run: str) -> Json:
    """How the blind vote stands: `win_rate` of the adapter, its `interval`, the same in `words`, and the `votes` one by one."""
    from peft_space.evaluation import blind_vote as voting

    return voting.result(Run(run))
