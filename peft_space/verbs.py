"""Everything the product does, as functions whose arguments and results are plain JSON values.

The command line calls them in its own process, the page through a worker process (`execution/`), so both say and do the same.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft_space import settings
from peft_space.data.read import Data
from peft_space.data.report import as_json
from peft_space.errors import UserError
from peft_space.events import OnProgress
from peft_space.recipe import Recipe, Task, make_recipe
from peft_space.run import Run

Json = dict[str, Any]
Report = Callable[[Json], None]
"""Called with what there is to tell while a verb is working."""


def check(
    data: Data,
    model: str | None = None,
    recipe: Json | None = None,
    held_out: Data | None = None,
    reading: Json | None = None,
    rows_shown: int = 50,
    report: Report | None = None,
) -> Json:
    """What is in a data file: `rows`, `shape`, `columns`, `problems`, `findings`; with a model or recipe also how its rows are rendered for training.

    Where the columns can be read in several ways and `reading` does not say which, the result has these ways as `question` and nothing rendered.
    While the rest is still being read, `report` gets a `preview` of the first rows.
    """
    from peft_space.data.check import histogram, lengths, readings_of, training_data

    values = dict(recipe or {}) | ({"base_model": model} if model else {})
    wanted = make_recipe(values)
    if not (reading or {}).get("shape"):
        if values and report and not _is_small(data):
            _report_first_rows(data, wanted, rows_shown, report)
        table, plausible = readings_of(data, _progress(report))
        if len(plausible) > 1:
            told = {"source": table.source, "rows": table.num_rows, "columns": table.columns, "notes": table.notes}
            _, row = next(table.rows(0, 1))
            ways = [one.as_json() | {"first_row": {role: row.get(column) for role, column in one.columns.items()}} for one in plausible]
            return told | {"question": ways, "problems": [], "to_train": 0, "held_out": 0}
    from peft_space.training.prepare import prepare  # takes seconds, while the first rows are there already

    rendered = prepare(data, wanted, held_out, reading, _progress(report)) if values else None
    found = rendered.data if rendered else training_data(data, wanted.held_out_share, wanted.seed, held_out, reading, _progress(report))
    result: Json = {
        "source": found.source,
        "rows": found.num_rows,
        "shape": found.reading.shape,
        "reading": found.reading.as_json(),
        "columns": found.columns,
        "notes": found.notes,
        "why": found.reading.why(),
        "task": rendered.goal.task if rendered else None,
        "to_train": len(found.train),
        "held_out": len(found.held_out),
        "num_problems": found.num_problems,
        "num_repeated": found.num_repeated,
        "problems": [asdict(problem) for problem in found.problems],
        "findings": as_json(found.findings),
        "labels": found.labels,
    }
    if rendered:
        result["lengths"] = asdict(lengths(rendered.train))
        result["max_length"] = wanted.max_length
        result["bin_width"], result["histogram"] = histogram(rendered.train, wanted.max_length)
        result["examples"] = _drawn(wanted, rendered.goal.task, list(found.train[:rows_shown]))
    return result


_PEEKED = 200
_SMALL_BYTES = 100_000


def _is_small(data: Data) -> bool:
    """Whether data are read and rendered about as soon as their first rows are."""
    paths = [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
    return all(path.is_file() for path in paths) and sum(path.stat().st_size for path in paths) < _SMALL_BYTES


def _report_first_rows(data: Data, recipe: Recipe, rows_shown: int, report: Report) -> None:
    """Show the first rows of a large file while the rest is read. What is wrong with them is told later, with all the others."""
    from peft_space.data.check import DEMO
    from peft_space.data.read import peek
    from peft_space.data.rows import BadRow, understand
    from peft_space.data.shapes import recognise

    if data == DEMO:
        return
    try:
        columns, rows = peek(data, _PEEKED)
        plausible = recognise("", columns, [row for _, row in rows])
    except UserError:  # the whole reading, which goes on, says it too
        return
    if len(plausible) > 1:
        return
    understood = []
    for number, row in rows[:rows_shown]:
        with contextlib.suppress(BadRow):
            understood.append(understand(number, row, plausible[0]))
    if understood:
        report({"preview": _drawn(recipe, _task(recipe, plausible[0].shape), understood)})


def show(data: Data, recipe: Json, numbers: list[int], held_out: Data | None = None, reading: Json | None = None) -> Json:
    """The rows of these numbers as `examples`: as they are rendered for training, or, where they are left out, as they stand in the file (`raw`)."""
    from peft_space.data.check import readings_of
    from peft_space.data.rows import BadRow, understand
    from peft_space.data.shapes import make_reading

    wanted = make_recipe(recipe)
    table, plausible = readings_of(data)
    chosen = make_reading(reading, table.columns) if reading and reading.get("shape") else plausible[0]
    left, examples, understood = set(numbers), {}, []
    for number, row in table.rows():
        if number in left:
            left.discard(number)
            try:
                understood.append(understand(number, row, chosen))
            except BadRow as problem:
                raw = json.dumps(row, ensure_ascii=False, indent=2)
                examples[number] = {"row": number, "tokens": [], "cut": 0, "raw": raw[:20_000], "problem": str(problem)}
            if not left:
                break
    drawn = _drawn(wanted, _task(wanted, chosen.shape), understood) if understood else []
    examples |= {example["row"]: example for example in drawn}
    return {"examples": [examples[number] for number in numbers if number in examples]}


def _task(recipe: Recipe, shape: Any) -> Task:
    from peft_space.models.base import find_base
    from peft_space.models.families import choose_task

    return choose_task(recipe, find_base(recipe.base_model, recipe.revision).config, shape)


def _drawn(recipe: Recipe, task: Task, rows: list[Any]) -> list[Json]:
    """Rows as they will be trained, to be shown."""
    from peft_space.data.tokens import preview
    from peft_space.models.base import find_base, load_tokenizer

    tokenizer = load_tokenizer(find_base(recipe.base_model, recipe.revision), recipe.chat_template, task)
    return preview(tokenizer, rows, recipe.max_length, recipe.loss_on, task)


def _progress(report: Report | None) -> OnProgress:
    def on_progress(share: float, what: str) -> None:
        if report:
            report({"share": share, "what": what})

    return on_progress


def layers(recipe: Json) -> Json:
    """Which linear layers the recipe's base model has, which of them get an adapter, and how many parameters that trains."""
    from peft_space.export.serving import traits_of_recipe, ways
    from peft_space.models.base import find_base
    from peft_space.models.families import linear_layers, modules_to_save, tasks_of, wrapped_layers
    from peft_space.models.load import expected_parameter_counts
    from peft_space.models.quantization import quantization_of
    from peft_space.training.estimates import memory_here

    wanted = make_recipe(recipe)
    config = find_base(wanted.base_model, wanted.revision).config
    can = tasks_of(config)
    if not can:
        raise UserError(f"Models of the kind {config.model_type!r} can learn none of the tasks here. Choose another base model.")
    task = can[0] if wanted.task == "automatic" else wanted.task
    found = linear_layers(config, task)
    wrapped = wrapped_layers(wanted, found)
    saved = modules_to_save(wanted, found)
    served = ways(traits_of_recipe(wanted, found, quantization_of(wanted, config)))
    trainable, total = expected_parameter_counts(wanted, found, task)
    memory = memory_here(wanted, config, task, wanted.max_length)
    return {
        "tasks": can,
        "task": task,
        "layers": found.counts,
        "wrapped": dict(Counter(name.rpartition(".")[2] for name in wrapped)),
        "head": found.head,
        "saved": saved,
        "fused_experts": found.fused_experts,
        "taken_for_experts": found.taken_for_experts,
        "trainable": trainable,
        "parameters": total,
        "serving": [asdict(way) for way in served],
        "memory": asdict(memory) if memory else None,
    }


