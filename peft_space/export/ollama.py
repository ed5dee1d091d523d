"""A Modelfile for Ollama: which files, the chat template, where an answer ends, and how tokens are drawn, as the tokenizer and the model say."""

import re
from typing import Any

from peft_space.data.tokenization.chat_template import load_chat_template
from peft_space.data.tokenization.render import stop_token_ids
from peft_space.errors import UserError
from peft_space.export.go_template import around, go_template

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def modelfile(
    tokenizer: Any, generation: Any, model: str, adapter: str | None = None, system: str = ""
) -> str:
    """The text of the Modelfile.

    Args:
        generation: the model's GenerationConfig, None where it has none.
        model, adapter: names of the GGUF files beside it.
        system: a system message for conversations without one.

    Raises UserError where the chat template or the system message cannot be written.
    """
    for file in (model, adapter):
        if file is not None and not _FILE.fullmatch(file):  # whatever else it could be read as
            raise UserError(
                "todo",
                f"A Modelfile cannot name the file {file!r}. Name it with letters, digits, dots and dashes.",
            )
    lines = [f"# {note}" for note in notes(tokenizer)] + [f"FROM ./{model}"]
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    template = go_template(tokenizer)
    assert '"""' not in template, "quotation marks in it are escaped"
    lines.append(f'TEMPLATE """{template}"""')
    if system.strip():
        lines.append(f'SYSTEM """{_quotable(tokenizer, system)}"""')
    stops = [tokenizer.convert_ids_to_tokens(stop) for stop in stop_token_ids(tokenizer)]
    # where a token cannot be quoted the model file itself still says that it ends an answer
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if not re.search(r'["\r\n]', stop)]
    return (
        "\n".join(
            [
                *lines,
                *(f"PARAMETER {name} {value:g}" for name, value in _drawing(generation).items()),
            ]
        )
        + "\n"
    )


def notes(tokenizer: Any) -> list[str]:
    """In what Ollama's template is not the tokenizer's, a line each."""
    template = load_chat_template(tokenizer)
    told = []
    if "strftime_now" in template.template:
        told.append(
            "The model's template writes the date of the day; here it is the day of the export."
        )
    if around(tokenizer).system is None:
        told.append("The model's template takes no system message; one that is given is left out.")
    if " q7x " not in template.write([{"role": "user", "content": " q7x "}], None, prompt=True):
        told.append("The model's template strips white space around a message; here it stays.")
    return told


def _quotable(tokenizer: Any, system: str) -> str:
    if around(tokenizer).system is None:
        raise UserError(
            "todo",
            "This model's chat template takes no system message. Leave it out, and write it into the first question.",
        )
    if '"""' in system:
        raise UserError(
            "todo",
            'A Modelfile cannot have three quotation marks (""") within a system message. Write them otherwise.',
        )
    return (
        f"{system} " if system.endswith('"') else system
    )  # a fourth quotation mark would be read as one of the three


def _drawing(generation: Any) -> dict[str, float]:
    """Ollama's parameters. Its own penalty for repeating, which no comparison here has, is switched off where the model asks for none."""
    values = {"repeat_penalty": getattr(generation, "repetition_penalty", None) or 1.0}
    if not getattr(generation, "do_sample", False):
        return {"temperature": 0.0, **values}
    drawn = {
        name: getattr(generation, name, None) for name in ("temperature", "top_p", "top_k", "min_p")
    }
    return {name: value for name, value in drawn.items() if value is not None} | values
