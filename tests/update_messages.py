"""Writes tests/messages.txt: every UserError of the package, as code and message template.

Run `python tests/update_messages.py` (or `make docs`) after changing a message. A review then shows
the wording of every message in one place, and tests assert codes.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "messages.txt"
_TYPES = {"UserError"}


@dataclass(frozen=True)
class RaiseSite:
    """One place that makes a UserError."""

    place: str
    code: str
    message: str


def raise_sites() -> list[RaiseSite]:
    """Every UserError that the package makes, in the order of files and lines.

    A conditional expression as code counts as one site for each of its codes. A code that comes
    from elsewhere, such as `error.code`, is left out.
    """
    sites = []
    for path in sorted((ROOT / "peft_space").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in _TYPES and len(node.args) >= 1:
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                message = template(node.args[1]) if len(node.args) > 1 else "{…}"
                sites += [RaiseSite(place, code, message) for code in _codes(node.args[0])]
    return sites


def snapshot() -> str:
    """The text of tests/messages.txt: one sorted line per code and template."""
    lines = {f"{site.code}: {site.message}" for site in raise_sites()}
    return "\n".join(sorted(lines)) + "\n"


def template(node: ast.expr) -> str:
    """A string expression with each value that is filled in shown as `{expression}`.

    A name that is assigned elsewhere is shown as `{name}`.
    """
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.IfExp):
        return f"{template(node.body)} | {template(node.orelse)}"
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    return "{" + ast.unparse(inner).replace("\n", " ") + "}"


def _codes(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        return [*_codes(node.body), *_codes(node.orelse)]
    return []


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