def estimate(
    data: Data, recipe: Json | None = None, held_out: Data | None = None, reading: Json | None = None, report: Report | None = None
) -> Json:
    """What training the recipe will take: `memory`, `time`, on which hardware of a Space it would fit (`spaces`), and the same in `words`."""
    from peft_space.training.estimates import estimates, in_words

    found = estimates(data, make_recipe(recipe or {}), held_out, reading, _progress(report))
    return asdict(found) | {"words": in_words(found)}


def dry_run(
    data: Data, recipe: Json | None = None, held_out: Data | None = None, reading: Json | None = None, report: Report | None = None
) -> Json:
    """A few steps trained for real: `memory`, `step_seconds` and `seconds` of the whole training, the `estimates` before, and how far they were off."""
    from peft_space.training import dry_run as measuring

    found = measuring.dry_run(data, make_recipe(recipe or {}), held_out, reading, _progress(report))
    return asdict(found) | {"words": measuring.in_words(found)}


def advise(
    data: Data, recipe: Json | None = None, held_out: Data | None = None, reading: Json | None = None, report: Report | None = None
) -> Json:
    """What to choose for these data, this base model and this machine: `advice`, each with its reason, the `recipe` with all of it, and `red_lines`."""
    from peft_space import advice
    from peft_space.models.base import find_base
    from peft_space.training.facts import data_facts, machine_facts, model_facts
    from peft_space.training.prepare import prepare

    wanted = make_recipe(recipe or {})
    on_progress = _progress(report)
    # the longest row decides on the limit, and a recipe that crosses a red line is to be told how to mend it
    prepared = prepare(data, wanted, held_out, reading, on_progress, mended=True)
    base = find_base(wanted.base_model, wanted.revision)
    on_progress(0.9, "Measuring how well the base knows such answers")
    facts, model = data_facts(prepared, base, wanted), model_facts(base, wanted, prepared.goal.task)
    advices = advice.advise(facts, model, machine_facts())
    changed = advice.what_changes(wanted, advices)
    better = advice.advised_recipe(wanted, advices)
    return {
        "task": prepared.goal.task,
        "advice": [asdict(one) | {"now": getattr(wanted, one.field), "changes": one in changed} for one in advices],
        "recipe": better.model_dump(),
        "red_lines": [asdict(line) for line in advice.red_lines(wanted, model, facts)],
        "facts": {**asdict(facts), "lengths": None, **asdict(model)},
    }


