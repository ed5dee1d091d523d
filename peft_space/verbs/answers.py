"""What base and adapter answer, side by side and unseen, and how they score."""

import functools
from dataclasses import asdict

from peft_space import spinning
from peft_space.errors import UserError
from peft_space.run import Run
from peft_space.verbs.kept import loaded
from peft_space.verbs.telling import Json, Report, progress

_ANSWERED_AT_ONCE = 8


@spinning.while_alone()
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
    from peft_space import beside, fairness
    from peft_space import compare as comparing
    from peft_space.evaluate import commonest_label

    conversations = {column: [_turns(system, history or [], column, prompt) for prompt in prompts] for column in fairness.COLUMNS}

    def on_text(column: str, prompt: int, text: str) -> None:
        if report:
            report({"column": column, "prompt": prompt, "text": text})

    progress(report)(0.0, "Loading the base and the adapter")
    wanted = comparing.Sampling(**(sampling or {}))
    adapted = loaded(run)
    if history and adapted.goal.task in ("seq2seq-lm", *comparing.CLASSIFYING):
        raise UserError("This model answers one text at a time, without a conversation. Ask without a history.")
    if history and also:
        raise UserError("Others can answer beside the adapter only where a conversation begins. Ask without a history.")
    seen: fairness.Seen = {"base": [], "adapter": []}
    answers = comparing.compare(adapted, conversations["base"], wanted, on_text if report else None, seen, conversations["adapter"])
    progress(report)(0.5, "The others answer") if also else None
    others = beside.answers(adapted, Run(run), also, conversations["adapter"], wanted) if also else [{} for _ in prompts]
    checked = fairness.check(adapted, seen, comparing.answers_together(adapted, wanted), own_histories=bool(history))
    return {
        "task": adapted.goal.task,
        "commonest": commonest_label(Run(run)) if adapted.goal.labels else None,
        "sampling": asdict(wanted),
        "answers": [asdict(given) | {"others": more} for given, more in zip(answers, others, strict=True)],
        "fairness": asdict(checked) | {"fair": checked.fair, "words": checked.in_words()},
    }


def _turns(system: str, history: list[Json], column: str, prompt: str) -> list[Json]:
    turns = [[{"role": "user", "content": turn["prompt"]}, {"role": "assistant", "content": turn[column]}] for turn in history]
    opened = [{"role": "system", "content": system}] if system.strip() else []
    return [*opened, *(message for turn in turns for message in turn), {"role": "user", "content": prompt}]


@spinning.while_alone()
def evaluate(run: str, report: Report | None = None) -> Json:
    """Scores of `base` and `adapter` on the held-out rows, with `intervals`, and how much general answers changed (`general`).

    A scoring that was interrupted goes on where it was.
    """
    from peft_space.evaluate import evaluate as evaluate_run

    progress(report)(0.0, "Loading the base and the adapter")
    return asdict(evaluate_run(Run(run), loaded(run), progress(report)))


def pairs(
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
    from peft_space import votes
    from peft_space.prompts import held_out_prompts
    from peft_space.scoring import ANSWERING, Scoring, key_of

    opened, on_progress = Run(run), progress(report)

    def both(prompts: list[str], system: str, start: int) -> list[Json]:
        def still(_: Json) -> None:  # not what they say: it would be seen whose it is
            on_progress(start / len(asked), "Both answer, unseen")

        given = compare(run, prompts, system, sampling, report=still)
        if given["task"].endswith("classification"):
            raise UserError("A label is right or wrong, so there is nothing to vote on. Score both columns instead.")
        if not given["fairness"]["fair"]:
            raise UserError(given["fairness"]["words"])
        return given["answers"]

    asked = [{"prompt": prompt, "system": system} for prompt in prompts] if prompts else held_out_prompts(opened, count)
    answers: list[Json] = []
    answering = Scoring(opened, key_of(opened, asked, sampling), lambda _: None, ANSWERING)
    for start in range(0, len(asked), _ANSWERED_AT_ONCE):
        on_progress(start / len(asked), "Both answer, unseen")
        some = asked[start : start + _ANSWERED_AT_ONCE]
        for said in dict.fromkeys(one["system"] for one in some):  # the rows of one system message together
            together = [one["prompt"] for one in some if one["system"] == said]
            answers += answering.batch(said, start, functools.partial(both, together, said, start))
    answering.done()
    return {"pairs": votes.put_up(opened, answers, seed)}


def vote(run: str, pair: str, choice: str) -> Json:
    """Keep a vote on a pair: `left`, `right`, or `same`. Returns how many pairs are left, `left_to_vote`."""
    from peft_space import votes

    votes.vote(Run(run), pair, choice)  # type: ignore[arg-type]
    return {"left_to_vote": len(votes.open_pairs(Run(run)))}


def votes(run: str) -> Json:
    """How the blind vote stands: `win_rate` of the adapter, its `interval`, the same in `words`, and the `votes` one by one."""
    from peft_space import votes as voting

    return voting.result(Run(run))
