"""The command line: check, train, compare, evaluate, export and push, the same functions as the page, without a browser.

Exit status: 0 done, 2 the user's mistake (one message on stderr), 1 ours (with its traceback).
"""

import argparse
import contextlib
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peft_space import events, jobs, settings, verbs
from peft_space.errors import UserError, explain, mendable
from peft_space.execution.following import SECONDS_BETWEEN, follow
from peft_space.execution.local import WorkerFault
from peft_space.execution.trainings import cut_rows_of, train_here
from peft_space.masking import print_traceback
from peft_space.prompts import read_prompts
from peft_space.recipe import make_recipe, read_recipe
from peft_space.run import Run, handed_over, refuse_handed_over, steps_of
from peft_space.scores import differences, evaluation_of, majority_words, shown_with_intervals
from peft_space.votes import as_csv


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    settings.prepare_libraries()
    given = _parser().parse_args(arguments)
    try:
        with _stdout_for_result_only() as result:
            given.command(given, lambda value, text: print(json.dumps(value) if given.json else text, file=result))
        return 0
    except WorkerFault as error:  # the process in which it happened has printed its traceback
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the one place where errors of the command line are put into words
        users = mendable(error) is not None
        if not users:
            print_traceback()
        print(explain(error), file=sys.stderr)
        return 2 if users else 1


Show = Callable[[Any, str], None]
"""Takes a result as JSON and as text, and prints the one that was asked for."""


