"""What can be written on the command line: every command with its arguments and their help."""

import argparse
import inspect
from collections.abc import Callable

from peft_space.cli import planning, remote, results, training
from peft_space.cli.output import Show

_DATA = "a data file, several that are joined, a dataset on the Hub as hf://datasets/OWNER/NAME@REVISION?config=C&split=S, or demo"
_READING = """how to read the columns and what to mend, as JSON: {"schema": "question_answer", "columns": {"question": "q", "answer": "a"},
"fixes": ["deduplicate"]}; {} leaves it to be recognised, and `check` shows what was"""


def parser() -> argparse.ArgumentParser:
    """What can be written on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m peft_space",
        description="Train a LoRA adapter on your data, compare it with its base, publish it.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Callable[[argparse.Namespace, Show], None]) -> argparse.ArgumentParser:
        about = inspect.getdoc(command)
        subparser = subparsers.add_parser(
            command.__name__.replace("_", "-"), help=about, description=about
        )
        subparser.set_defaults(command=command)
        subparser.add_argument(
            "--json", action="store_true", help="print one JSON object and nothing else"
        )
        return subparser

    command = add(planning.check)
    command.add_argument("data", metavar="DATA", nargs="+", help=_DATA)
    command.add_argument("--column-mapping", default="{}", help=_READING)
    command.add_argument(
        "--model", help="a base model: also render the rows for it and count tokens"
    )

    command = add(planning.advise)
    _add_data(command, recipe="what is chosen already: a JSON file, or JSON itself")

    _add_data(add(planning.estimate))
    _add_data(add(planning.dry_run))

    command = add(planning.study)
    _add_data(command)
    command.add_argument("--ranks", default="2,4,8,16,32,64", help="with commas between them")

    command = add(training.train)
    _add_data(command, several="*")
    command.add_argument("--out", metavar="RUN_DIR", help="the new run's folder")
    command.add_argument("--resume", metavar="RUN_DIR", help="go on with this run")
    command.add_argument(
        "--later",
        action="store_true",
        help="only make the run: `script`, `job` and `train --resume` take it",
    )
    command.add_argument(
        "--shorter",
        action="store_true",
        help="with --resume, where memory did not do: cut rows off at half their length",
    )
    command.add_argument(
        "--ignore-mismatch",
        "--anyway",
        dest="anyway",
        action="store_true",
        help="with --resume: also where rows, recipe or libraries have changed since",
    )
    command.add_argument(
        "--report-to", metavar="TOOL", action="append", choices=["tensorboard", "trackio", "wandb"], default=[],
        help="also tell the losses to tensorboard, trackio or wandb, where that is installed; may be given several times",
    )  # fmt: skip

    command = add(training.adopt)
    command.add_argument("adapter", metavar="ADAPTER", help="a folder, a .zip of one, or a Hub id")
    _add_data(command, recipe="choices for training it further; {} is all defaults")
    command.add_argument("--out", required=True, metavar="RUN_DIR", help="the new run's folder")

    _add_compare(add(results.compare))

    command = add(results.evaluate)
    command.add_argument("run", metavar="RUN_DIR")

    command = add(results.votes)
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--csv", metavar="FILE", help="also write the votes as a table")

    command = add(results.compress)
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--out", required=True, metavar="DIR")
    command.add_argument("--rank", type=int, help="without it, the rank that the adapter uses")

    command = add(results.export)
    command.add_argument("--out", required=True, metavar="DIR")
    _add_what(command)
    _add_elsewhere(add)
    return parser


def _add_elsewhere(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What goes to other machines and to the Hub."""
    command = add(remote.script)
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--out", default="train.py", metavar="FILE.py")

    command = add(remote.job)
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument(
        "--flavor", metavar="F", help="hand the run over to a job with this hardware"
    )
    command.add_argument(
        "--timeout",
        default="",
        metavar="2h",
        help="after which the job is ended; without it, the estimate with a margin",
    )
    command.add_argument(
        "--follow", action="store_true", help="go on telling how it goes until it is over"
    )
    command.add_argument(
        "--cancel",
        action="store_true",
        help="end the job; training can go on from its last checkpoint",
    )

    command = add(results.push)
    command.add_argument("--repo", required=True, metavar="OWNER/NAME")
    command.add_argument("--public", action="store_true")
    command.add_argument(
        "--card", metavar="FILE", help="a README in place of the one that is written from the run"
    )
    _add_what(command)

    command = add(remote.save)
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument("--repo", required=True, metavar="OWNER/NAME")

    command = add(remote.take_up)
    command.add_argument("repo", metavar="OWNER/NAME")
    command.add_argument("--out", required=True, metavar="RUN_DIR", help="the new run's folder")

    command = add(remote.deploy)
    command.add_argument("space", metavar="OWNER/SPACE")
    command.add_argument(
        "--hardware",
        metavar="H",
        help="zero-a10g, t4-small, … as the Hub names it; without it, what the Space has",
    )
    command.add_argument(
        "--public",
        action="store_true",
        help="everybody can see a new Space; otherwise only you can",
    )

    command = add(remote.smoke)
    command.add_argument(
        "url",
        metavar="URL",
        help="of the page, or OWNER/SPACE; for a private one the token is HF_TOKEN, or this machine's",
    )


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    command.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of prompts; may be given several times",
    )
    command.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="WHAT",
        help="checkpoint-N, or another RUN_DIR on the same base, that answers too",
    )
    command.add_argument(
        "--system", default="", metavar="TEXT", help="a system message before each prompt"
    )
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token always"
    )
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=0)


def _add_data(
    command: argparse.ArgumentParser,
    several: str = "+",
    recipe: str = "a JSON file, or JSON itself; {} is all defaults",
) -> None:
    """What is said of data and recipe wherever something is made of both."""
    command.add_argument("data", metavar="DATA", nargs=several, help=_DATA)
    command.add_argument("--column-mapping", default="{}", help=_READING)
    command.add_argument(
        "--held-out",
        metavar="DATA",
        help="rows to score on; without it a share of DATA is kept from training",
    )
    command.add_argument("--recipe", default="{}", help=recipe)


def _add_what(command: argparse.ArgumentParser) -> None:
    """What is exported or pushed."""
    command.add_argument("run", metavar="RUN_DIR")
    command.add_argument(
        "--target", "--as", choices=["adapter", "merged", "gguf", "ollama"], default="adapter",
        help="the adapter alone, or merged into its base, for engines that take no adapter; gguf: for llama.cpp; ollama: with a Modelfile",
    )  # fmt: skip
    command.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default="bfloat16",
        help="of the merged model",
    )
    command.add_argument(
        "--merge-into", choices=["full", "dequantized"],
        help="where the base was quantized in training: its full precision, or the numbers that the adapter was trained on (default)",
    )  # fmt: skip
    command.add_argument(
        "--numbers", choices=["f32", "f16", "q8_0"], default="f16", help="of GGUF files"
    )
    command.add_argument(
        "--apart",
        action="store_true",
        help="base and adapter as GGUF files of their own, instead of one of the merged model",
    )
    command.add_argument(
        "--system",
        default="",
        metavar="TEXT",
        help="for ollama: a system message for conversations without one",
    )
    command.add_argument(
        "--insist",
        action="store_true",
        help="keep it also where it is proven not to answer as the adapter does",
    )
