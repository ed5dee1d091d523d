"""The command line: every operation of the registry as a command.

Exit status: 0 done, 2 the user's mistake (a message on stderr), 1 a bug (with its traceback).
"""

import argparse
import contextlib
import functools
import gc
import json
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from peft_space import settings
from peft_space.errors import UserError, as_user_error, user_message
from peft_space.operations.registry import (
    Json,
    Operation,
    Parameter,
    describe_fault,
    fields_of,
    make_options,
    operations_on,
)
from peft_space.recipe import Recipe, read_recipe
from peft_space.redaction import print_traceback
from peft_space.runs import events
from peft_space.runs.run import Run

_UNSET = object()
_ABOUT = "Train a LoRA adapter on your data, compare it with its base model, and publish it."


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from peft_space.runtime.worker_pool import WorkerFault

    settings.prepare_libraries()
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = vars(build_parser(arguments[0] if arguments else "").parse_args(arguments))
    try:
        with _stdout_for_results() as out:
            _run(parsed.pop("operation"), parsed, parsed.pop("json"), out)
        return 0
    except WorkerFault as error:  # the process in which it happened has printed its traceback
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the one place that turns errors into messages
        is_users = as_user_error(error) is not None
        if not is_users:
            print_traceback()
        print(user_message(error), file=sys.stderr)
        return 2 if is_users else 1