_DATA = "a data file, several that are joined, a dataset on the Hub as hf://datasets/OWNER/NAME@REVISION?config=C&split=S, or demo"
_READING = """how to read the columns and what to mend, as JSON: {"shape": "question/answer", "columns": {"question": "q", "answer": "a"},
"fixes": ["deduplicate"]}; {} leaves it to be recognised, and `check` shows what was"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m peft_space", description="Train a LoRA adapter on your data, compare it with its base, publish it."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace, Show], None], help: str) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(name, help=help, description=help)
        subparser.set_defaults(command=command)
        subparser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return subparser

    command = add("check", _check, "Say what is in a data file, and what is wrong with which row.")
    command.add_argument("data", metavar="DATA", nargs="+", help=_DATA)
    command.add_argument("--reading", default="{}", help=_READING)
    command.add_argument("--model", help="a base model: also render the rows for it and count tokens")

    command = add("advise", _advise, "Say which recipe suits the data, the base model and this machine, and why.")
    _add_data(command, recipe="what is chosen already: a JSON file, or JSON itself")

    for name, about in (
        ("estimate", "Say roughly what memory and time a training will take, and on which hardware of a Space it would fit."),
        ("dry-run", "Train four steps for real, and say what memory and time the whole training will take. Nothing of it is kept."),
    ):
        command = add(name, _estimate if name == "estimate" else _dry_run, about)
        _add_data(command)

    command = add("study", _study, "Train a recipe briefly at several ranks, and say which is enough.")
    _add_data(command)
    command.add_argument("--ranks", default="2,4,8,16,32,64", help="with commas between them")

    command = add("train", _train, "Train an adapter, or go on with a run.")
    _add_data(command, several="*")
    command.add_argument("--out", metavar="RUN_DIR", help="the new run's folder")
    command.add_argument("--resume", metavar="RUN_DIR", help="go on with this run")
    command.add_argument("--later", action="store_true", help="only make the run: `script`, `job` and `train --resume` take it")
    command.add_argument("--shorter", action="store_true", help="with --resume, where memory did not do: cut rows off at half their length")
    command.add_argument("--anyway", action="store_true", help="with --resume: also where rows, recipe or libraries have changed since")
    command.add_argument(
        "--report-to", metavar="TOOL", action="append", choices=["tensorboard", "trackio", "wandb"], default=[],
        help="also tell the losses to tensorboard, trackio or wandb, where that is installed; may be given several times",
    )  # fmt: skip

    command = add(
        "adopt", _adopt, "Make a run of an adapter that was made elsewhere, to compare, score or export it, or to train it further."
    )
    command.add_argument("adapter", metavar="ADAPTER", help="a folder, a .zip of one, or a Hub id")
    _add_data(command, recipe="choices for training it further; {} is all defaults")
    command.add_argument("--out", required=True, metavar="RUN_DIR", help="the new run's folder")

    _add_compare(add("compare", _compare, "Let base and adapter answer the same prompt."))

    command = add("evaluate", _evaluate, "Score base and adapter on the held-out rows.")
    command.add_argument("run", metavar="RUN_DIR")

    command = add("votes", _votes, "Say how the blind vote of the page, or of the API, stands.")
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--csv", metavar="FILE", help="also write the votes as a table")

    command = add("compress", _compress, "Write a smaller adapter, of the rank that is used or another, and say what it loses.")
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--out", required=True, metavar="DIR")
    command.add_argument("--rank", type=int, help="without it, the rank that the adapter uses")

    command = add("export", _export, "Write the adapter, or the model it is merged into, to a folder of its own, and prove it.")
    command.add_argument("--out", required=True, metavar="DIR")
    _add_what(command)
    _add_elsewhere(add)
    return parser


def _add_elsewhere(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What goes to other machines and to the Hub."""
    command = add("script", _script, "Write a run as one script that trains it on any machine or cluster: `uv run train.py`.")
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--out", default="train.py", metavar="FILE.py")

    command = add(
        "job",
        _job,
        "Train a run on Hugging Face Jobs: without more it says what hardware there is, or how the job goes. The token is HF_TOKEN.",
    )
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--flavor", metavar="F", help="hand the run over to a job with this hardware")
    command.add_argument("--timeout", default="", metavar="2h", help="after which the job is ended; without it, the estimate with a margin")
    command.add_argument("--follow", action="store_true", help="go on telling how it goes until it is over")
    command.add_argument("--cancel", action="store_true", help="end the job; training can go on from its last checkpoint")

    command = add(
        "push", _push, "Push the adapter to the Hugging Face Hub, private unless --public. The token is HF_TOKEN, or this machine's."
    )
    command.add_argument("--repo", required=True, metavar="OWNER/NAME")
    command.add_argument("--public", action="store_true")
    command.add_argument("--card", metavar="FILE", help="a README in place of the one that is written from the run")
    _add_what(command)

    command = add("save", _save, "Save a run to a private dataset repository on the Hub, to go on elsewhere. The token is as for push.")
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--repo", required=True, metavar="OWNER/NAME")

    command = add("take-up", _take_up, "Make a run of one that was saved on the Hub. The token is as for push.")
    command.add_argument("repo", metavar="OWNER/NAME")
    command.add_argument("--out", required=True, metavar="RUN_DIR", help="the new run's folder")

    command = add("deploy", _deploy, "Make a Space of this clone, or update one. The token is HF_TOKEN, or this machine's.")
    command.add_argument("space", metavar="OWNER/SPACE")
    command.add_argument("--hardware", metavar="H", help="zero-a10g, t4-small, … as the Hub names it; without it, what the Space has")
    command.add_argument("--public", action="store_true", help="everybody can see a new Space; otherwise only you can")

    command = add("smoke", _smoke, "Check a running Space or page from outside: it trains the demo for a few steps and compares.")
    command.add_argument(
        "url", metavar="URL", help="of the page, or OWNER/SPACE; for a private one the token is HF_TOKEN, or this machine's"
    )


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    command.add_argument("--prompts", action="append", default=[], metavar="FILE", help="a file of prompts; may be given several times")
    command.add_argument(
        "--also", action="append", default=[], metavar="WHAT", help="checkpoint-N, or another RUN_DIR on the same base, that answers too"
    )
    command.add_argument("--system", default="", metavar="TEXT", help="a system message before each prompt")
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token always")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=0)