def make(
    directory: str,
    data: Data,
    recipe: Json,
    held_out: Data | None = None,
    reading: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A new run, checked and ready to be trained. Nothing is made where something is wrong."""
    from peft_space.training.prepare import make_run

    return {"run": str(make_run(directory, data, make_recipe(recipe), held_out, reading, _progress(report)).directory)}


def adopt(
    directory: str,
    adapter: str,
    data: Data,
    recipe: Json | None = None,
    held_out: Data | None = None,
    reading: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A new run of an adapter that was made elsewhere, with rows to score on and to go on with."""
    from peft_space.training.adopt import adopt as adopt_adapter

    return {"run": str(adopt_adapter(directory, adapter, data, recipe, held_out, reading, _progress(report)).directory)}


def fetch(run: str) -> Json:
    """Have on this machine what training a run needs and a slice of GPU time should not go on: rendered rows, and the base model's files."""
    from peft_space.training.prepare import fetch as fetch_for

    return {"rows": fetch_for(Run(run))}


def train(run: str) -> Json:
    """Train a run to its end, or until it is asked to leave."""
    from peft_space.training.train import train as train_run

    opened = Run(run)
    with opened.lock():
        return train_run(opened, report_to=settings.report_to()).model_dump()


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

    _progress(report)(0.0, "Loading the base and the adapter")
    wanted = comparing.Sampling(**(sampling or {}))
    adapted = _adapted(run)
    if history and adapted.goal.task in ("seq2seq-lm", *comparing.CLASSIFYING):
        raise UserError("This model answers one text at a time, without a conversation. Ask without a history.")
    if history and also:
        raise UserError("Others can answer beside the adapter only where a conversation begins. Ask without a history.")
    seen: fairness.Seen = {"base": [], "adapter": []}
    answers = comparing.compare(adapted, conversations["base"], wanted, on_text if report else None, seen, conversations["adapter"])
    _progress(report)(0.5, "The others answer") if also else None
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


def evaluate(run: str, report: Report | None = None) -> Json:
    """Scores of `base` and `adapter` on the held-out rows, with `intervals`, and how much general answers changed (`general`).

    A scoring that was interrupted goes on where it was.
    """
    from peft_space.evaluate import evaluate as evaluate_run

    _progress(report)(0.0, "Loading the base and the adapter")
    return asdict(evaluate_run(Run(run), _adapted(run), _progress(report)))


_ANSWERED_AT_ONCE = 8


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

    Args:
        prompts: what to ask; without them, `count` of the held-out rows.
    """
    from peft_space import votes
    from peft_space.prompts import held_out_prompts

    opened = Run(run)
    asked = [{"prompt": prompt, "system": system} for prompt in prompts] if prompts else held_out_prompts(opened, count)
    answers: list[Json] = []
    for start in range(0, len(asked), _ANSWERED_AT_ONCE):
        _progress(report)(start / len(asked), "Both answer, unseen")
        some = asked[start : start + _ANSWERED_AT_ONCE]
        for said in dict.fromkeys(one["system"] for one in some):  # the rows of one system message together
            given = compare(run, [one["prompt"] for one in some if one["system"] == said], said, sampling)
            if given["task"].endswith("classification"):
                raise UserError("A label is right or wrong, so there is nothing to vote on. Score both columns instead.")
            if not given["fairness"]["fair"]:
                raise UserError(given["fairness"]["words"])
            answers += given["answers"]
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


def export(
    run: str,
    out: str,
    target: str = "adapter",
    dtype: str = "bfloat16",
    merge_into: str | None = None,
    insist: bool = False,
    as_zip: bool = False,
    gguf: Json | None = None,
    report: Report | None = None,
) -> Json:
    """The adapter, or a model that it is merged into, or either as GGUF files (`gguf`, `ollama`), in the new folder `out`, or as a .zip in the folder `out`; with its `proof`, in `words` too.

    `commands` serve it, by engine. Raises UserError where the proof does not pass, unless `insist`.

    Args:
        gguf: `numbers` (f32, f16, q8_0), whether base and adapter are `apart`, and for Ollama a `system` message.
    """
    from peft_space.export.deliver import serving_commands, wanted
    from peft_space.export.folder import zip_of

    folder, opened = Path(out, target) if as_zip else Path(out), Run(run)
    asked = wanted(target, dtype, merge_into, insist, gguf)
    _loaded.clear()  # two models are compared, one after the other, and a third would take room
    made = asked.deliver(opened, folder, _progress(report))
    path = zip_of(made.path, opened, target) if as_zip else made.path
    proof = asdict(made.proof) | {"passed": made.proof.passed}
    at = Path("path/of/the/unpacked", target) if as_zip else made.path
    serve = serving_commands(opened, target, at, dtype, elsewhere=as_zip, gguf=asked.gguf)  # type: ignore[arg-type]
    return {"path": str(path), "proof": proof, "words": made.proof.words(), "commands": serve}


def serving(run: str) -> Json:
    """How PEFT, vLLM and TGI can serve the run's adapter: `ways`, each as an adapter, merged, or not; `quantization` of the base in training."""
    from peft_space.export.deliver import traits_of
    from peft_space.export.serving import ways

    traits = traits_of(Run(run))
    return {"ways": [asdict(way) for way in ways(traits)], "quantization": traits.quantization}


def spectrum(run: str) -> Json:
    """How much of its rank the run's adapter uses: `rank`, `used`, `curve` (mean singular value as a share of the largest), `layers` (used by each)."""
    from peft_space.export.compress import KEPT_ENERGY, read_spectrum

    found = read_spectrum(Run(run))
    used = dict(zip(found.layers, found.rank_for(KEPT_ENERGY).tolist(), strict=True))
    return {"rank": found.rank, "used": found.used_rank, "curve": found.mean_curve().tolist(), "layers": used}


def compress(run: str, out: str, rank: int | None = None, report: Report | None = None) -> Json:
    """A smaller adapter in the folder `out`, of `rank` or the rank that is used, and the held-out loss before and after."""
    from peft_space.evaluate import held_out_loss
    from peft_space.export.compress import compress as compress_run
    from peft_space.models.load import load_adapted

    opened, on_progress = Run(run), _progress(report)
    on_progress(0.0, "Taking the adapter apart")
    smaller = compress_run(opened, out, rank)
    on_progress(0.3, "Scoring the adapter as it was")
    before = held_out_loss(opened, _adapted(run))
    on_progress(0.6, "Scoring the smaller adapter")
    after = held_out_loss(opened, load_adapted(opened, Path(out)))
    return {"path": str(Path(out).absolute()), "rank": smaller, "loss_before": before, "loss_after": after}


def study(
    data: Data,
    recipe: Json | None = None,
    ranks: list[int] | None = None,
    held_out: Data | None = None,
    reading: Json | None = None,
    report: Report | None = None,
) -> Json:
    """The recipe trained briefly at several ranks: `results` of each (rank, trainable_parameters, loss, seconds), and the rank that is `enough`."""
    from peft_space.study import RANKS
    from peft_space.study import study as study_ranks

    return asdict(study_ranks(data, make_recipe(recipe or {}), tuple(ranks or RANKS), held_out, reading, _progress(report)))


def script(run: str, out: str) -> Json:
    """The run as one script that trains it anywhere: its `path`."""
    from peft_space.script import write_script

    return {"path": str(write_script(Run(run), out))}


def card(run: str) -> Json:
    """The model card as it would be pushed now: `card`."""
    import tempfile

    from peft_space.export.adapter import copy_adapter

    with tempfile.TemporaryDirectory() as scratch:
        copy_adapter(Run(run), Path(scratch))
        return {"card": Path(scratch, "README.md").read_text(encoding="utf-8")}


def push(
    run: str,
    repo: str,
    token: str | None = None,
    public: bool = False,
    card: str | None = None,
    export: Json | None = None,
    report: Report | None = None,
) -> Json:
    """Push the adapter to the Hub: `url`. A `card` takes the place of the one that `card` shows.

    Args:
        export: what to push in place of the adapter as it is: `target`, `dtype`, `merge_into`, `insist` and `gguf` as `export` takes them. It is proven first.
    """
    from peft_space import hub
    from peft_space.export.deliver import wanted

    if not export or export.get("target", "adapter") == "adapter":
        return {"url": hub.push(Run(run), repo, token, public, _progress(report), card)}
    asked = wanted(**export)
    _loaded.clear()

    def write(opened: Run, folder: Path) -> None:
        asked.deliver(opened, folder, _progress(report))

    return {"url": hub.push(Run(run), repo, token, public, _progress(report), card, asked.in_words(), write)}


def save(run: str, repo: str, token: str | None = None, report: Report | None = None) -> Json:
    """Save the run to a private dataset repository on the Hub, with all that it takes to go on elsewhere: `url`."""
    from peft_space.saved import save as save_run

    return {"url": save_run(Run(run), repo, token, _progress(report))}


def take_up(directory: str, repo: str, token: str | None = None, report: Report | None = None) -> Json:
    """A run that was saved, as a new run here, ready to go on."""
    from peft_space.saved import take_up as take_up_run

    return {"run": str(take_up_run(repo, directory, token, _progress(report)).directory)}


def deploy(space: str, token: str | None = None, hardware: str | None = None, public: bool = False, report: Report | None = None) -> Json:
    """Make a Space of this clone, or bring one up to date: `url`. Not for the page."""
    from peft_space.deploy import deploy as deploy_space

    return {"url": deploy_space(space, token, hardware, public, _progress(report))}


def smoke(url: str, token: str | None = None, report: Report | None = None) -> Json:
    """What a running page did well, seen from outside: `checks`. Not for the page."""
    from peft_space.smoke import smoke as try_page

    return {"checks": try_page(url, token, _progress(report))}


def job_hardware(run: str, token: str | None = None) -> Json:
    """The `hardware` that a job of the run could have now, each with what it would take: memory, time, cost, and a timeout with margin."""
    from peft_space.training.job_estimates import choices

    return {"hardware": [asdict(choice) for choice in choices(Run(run), token)]}


def hand_over(run: str, flavor: str, timeout: str, token: str | None = None, report: Report | None = None) -> Json:
    """Let a job on Hugging Face train the run: its `job`, its `address`, and the private dataset that it went to, `repo`."""
    from peft_space import jobs

    handed = jobs.hand_over(Run(run), flavor, jobs.seconds_of(timeout), token, _progress(report))
    return handed.model_dump(exclude={"event", "at", "num_events"})


def cancel_job(run: str, token: str | None = None) -> Json:
    """End the run's job; what it has sent comes back to who follows it."""
    from peft_space import jobs

    jobs.cancel(Run(run), token)
    return {"status": Run(run).status()}


def warm() -> Json:
    """Import what a check of data needs; it takes seconds."""
    import peft_space.training.prepare
    from peft_space.models.base import find_base, load_tokenizer

    load_tokenizer(find_base(Recipe().base_model))
    return {"warm": peft_space.training.prepare.__name__}


_loaded: dict[tuple[str, float], Any] = {}
"""The model of the last run that was asked for, by run and time of its adapter."""


def _adapted(run: str) -> Any:
    """The base and adapter of a run; kept in memory until another run, or a newer adapter of this one, is asked for."""
    from peft_space.models.load import load_adapted

    opened = Run(run)
    key = (run, (opened.adapter / "adapter_config.json").stat().st_mtime)
    if key not in _loaded:
        _loaded.clear()  # before the next is loaded, so that there are never two
        _loaded[key] = load_adapted(opened)
    return _loaded[key]


VERBS: dict[str, Callable[..., Json]] = {
    verb.__name__: verb
    for verb in (
        warm,
        check,
        show,
        layers,
        advise,
        estimate,
        dry_run,
        study,
        make,
        fetch,
        adopt,
        compare,
        evaluate,
        pairs,
        vote,
        votes,
        spectrum,
        compress,
        serving,
        export,
        script,
        card,
        push,
        save,
        take_up,
        job_hardware,
        hand_over,
        cancel_job,
    )
}
"""What a worker process can be asked for; training has a process of its own."""
REPORTING = {
    "check",
    "advise",
    "estimate",
    "dry_run",
    "study",
    "make",
    "adopt",
    "compress",
    "compare",
    "evaluate",
    "pairs",
    "export",
    "push",
    "save",
    "take_up",
    "hand_over",
}
"""Verbs that tell what they are doing."""
TAKING_TURNS = {"study", "dry_run"}
"""Verbs that train, and so wait until no other training has the machine. They report."""