def entry_point() -> None:
    """The command `peft-space`."""
    status = main()
    gc.freeze()  # at the end Python traverses every object of the libraries, which takes a second
    sys.exit(status)


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[Any]:
    """Yields the real standard output; what libraries print goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.__stdout__


def _run(operation: Operation, parsed: Json, as_json: bool, out: IO[str]) -> None:
    arguments = {one.name: _resolve(one, parsed) for one in operation.parameters_on("cli")}
    if operation.reports and not (operation.streams or operation.trains):
        arguments["report"] = progress_printer()
    if operation.name == "train" and not arguments["no_train"]:
        result = _make_and_train(arguments)
    elif operation.name == "job":
        with print_events(Run(arguments["run"])):
            result = operation(**arguments)
    else:
        result = operation(**arguments)
    if operation.name == "train":
        result = {"outcome": None} | result  # with --no-train there is none
    elif operation.name == "resume":
        result = _resume(Run(result["run"]), arguments)
    if as_json:
        print(json.dumps(result), file=out)
    elif operation.text:
        print(_as_started(operation.text(result, arguments)), file=out)
    else:
        print(json.dumps(result, ensure_ascii=False, indent=1), file=out)
    if "question" in result:
        raise UserError(
            "cli.ambiguous_columns",
            "This file can be read in more than one way. Choose one with --column-mapping.",
        )


def _as_started(text: str) -> str:
    """Name the command in `text` as it was started: a clone may have no `peft-space`."""
    if Path(sys.argv[0]).name != "__main__.py":
        return text
    return re.sub(r"\bpeft-space (?=[a-z])", "python -m peft_space ", text)


# The parser


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of all commands; only `command` gets its arguments, which saves start-up time."""
    parser = argparse.ArgumentParser(prog="peft-space", description=_ABOUT, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    unset: Json = {"allow_abbrev": False, "argument_default": argparse.SUPPRESS}
    for operation in operations_on("cli"):
        about, name = operation.help.replace("%", "%%"), operation.command
        subparser = commands.add_parser(name, help=about, description=about, **unset)
        subparser.set_defaults(operation=operation)
        if name == command:
            subparser.usage = f"{usage_of(operation)} [options]".replace("%", "%%")
            add_arguments(subparser, operation)
    return parser


def usage_of(operation: Operation) -> str:
    """The command with the arguments that it requires."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser, operation)
    words = ["peft-space", operation.command]
    for action in parser._actions:
        shown = str(action.metavar or action.dest.upper())
        if action.required and action.option_strings:
            words.append(f"{action.option_strings[0]} {shown}")
        elif action.required:
            words.append(f"{shown}…" if action.nargs == "+" else shown)
    return " ".join(words)


def add_arguments(parser: argparse.ArgumentParser, operation: Operation) -> None:
    """Add the arguments of an operation to the parser of its command."""
    about = "print the result as one JSON object"
    parser.add_argument("--json", action="store_true", default=False, help=about)
    has_run = any(one.kind.role in ("run", "trained_run") for one in operation.parameters)
    for one in operation.parameters_on("cli"):
        about = one.help.replace("%", "%%")
        add = functools.partial(parser.add_argument, help=about, metavar=one.kind.metavar)
        match one.kind.role:
            case "run" | "trained_run" | "adapter":
                add(one.name)
            case "data":
                add(one.name, nargs="+")
            case "new_run" | "output":
                add("--out", dest=one.name, required=one.required)
            case "repo":
                add("--repo", required=True) if has_run else add(one.name)
            case "prompts":
                add("--prompt", action="append")
                parser.add_argument(
                    "--prompts", action="append", metavar="FILE", help="a file of prompts"
                )
            case "adapters":
                add(flag_of(one), action="append")
            case "pictures":
                add("--picture", dest=one.name, action="append")
            case "options":
                _add_options(parser, one)
            case "token" | "owners":
                pass
            case _:
                _add_plain(parser, one)


_SHORT = {"base_model": ["--model"]}
"""Second, shorter names of flags."""


def flag_of(parameter: Parameter) -> str:
    """`--lora-rank` for lora_rank."""
    return f"--{parameter.name.replace('_', '-')}"


def _add_options(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    model = parameter.kind.model
    assert model is not None
    title = "recipe" if model is Recipe else "options"
    group = parser.add_argument_group(title, (model.__doc__ or "").split("\n")[0])
    if model is Recipe:
        about = "a JSON file, or JSON itself; the flags below override its fields"
        group.add_argument("--recipe", metavar="FILE", help=about)
    for one in fields_of(model):
        _add_plain(group, one)


def _add_plain(parser: Any, parameter: Parameter) -> None:
    about = parameter.help.replace("%", "%%")
    if parameter.default not in (None, "", False, _UNSET) and not parameter.required:
        about = f"{about.rstrip('.')} (default: {parameter.default})"
    if parameter.type is bool:
        off = not parameter.default
        action = "store_true" if off else argparse.BooleanOptionalAction
        parser.add_argument(flag_of(parameter), action=action, help=about)
        return
    if parameter.required and parameter.type is str:
        parser.add_argument(parameter.name, help=about, metavar=parameter.name.upper())
        return
    named: Json = {"help": about, "required": parameter.required}
    if parameter.words and not parameter.is_list:
        named["choices"] = parameter.words
    elif parameter.item_words:
        named |= {"choices": parameter.item_words, "action": "append"}
    else:
        named["metavar"] = parameter.kind.metavar or parameter.name.rpartition("_")[2].upper()
    parser.add_argument(flag_of(parameter), *_SHORT.get(parameter.name, ()), **named)


# Arguments


def _resolve(parameter: Parameter, parsed: Json) -> Any:
    """The value of an argument, from what was typed."""
    value = parsed.get(parameter.name, _UNSET)
    match parameter.kind.role:
        case "token":
            return None  # the libraries of the Hub read HF_TOKEN, or the login of this machine
        case "owners":
            return ["local"]
        case "data":
            return value[0] if len(value) == 1 else value
        case "options":
            return _options(parameter, parsed)
        case "prompts":
            return _prompts(parsed)
    if value is _UNSET:
        return None if parameter.required else parameter.default
    return _read(value, parameter) if parameter.kind.role == "text" else _parse(parameter, value)


def _parse(parameter: Parameter, text: Any) -> Any:
    """The value of a flag, checked against its type and range."""
    is_object = parameter.kind.role == "json"
    try:
        if isinstance(text, str) and (is_object or text.startswith("[")):
            text = json.loads(text)
        elif isinstance(text, str) and parameter.is_list and text not in parameter.words:
            text = [part.strip() for part in text.split(",") if part.strip()]
        return TypeAdapter(parameter.hint).validate_python(text)
    except ValidationError as error:
        message = f"{describe_fault(flag_of(parameter), error)} See --help."
    except ValueError as error:
        message = f"{flag_of(parameter)} is not JSON ({error}). See --help for an example."
    raise UserError("cli.invalid_argument", message)


def _read(path: str, parameter: Parameter) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{flag_of(parameter)} {path} cannot be read ({error}). Give a text file."
        raise UserError("cli.unreadable_file", message) from None


def _options(parameter: Parameter, parsed: Json) -> Any:
    model = parameter.kind.model
    assert model is not None
    flags: Json = {}
    for one in fields_of(model):
        value = parsed.get(one.name, _UNSET)
        if value is not _UNSET:
            splits = one.is_list and value not in one.words
            flags[one.name] = _parse(one, value) if splits else value
    if model is not Recipe:
        return make_options(model, flags, parameter.name)
    source = parsed.get("recipe", _UNSET)
    recipe = {} if source is _UNSET else read_recipe(source).model_dump(exclude_unset=True)
    return make_options(Recipe, recipe | flags).model_dump(exclude_unset=True)


def _prompts(parsed: Json) -> list[str]:
    from peft_space.evaluation.prompts import read_prompts

    typed, files = parsed.get("prompt", _UNSET), parsed.get("prompts", _UNSET)
    prompts = [] if typed is _UNSET else list(typed)
    for file in [] if files is _UNSET else files:
        prompts += read_prompts(file)
    if not prompts:
        raise UserError(
            "cli.missing_prompt",
            "There is no prompt. Give one with --prompt TEXT, or a file with --prompts FILE.",
        )
    return prompts


# Training


def _make_and_train(arguments: Json) -> Json:
    """Create a run and train it in the foreground."""
    from peft_space.data.dataset import notes_on_data
    from peft_space.runtime.supervisor import make_and_train

    names = ("directory", "data", "recipe", "held_out", "column_mapping")
    request = {name: arguments[name] for name in names} | {"recipe": arguments["recipe"] or {}}
    report_to = arguments["report_to"] or settings.report_to()

    def watch(run: Run) -> contextlib.AbstractContextManager[None]:
        for note in notes_on_data(run):
            print(note, file=sys.stderr)
        return _watch_training(run)

    run, outcome = make_and_train(request, watch, report_to)
    return _outcome(run, outcome) | {"notes": notes_on_data(run)}


@contextlib.contextmanager
def _watch_training(run: Run) -> Iterator[None]:
    with _stop_on_interrupt(run), print_events(run):
        yield


def _outcome(run: Run, outcome: events.Ended) -> Json:
    step = outcome.model_dump().get("step")
    return {"run": str(run.directory), "outcome": outcome.event, "step": step}


def _resume(run: Run, arguments: Json) -> Json:
    """Train a run in the foreground from its newest checkpoint."""
    from peft_space.runtime.supervisor import halve_max_length_of, supervise_training

    directory = str(run.directory)
    with run.lock() as lock:
        if run.status() == "finished":
            return {"run": directory, "outcome": "Finished"}
        if run.status() != "queued":
            run.clear_stop_request()  # left by a process that was killed
        run.truncate_partial_event()
        if arguments.get("halve_max_length"):
            halve_max_length_of(run)
        ignore_mismatch = arguments.get("ignore_mismatch", False)
        report_to = arguments["report_to"] or settings.report_to()
        with _watch_training(run):
            outcome = supervise_training(run, lock, ignore_mismatch, report_to)
    return _outcome(run, outcome)


@contextlib.contextmanager
def _stop_on_interrupt(run: Run) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks the training to save and stop; a second one ends it."""

    def ask(number: int, frame: Any) -> None:
        print("Saving and stopping after this step; repeat to stop at once.", file=sys.stderr)
        run.request_stop("stop")
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def progress_printer() -> Callable[[dict[str, Any]], None]:
    """Return a function that prints what an operation is doing, each line once."""
    last = ""

    def report(progress: dict[str, Any]) -> None:
        nonlocal last
        share = f"{progress['share']:4.0%} " if "share" in progress else ""
        line = f"{share}{progress.get('what', '')}"
        if "what" in progress and line != last:
            print(line, file=sys.stderr)
            last = line

    return report


@contextlib.contextmanager
def print_events(run: Run) -> Iterator[None]:
    """Print the events of a run while they are written."""
    ended = threading.Event()
    start = len(run.history())

    def follow() -> None:
        num_printed = start
        while True:
            last_round = ended.wait(1.0)
            history = run.history()
            for event in history[num_printed:]:
                print(_describe(event), file=sys.stderr)
            num_printed = len(history)
            if last_round:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _describe(event: events.Event) -> str:
    match event:
        case events.Step():
            return f"step {event.step}: loss {event.loss:.4f}, {event.seconds:.2f} s"
        case events.Evaluated():
            return f"step {event.step}: loss on held-out rows {event.loss:.4f}"
        case events.SampleAnswers():
            first = event.answers[0]
            answer, expected = (
                textwrap.shorten(text, 40) for text in (first.answer, first.expected)
            )
            return f"step {event.step}: row {first.row}, answer {answer!r}, expected {expected!r}"
        case events.Started():
            return f"started at step {event.from_step} of {event.total_steps}"
        case events.Preparing():
            return f"{event.what} …"
        case events.Notice():
            return f"{event.what} {event.why}"
        case events.Warned():
            return f"step {event.step}: {event.what} {event.advice}"
        case events.CheckpointSelected():
            return f"the adapter of step {event.step} is selected: {event.why}"
        case events.Checkpointed():
            return f"step {event.step}: checkpoint written"
        case events.SubmittedToJob():
            return f"submitted to the job {event.address}"
        case _:
            return event.event.lower()


def wait_and_resume() -> int:
    """Wait for a training and run it, as `supervisor.keep_standby` asks for. Returns the status."""
    from peft_space.runtime.supervisor import wait_for_training

    settings.prepare_libraries()
    arguments = wait_for_training()
    return main(arguments) if arguments else 0


if __name__ == "__main__":
    sys.exit(wait_and_resume())
