"""Writes the parts of the documentation that follow from the code: `python tools/generate_docs.py`.

Each part stands between `<!-- generated: NAME -->` and `<!-- end -->`. A test holds them current.
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def file_tree() -> str:
    """The modules of the package, each with the first sentence of its docstring."""
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


def benchmarks() -> str:
    """The newest result of each claim that benchmarks/ checks."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.claims import table

    return table()


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/architecture.md": {"file tree": file_tree},
    "docs/benchmarks.md": {"benchmarks": benchmarks},
}
"""Document -> name of the part -> what writes it."""


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
