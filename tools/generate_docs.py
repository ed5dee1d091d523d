"""Writes the parts of the documentation that the code determines: `python tools/generate_docs.py`.

Each part is between `<!-- generated: NAME -->` and `<!-- end -->`. A test checks that they are
current.
"""

import ast
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def file_tree() -> str:
    """The modules of the package, each with the first line of its docstring."""
    lines = []
    package = ROOT / "peft_space"
    for path in sorted(package.rglob("*.py"), key=lambda path: (path.parent.parts, path.name)):
        depth = len(path.relative_to(ROOT).parts) - 1
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")
        if path.name == "__init__.py":
            lines.append(f"{'  ' * (depth - 1)}{path.parent.name + '/':<26} {summary[0]}")
        else:
            lines.append(f"{'  ' * depth}{path.name:<26} {summary[0]}")
    return "\n".join(["```", *lines, "```"])


def commands() -> str:
    """Every command of the command line, with its required arguments and its help."""
    from peft_space.cli.main import usage_of
    from peft_space.operations.registry import operations_on

    rows = [(f"`{usage_of(one)}`", one.help) for one in operations_on("cli")]
    return _table(("command", "what it does"), rows)


def endpoints() -> str:
    """Every endpoint of the API with its arguments, and the fields of their settings."""
    from peft_space.operations.registry import operations_on
    from peft_space.web.api_arguments import endpoint_parameters

    parts: list[str] = [_ABOUT_OWNERS]
    models: dict = {}
    for group, operations in itertools.groupby(operations_on("api"), lambda one: one.group):
        parts.append(f"### {group.capitalize()}")
        for operation in operations:
            shown = endpoint_parameters(operation)
            models |= {one.kind.model.__name__: one.kind.model for one in shown if one.kind.model}
            rows = [_argument(one) for one in shown if one.name != "owner"]
            arguments = _table(_ARGUMENTS, rows) if rows else ""
            parts += [f"**/{operation.name}** — {operation.help}", arguments]
    parts.append("**/upload_text** — Upload data as text, if no file can be uploaded.")
    models.pop("Recipe", None)
    for name, model in models.items():
        parts += [f"### {name}", _settings(model)]
    return "\n\n".join(filter(None, parts))


def recipe_fields() -> str:
    """The fields of a recipe."""
    from peft_space.recipe import Recipe

    return _settings(Recipe)


def error_codes() -> str:
    """Every error code with its cause and fix."""
    from peft_space.error_codes import CODES

    rows = [(f"`{code}`", *about) for code, about in sorted(CODES.items())]
    return _table(("code", "cause", "fix"), rows)


_ABOUT_OWNERS = (
    "Every endpoint with a `run` also takes `owner`, the secret that /train returned. So do "
    "/train, /import_adapter, /restore and /list."
)
_ARGUMENTS = ("argument", "type", "default", "meaning")


def data_formats() -> str:
    """Every format of rows: an example, how it is read, and who writes it."""
    from data_formats import FORMATS

    from peft_space.data.messages import shown_text
    from peft_space.data.restructuring import form_of
    from peft_space.data.row_normalization import normalize_record, to_json
    from peft_space.data.schema_detection import detect_schema

    rows = []
    for name, (who, row) in FORMATS.items():
        form = form_of([row])
        _, first = next(form.convert(iter([(1, row)]))) if form else (1, row)
        mapping = detect_schema(name, list(first), [first] * 12)[0]
        read = json.loads(to_json(normalize_record(1, first, mapping)))
        del read["kind"]
        shown = (shown_text(json.dumps(one, ensure_ascii=False)) for one in (row, read))
        example, result = (text.replace("|", "\\|") for text in shown)
        rows.append((name, f"`{example}`", f"`{mapping.schema}`: `{result}`", who))
    return _table(("format", "one row", "how it is read", "who writes it"), rows)


def _argument(parameter) -> tuple[str, str, str, str]:
    model = parameter.kind.model
    kind = parameter.describe_type()
    if model and model.__name__ == "Recipe":
        kind = "object: [fields](recipe.md)"
    elif model:
        kind = f"object: [fields](#{model.__name__.lower()})"
    is_empty = parameter.required or parameter.default in (None, "")
    default = "" if is_empty else f"`{parameter.default}`"
    return f"`{parameter.name}`", kind, default, parameter.help


def _settings(model) -> str:
    from peft_space.operations.registry import fields_of

    return _table(("field", "type", "default", "meaning"), map(_argument, fields_of(model)))


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def benchmarks() -> str:
    """The newest result of each claim that benchmarks/ checks."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.claims import table

    return table()


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/commands.md": {"commands": commands},
    "docs/data-formats.md": {"data formats": data_formats},
    "docs/api.md": {"endpoints": endpoints},
    "docs/architecture.md": {"file tree": file_tree},
    "docs/recipe.md": {"recipe fields": recipe_fields},
    "docs/troubleshooting.md": {"error codes": error_codes},
    "docs/benchmarks.md": {"benchmarks": benchmarks},
}
"""Document -> name of the part -> the function that writes it."""


def updated(document: str) -> str:
    """The text of a document with its generated parts written anew.

    Raises:
        ValueError: a part is not marked in the document.
    """
    text = (ROOT / document).read_text(encoding="utf-8")
    for name, write in PARTS[document].items():
        begin, end = f"<!-- generated: {name} -->\n", "\n<!-- end -->"
        if begin not in text:
            raise ValueError(f"{document} has no part {name!r}")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}{write()}{end}{rest.split(end, 1)[1]}"
    return text


def main() -> None:
    """Write every generated part."""
    sys.path.insert(0, str(ROOT))
    for document in PARTS:
        (ROOT / document).write_text(updated(document), encoding="utf-8")


if __name__ == "__main__":
    main()
