"""The house rules: import order, names, lengths, error codes, English and generated documents."""

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import generate_docs
import pytest

from peft_space.error_codes import CODES
from tests.update_messages import SNAPSHOT, raise_sites, snapshot

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peft_space"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [
    ROOT / "app.py",
    *MODULES,
    *(
        path
        for folder in ("benchmarks", "tools", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ),
]
PROSE = [
    *(path for path in ROOT.glob("*.md")),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / ".github").rglob("*.md"),
]
HEAVY_LIBRARIES = {"torch", "transformers", "peft", "datasets", "trl"}

MAX_MODULES = 190
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}
MAX_LINES, MAX_P90_LINES, MAX_MEDIAN_LINES = 80, 30, 10
"""Limits of the length of a function, in lines with its signature and docstring."""
MAX_PAGE_LINES = 300
"""Lines of a file in web/."""
MAX_TEST_NAME = 80

FOREIGN_ENGLISH = [
    r"(?<!here )\bis no (?!longer\b)\w",
    r"\bWhoever\b",
    r"\bbeside\b",
    r"\bgoes on\b",
    r"\bgone on with\b",
    r"\b(is|are|was|be) told\b",
    r"\btaken? up\b",
    r"\bin words\b",
    r"\bof (its|their|his|one's) own\b",
    r"\bin vain\b",
    r"\bcomes to lie\b",
    r"\bKnows (no|nothing)\b",
    r"\b(rows|files|data|weights|runs) (lie|lies|stand)\b",
    r"\bfault of the app\b",
    r"\bWhether\b(?![^.]*\?)",
]
"""Word-for-word translations that plain American English does not have."""
ALLOWED_ENGLISH: set[tuple[str, str]] = set()
"""(file or folder, part of the line): matches that are right, such as a quotation."""
NO_SENTENCES = {"peft_space/demo"}
"""Folders whose strings are data."""


# --- imports ---------------------------------------------------------------------------------


def layers():
    """Package or module -> its line in the import block of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split("```imports\n")[1].split("```")[0]
    return {
        name: number
        for number, line in enumerate(block.strip().splitlines())
        for name in line.split()
    }


def package_of(path):
    """The top-level package or module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path, top_level_only=False):
    """Names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = []
    for node in tree.body if top_level_only else ast.walk(tree):
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
@pytest.mark.sample(61)
def test_imports_run_one_way(path):
    layer, own = layers(), package_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "peft_space" and len(parts) > 1 and parts[1] in layer:
            where = f"{path.relative_to(ROOT)} imports {name}"
            assert layer[parts[1]] <= layer[own], where
            both_packages = (PACKAGE / parts[1]).is_dir() and (PACKAGE / own).is_dir()
            if both_packages and parts[1] != own:
                assert layer[parts[1]] < layer[own], where
        if parts[0] == "gradio":
            assert own in ("web", "compat"), path
        if parts[0] == "spaces":
            assert own == "compat" or path == PACKAGE / "runtime" / "zerogpu.py", path


def test_every_package_has_a_layer_and_every_layer_exists():
    assert {package_of(path) for path in MODULES} - {"__init__"} == set(layers())


COMPUTING = ("batches.py", "label_scorer.py", "packing.py")
"""Modules that are made of tensors. Those around them import them inside functions."""


def test_nothing_below_models_imports_torch_at_import_time():
    layer = layers()
    for path in MODULES:
        own = package_of(path)
        below = own not in ("__init__", "demo") and layer[own] <= layer["models"]
        light = below and path.name not in COMPUTING
        if light or own in ("operations", "runtime", "web", "cli", "__main__"):
            imported = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
            assert not imported & HEAVY_LIBRARIES, path.relative_to(ROOT)


def test_the_page_imports_no_torch():
    code = (
        "import sys, peft_space.web.app;"
        "print([n for n in ('torch', 'transformers', 'peft', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


# --- names and lengths -----------------------------------------------------------------------


def test_there_are_at_most_190_modules():
    assert len([path for path in MODULES if path.name != "__init__.py"]) <= MAX_MODULES


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.sample(152)
def test_no_module_is_named_utils_or_manager(path):
    assert path.stem not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES


def functions():
    """(length in lines, place) of every function of the package."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                yield length, f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({length} lines)"


def test_files_of_the_page_are_short():
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in (PACKAGE / "web").rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_PAGE_LINES}