def _add_data(
    command: argparse.ArgumentParser, several: str = "+", recipe: str = "a JSON file, or JSON itself; {} is all defaults"
) -> None:
    """What is said of data and recipe wherever something is made of both."""
    command.add_argument("data", metavar="DATA", nargs=several, help=_DATA)
    command.add_argument("--reading", default="{}", help=_READING)
    command.add_argument("--held-out", metavar="DATA", help="rows to score on; without it a share of DATA is kept from training")
    command.add_argument("--recipe", default="{}", help=recipe)


def _add_what(command: argparse.ArgumentParser) -> None:
    """What is exported or pushed."""
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument(
        "--target", "--as", choices=["adapter", "merged", "gguf", "ollama"], default="adapter",
        help="the adapter alone, or merged into its base, for engines that take no adapter; gguf: for llama.cpp; ollama: with a Modelfile",
    )  # fmt: skip
    command.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="of the merged model")
    command.add_argument(
        "--merge-into", choices=["full", "dequantized"],
        help="where the base was quantized in training: its full precision, or the numbers that the adapter was trained on (default)",
    )  # fmt: skip
    command.add_argument("--numbers", choices=["f32", "f16", "q8_0"], default="f16", help="of GGUF files")
    command.add_argument(
        "--apart", action="store_true", help="base and adapter as GGUF files of their own, instead of one of the merged model"
    )
    command.add_argument("--system", default="", metavar="TEXT", help="for ollama: a system message for conversations without one")
    command.add_argument("--insist", action="store_true", help="keep it also where it is proven not to answer as the adapter does")


def _check(given: argparse.Namespace, show: Show) -> None:
    found = verbs.check(_data(given), given.model, reading=_reading(given))
    found.pop("examples", None)
    if "question" in found:
        ways = [json.dumps({"shape": way["shape"], "columns": way["columns"]}, ensure_ascii=False) for way in found["question"]]
        show(
            found,
            "\n".join(
                [
                    *found["notes"],
                    f"{found['source']}: its columns can be read in several ways. Choose one:",
                    *(f"  --reading '{way}'" for way in ways),
                ]
            ),
        )
        raise UserError("It is not decided how to read the file.")
    lines = [f"{found['source']}: {found['rows']} rows. {found['why']}", *found["notes"]]
    lines.append(f"{found['to_train']} to train, {found['held_out']} to score on{_repeated(found)}.")
    if "lengths" in found:
        counted = found["lengths"]
        lines.append(
            f"Tokens a row: median {counted['median']}, longest {counted['longest']}; {counted['num_cut']} rows are cut off at the limit."
        )
    lines += [f"{finding['title']}: {finding['count']:,}. {finding['words']}" for finding in found["findings"]]
    lines += [f"Row {problem['row']}: {problem['problem']}." for problem in found["problems"]]
    show(found, "\n".join(lines))


def _repeated(found: dict[str, Any]) -> str:
    return f"; {found['num_repeated']} that say the same as another are left out" if found["num_repeated"] else ""


def _data(given: argparse.Namespace) -> Any:
    return given.data[0] if len(given.data) == 1 else given.data


def _reading(given: argparse.Namespace) -> dict[str, Any]:
    try:
        reading = json.loads(given.reading)
    except ValueError as error:
        raise UserError(f'--reading is not JSON ({error}). Write it like {{"shape": "text", "columns": {{"text": "body"}}}}.') from None
    if not isinstance(reading, dict):
        raise UserError('--reading is no object. Write it like {"shape": "text", "columns": {"text": "body"}}.')
    return reading


def _advise(given: argparse.Namespace, show: Show) -> None:
    found = verbs.advise(_data(given), read_recipe(given.recipe).model_dump(), given.held_out, _reading(given))
    lines = [
        f"{advice['field']}: {json.dumps(advice['value'])}{'' if advice['changes'] else ' (as it is)'}. {advice['why']} [{advice['source']}]"
        for advice in found["advice"]
    ]
    lines += [f"{'Not possible' if line['kind'] == 'stop' else 'Mind'}: {line['words']}" for line in found["red_lines"]]
    chosen = json.dumps(make_recipe(found["recipe"]).model_dump(exclude_defaults=True))
    show(
        found,
        "\n".join([*lines, f"Next: python -m peft_space train {shlex.join(given.data)} --recipe {shlex.quote(chosen)} --out RUN_DIR"]),
    )


