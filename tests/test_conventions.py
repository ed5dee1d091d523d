"""The house stands as its plans say: who imports whom, what the page brings along, and the README's file tree."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import generate_docs
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peft_space"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def floors():
    block = (ROOT / "docs" / "architecture.md").read_text().split("```imports\n")[1].split("```")[0]
    return {
        room: floor
        for floor, line in enumerate(block.strip().splitlines())
        for room in line.split()
    }


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path, top_level_only=False):
    """Names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path != PACKAGE / "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_run_one_way(path):
    floor, own = floors(), room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "peft_space" and len(parts) > 1 and parts[1] in floor:
            where = f"{path.relative_to(ROOT)} imports {name}"
            assert floor[parts[1]] <= floor[own], where
            packages = (PACKAGE / parts[1]).is_dir() and (PACKAGE / own).is_dir()
            if packages and parts[1] != own:
                assert floor[parts[1]] < floor[own], where
        if parts[0] == "gradio":
            assert own in ("web", "compat")
        if parts[0] == "spaces":
            assert path == PACKAGE / "runtime" / "zerogpu.py"


def test_every_room_has_a_floor_and_every_floor_is_inhabited():
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms == set(floors())


def test_nothing_below_models_imports_torch_at_import_time():
    floor = floors()
    for path in MODULES:
        below = (
            room_of(path) != "__init__"
            and floor[room_of(path)] <= floor["models"]
            and room_of(path) != "demo"
            and path.name != "batches.py"
        )
        if below or room_of(path) in ("operations", "runtime", "web", "cli", "__main__"):
            heavy = {name.split(".")[0] for name in imports_of(path, top_level_only=True)} & {
                "torch",
                "transformers",
                "peft",
                "datasets",
                "trl",
            }
            assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


def test_the_page_brings_no_torch_along():
    code = "import sys, peft_space.web.app; print([name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("document", generate_docs.PARTS)
def test_generated_parts_of_the_documentation_are_current(document):
    assert (ROOT / document).read_text(encoding="utf-8") == generate_docs.updated(document)


def test_every_module_says_what_it_knows():
    for path in MODULES:
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text, path
        assert len(text.splitlines()) <= 8, path


def test_every_requirement_has_its_reason_beside_it():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    assert all(re.search(r"\S\s+# \w", line) for line in lines)


def test_usage_statistics_are_off_before_the_libraries_are_imported():
    code = "import app, os; print(os.environ['GRADIO_ANALYTICS_ENABLED'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean,
        check=True,
    )
    assert done.stdout.split() == ["False", "1"]
    assert (ROOT / "app.py").read_text().index("prepare_libraries()") < (
        ROOT / "app.py"
    ).read_text().index("import spaces")