def test_functions_are_short():
    measured = sorted(functions(), reverse=True)
    lengths = [length for length, _ in measured]
    assert not [place for length, place in measured if length > MAX_LINES]
    longest_tenth = [place for _, place in measured[: len(measured) // 10]]
    assert statistics.quantiles(lengths, n=10)[-1] <= MAX_P90_LINES, longest_tenth
    assert statistics.median(lengths) <= MAX_MEDIAN_LINES


def test_names_of_tests_are_short_claims():
    names = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > MAX_TEST_NAME
    ]
    assert not names, "\n".join(names)


def test_every_module_has_a_docstring_whose_first_line_is_short():
    for path in MODULES:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, path
        assert len(text.splitlines()[0]) <= 100, path


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_raised_code_is_listed_and_every_listed_code_is_raised():
    sites = raise_sites()
    unlisted = [f"{site.place}: {site.code}" for site in sites if site.code not in CODES]
    assert not unlisted, "\n".join(unlisted)
    literals = {
        node.value
        for path in MODULES
        if path.name != "error_codes.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert not set(CODES) - literals


@pytest.mark.slow
def test_no_error_code_is_provisional():
    places = [site.place for site in raise_sites() if site.code == "todo"]
    assert not places, "\n".join(places)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.sample(125)
def test_every_code_names_an_area_and_has_a_cause_and_a_fix(code):
    assert re.fullmatch(
        r"(data|recipe|models|training|evaluation|planning|export|hub|runs|runtime|operations|cli"
        r"|web|machine)\.[a-z0-9_]+",
        code,
    )
    cause, fix = CODES[code]
    assert cause[0].isupper() or cause.startswith("llama.cpp "), cause
    assert cause.endswith("."), cause
    assert fix[0].isupper(), fix
    assert fix.endswith("."), fix


def test_the_snapshot_of_messages_is_current():
    assert SNAPSHOT.read_text(encoding="utf-8") == snapshot(), "run: make docs"


# --- English ---------------------------------------------------------------------------------


def sentences_of(path):
    """(line, text) of every docstring and string of several words in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def prose_lines_of(path):
    """(line, text) of a document without its code blocks."""
    in_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        in_code ^= line.startswith("```")
        if not in_code:
            yield number, line


def is_allowed(name, line):
    """Return True if the exceptions list this line."""
    return any(name.startswith(place) and text in line for place, text in ALLOWED_ENGLISH)


def foreign_phrases(path, lines):
    """Each place in a file where a pattern of FOREIGN_ENGLISH matches."""
    name = str(path.relative_to(ROOT))
    for number, line in lines:
        for pattern in FOREIGN_ENGLISH:
            match = re.search(pattern, line)
            if match and not is_allowed(name, line):
                yield f"{name}:{number}: {match[0]!r} in {line.strip()[:80]!r}"


def test_strings_and_docstrings_are_plain_english():
    phrases = [
        phrase
        for path in MODULES
        if not any(str(path.relative_to(ROOT)).startswith(folder) for folder in NO_SENTENCES)
        for phrase in foreign_phrases(path, sentences_of(path))
    ]
    assert not phrases, "\n".join(phrases)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_plain_english(path):
    phrases = list(foreign_phrases(path, prose_lines_of(path)))
    assert not phrases, "\n".join(phrases)


# --- documents -------------------------------------------------------------------------------


@pytest.mark.parametrize("document", generate_docs.PARTS)
@pytest.mark.sample(6)
def test_generated_parts_of_the_documentation_are_current(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text == generate_docs.updated(document), "run: make docs"


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_documents_have_at_most_100_characters(path):
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", path.read_text("utf-8"), flags=re.S)
    lines = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not lines, "\n".join(lines)


def test_the_readme_has_at_most_150_lines():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 100]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_to_files(path):
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing


def test_every_requirement_has_its_reason_next_to_it():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    assert all(re.search(r"\S\s+# \w", line) for line in lines)


def test_libraries_whose_internals_are_used_are_capped():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    capped = {re.split(r"[\[<>= ]", line)[0] for line in lines if "<" in line.split("#")[0]}
    assert capped == {
        *("gradio", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl"),
        *("huggingface-hub", "spaces"),
    }


@pytest.mark.slow
def test_usage_statistics_are_off_before_the_libraries_are_imported():
    names = ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
    code = f"import app, os; print(*(os.environ[name] for name in {names!r}))"
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean,
        check=True,
    )
    assert done.stdout.split() == ["False", "1"]
    source = (ROOT / "app.py").read_text()
    assert source.index("prepare_libraries()") < source.index("import spaces")