def _estimate(given: argparse.Namespace, show: Show) -> None:
    found = verbs.estimate(_data(given), read_recipe(given.recipe).model_dump(), given.held_out, _reading(given))
    spaces = [
        f"{line['name']:14} {'fits' if line['fits'] else 'does not fit'}: {line['need'] / 1e9:,.2f} of {line['memory'] / 1e9:,.0f} GB"
        for line in found["spaces"]
    ]
    show(found, "\n".join([*found["words"], *spaces]))


def _dry_run(given: argparse.Namespace, show: Show) -> None:
    found = verbs.dry_run(_data(given), read_recipe(given.recipe).model_dump(), given.held_out, _reading(given))
    show(found, "\n".join(found["words"]))


def _study(given: argparse.Namespace, show: Show) -> None:
    if not all(rank.strip().isdigit() for rank in given.ranks.split(",")):
        raise UserError(f"--ranks {given.ranks!r} are no ranks. Write them like 2,8,32.")
    ranks = [int(rank) for rank in given.ranks.split(",")]
    found = verbs.study(_data(given), read_recipe(given.recipe).model_dump(), ranks, given.held_out, _reading(given))
    lines = [
        f"rank {one['rank']:3}: held-out loss {one['loss']:.4f}, {one['trainable_parameters']:,} trainable" for one in found["results"]
    ]
    show(
        found,
        "\n".join(
            [*lines, f"Rank {found['enough']} is enough: its loss after {found['steps']} steps is within 2 %, or 0.01, of the best."]
        ),
    )


def _compress(given: argparse.Namespace, show: Show) -> None:
    found = verbs.compress(given.run, given.out, given.rank)
    change = f"held-out loss {found['loss_before']:.4f} before, {found['loss_after']:.4f} after"
    show(found, f"An adapter of rank {found['rank']} is in {found['path']}: {change}.")


def _train(given: argparse.Namespace, show: Show) -> None:
    extras = given.out or given.held_out or given.reading != "{}" or given.recipe != "{}"
    mixed = (given.resume and (extras or given.later)) or ((given.anyway or given.shorter) and not given.resume)
    if bool(given.resume) == bool(given.data) or (given.data and not given.out) or mixed:
        raise UserError("Say what to train: `train DATA --out RUN_DIR`, or `train --resume RUN_DIR`.")
    if given.data:
        recipe = read_recipe(given.recipe).model_dump(exclude_defaults=True)
        run = Run(verbs.make(given.out, _data(given), recipe, given.held_out, _reading(given))["run"])
    else:
        run = Run(given.resume)
    if given.later:
        show({"run": str(run.directory), "outcome": None}, f"The run is in {run.directory}. Next: python -m peft_space job {run.directory}")
        return
    refuse_handed_over(run)
    with run.lock() as own:
        if run.status() == "finished":
            show({"run": str(run.directory), "outcome": "Finished"}, "This run is finished.")
            return
        if run.status() != "queued":
            run.forget_request()  # left by a worker that was killed
        run.drop_torn_event()
        if given.shorter:
            cut_rows_of(run)
        with _stopping_on_interrupt(run), _telling(run):
            outcome = train_here(run, own, given.anyway, given.report_to or settings.report_to()).model_dump()
    show(
        {"run": str(run.directory), "outcome": outcome["event"], "step": outcome["step"]},
        f"{outcome['event']} at step {outcome['step']}. Next: python -m peft_space evaluate {run.directory}",
    )


def _adopt(given: argparse.Namespace, show: Show) -> None:
    recipe = read_recipe(given.recipe).model_dump(exclude_defaults=True)
    found = verbs.adopt(given.out, given.adapter, _data(given), recipe, given.held_out, _reading(given))
    more = f"evaluate {found['run']}, or python -m peft_space train --resume {found['run']}"
    show(found, f"The adapter is in the run {found['run']}. Next: python -m peft_space {more}")


def _compare(given: argparse.Namespace, show: Show) -> None:
    sampling = {"max_new_tokens": given.max_new_tokens, "temperature": given.temperature, "top_p": given.top_p, "seed": given.seed}
    prompts = [*given.prompt, *(prompt for file in given.prompts for prompt in read_prompts(file))]
    if not prompts:
        raise UserError("There is no prompt. Give one with --prompt TEXT, or a file of them with --prompts FILE.")
    found = verbs.compare(given.run, prompts, given.system, sampling, also=given.also)
    texts = []
    for answer in found["answers"]:
        columns = {"Prompt": answer["prompt"], "Base": answer["base"], "Adapter": answer["adapter"], **answer["others"]}
        texts.append("\n\n".join(f"{title}:\n{text}" for title, text in columns.items()))
    show(found, "\n\n---\n\n".join([*texts, f"{found['fairness']['words']}\nNext: python -m peft_space evaluate {given.run}"]))


def _evaluate(given: argparse.Namespace, show: Show) -> None:
    found = verbs.evaluate(given.run, _told)
    scores = evaluation_of(found)
    base, adapter, change = shown_with_intervals(scores, "base"), shown_with_intervals(scores, "adapter"), differences(scores)
    lines = [f"{title}: base {base[title]}, adapter {adapter[title]}, difference {change[title]}" for title in adapter]
    lines += [words for words in (majority_words(scores), scores.general and scores.general.in_words(), scores.fairness) if words]
    following = f"Next: python -m peft_space compare {given.run} --prompt TEXT"
    show(found, "\n".join([f"On {found['num_rows']} held-out rows, with 95 % intervals:", *lines, following]))


def _votes(given: argparse.Namespace, show: Show) -> None:
    found = verbs.votes(given.run)
    if given.csv:
        Path(given.csv).write_text(as_csv(found["votes"]), encoding="utf-8", newline="")
    show(found, found["words"])


def _told(report: dict[str, Any]) -> None:
    """What a verb is doing, on standard error."""
    print(f"{report['share']:4.0%} {report['what']}", file=sys.stderr)


def _export(given: argparse.Namespace, show: Show) -> None:
    found = verbs.export(given.run, given.out, given.target, given.dtype, given.merge_into, given.insist, gguf=_gguf(given))
    what = "adapter" if given.target == "adapter" else "merged model" if given.target == "merged" else "GGUF"
    serve = [f"Serve it in {engine}: {command}" for engine, command in found["commands"].items()]
    following = [f"Next: python -m peft_space push {given.run} --repo OWNER/NAME --target {given.target}"]
    show(found, "\n".join([f"The {what} is in {found['path']}.", found["words"], *serve, *following]))


def _script(given: argparse.Namespace, show: Show) -> None:
    found = verbs.script(given.run, given.out)
    show(found, f"{found['path']} trains the run on any machine: uv run {found['path']}")


def _job(given: argparse.Namespace, show: Show) -> None:
    run = Run(given.run)
    if given.cancel:
        verbs.cancel_job(given.run)
        if run.is_locked():  # who follows it brings the rest back
            show({"run": str(run.directory), "status": run.status(), "message": ""}, "The job is cancelled.")
            return
    elif given.flavor:
        handed = verbs.hand_over(given.run, given.flavor, given.timeout or _timeout(given), report=_told)
        show(handed, f"The job is {handed['address']}. Next: python -m peft_space job {given.run} --follow") if not given.follow else None
    elif handed_over(run.history()) is None:
        found = verbs.job_hardware(given.run)
        show(found, "\n".join(choice["words"] for choice in found["hardware"]))
        return
    if given.flavor and not given.follow:
        return
    if given.follow or given.cancel:
        with run.lock(), _telling(run):
            follow(run, None, 2.0 if given.cancel else SECONDS_BETWEEN, lambda words: print(words, file=sys.stderr))
    elif not run.is_locked():
        with run.lock():
            jobs.look(run, None)
    happened = run.history()
    failed = happened[-1].message if isinstance(happened[-1], events.Failed) else ""
    step = max((event.step for event in steps_of(happened)), default=0)
    words = f"The run is {run.status()}, at step {step}. {failed}".strip()
    show({"run": str(run.directory), "status": run.status(), "step": step, "message": failed}, words)


def _timeout(given: argparse.Namespace) -> str:
    """What the estimate asks for on that hardware, with its margin."""
    choices = {choice["name"]: choice for choice in verbs.job_hardware(given.run)["hardware"]}
    return str(choices[given.flavor]["timeout"]) if given.flavor in choices else "6h"


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card {path} cannot be read ({error}). Give the path of a text file.") from None


def _gguf(given: argparse.Namespace) -> dict[str, Any]:
    return {"numbers": given.numbers, "apart": given.apart, "system": given.system}


def _push(given: argparse.Namespace, show: Show) -> None:
    wanted = {"target": given.target, "dtype": given.dtype, "merge_into": given.merge_into, "insist": given.insist, "gguf": _gguf(given)}
    found = verbs.push(given.run, given.repo, None, given.public, _text_of(given.card) if given.card else None, wanted)
    show(found, f"Pushed to {found['url']}.")


def _save(given: argparse.Namespace, show: Show) -> None:
    found = verbs.save(given.run, given.repo, report=_told)
    show(found, f"Saved to {found['url']}. To go on elsewhere: python -m peft_space take-up {given.repo} --out RUN_DIR")


def _take_up(given: argparse.Namespace, show: Show) -> None:
    found = verbs.take_up(given.out, given.repo, report=_told)
    show(found, f"The run is in {found['run']}. Next: python -m peft_space train --resume {found['run']}")


def _deploy(given: argparse.Namespace, show: Show) -> None:
    found = verbs.deploy(given.space, hardware=given.hardware, public=given.public, report=_told)
    show(found, f"The Space is at {found['url']}; the Hub builds it now. When it runs: python -m peft_space smoke {given.space}")


def _smoke(given: argparse.Namespace, show: Show) -> None:
    found = verbs.smoke(given.url, report=_told)
    show(found, "\n".join(f"✓ {check['what']}: {check['found']} ({check['seconds']} s)" for check in found["checks"]))


@contextlib.contextmanager
def _stdout_for_result_only() -> Iterator[Any]:
    """Yields the real standard output; what libraries print meanwhile goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.__stdout__


@contextlib.contextmanager
def _stopping_on_interrupt(run: Run) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks the training to save and leave; a second one ends it at once."""

    def ask(number: int, frame: Any) -> None:
        print("Saving and stopping after this step; once more to stop at once.", file=sys.stderr)
        run.ask_to_leave("stop")
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _telling(run: Run) -> Iterator[None]:
    """Prints the run's events to standard error while they come."""
    ended = threading.Event()
    start = len(run.history())

    def follow() -> None:
        told = start
        while True:
            last_round = ended.wait(1.0)
            happened = run.history()
            for event in happened[told:]:
                print(_in_words(event), file=sys.stderr)
            told = len(happened)
            if last_round:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_words(event: events.Event) -> str:
    match event:
        case events.Step():
            return f"step {event.step}: loss {event.loss:.4f}, {event.seconds:.2f} s"
        case events.Evaluated():
            return f"step {event.step}: loss on held-out rows {event.loss:.4f}"
        case events.Started():
            return f"started at step {event.from_step} of {event.total_steps}"
        case events.Working():
            return f"{event.what} …"
        case events.Adjusted():
            return f"{event.what} {event.why}"
        case events.Warned():
            return f"step {event.step}: {event.what} {event.advice}"
        case events.Kept():
            return f"the adapter of step {event.step} is kept: {event.why}"
        case events.Checkpointed():
            return f"step {event.step}: checkpoint written"
        case _:
            return event.event.lower()


if __name__ == "__main__":
    sys.exit(main())
