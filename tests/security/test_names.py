"""Names that try to be a shell's, YAML's, Markdown's, HTML's, SQL's or a Modelfile's own words stay names, wherever they are written."""

import csv
import dataclasses
import html
import io
import re
import shlex
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from peft_space.data.dataset import load_dataset
from peft_space.errors import UserError
from peft_space.evaluation.blind_vote import _FIELDS, as_csv
from peft_space.export.export import zip_of
from peft_space.export.model_card import card_text
from peft_space.export.ollama import modelfile
from peft_space.export.serving_support import AdapterTraits, commands
from peft_space.formatting import code, code_block
from peft_space.hub import push as hub_push
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from peft_space.web.render import compare as render_compare
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview
from tests.fixtures.plans import PLAN

SHELL = [
    "; rm -rf ~",
    "$(touch canary)",
    "`touch canary`",
    "a && touch canary",
    "a | tee canary",
    "> canary",
    "'; touch canary; '",
    '"; touch canary; "',
    "a\ntouch canary",
    "${IFS}touch${IFS}canary",
    "-rf",
    "--help",
    "~root",
    "*",
    "a\\",
    "!!",
    "a\rb",
    "$HOME",
    "<(id)",
    "a\x1b[2J",
]
YAML = [
    "a: b",
    "- a",
    "# a",
    "a\n---\nlicense: mit",
    "\n---\n",
    "...",
    "!!python/object/apply:os.system [id]",
    "&a *a",
    "{a: b}",
    "[a",
    "null",
    "true",
    "1e3",
    "0x10",
    "2024-01-01",
    "%YAML 1.2",
    "@a",
    "? a",
    "|",
    ">",
    "a'b\"c",
    "👩‍💻",
    "\u2028a",
    "\x85a",
    "no",
]
MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</pre><script>1</script>",
    "&lt;b&gt;",
    "<!-- a",
    "]]>",
    "<svg/onload=alert(1)>",
    "[a](javascript:alert(1))",
    "![a](http://example.com/x.png)",
    "# a",
    "**a**",
    "```\n<b>a</b>",
    "````",
    "a\n\n# b",
    "| a | b |",
    "$$x$$",
    "~~~",
    "<http://example.com>",
    "> a",
    "1. a",
    "a`b``c",
    "&#60;b&#62;",
    '"><b>',
    "<a href='//example.com'>",
]
TABLE = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    '=HYPERLINK("http://example.com")',
    "\t=1",
    '"a","b"',
    "a;b",
]
MODELFILE = [
    '"""',
    '"""\nADAPTER /etc/passwd\nSYSTEM """',
    "a\nFROM /etc/passwd",
    'a"',
    'a""',
    "{{ .System }}",
    '{{ "a" }}',
    "\nPARAMETER stop a",
    "a\\",
    "../a",
]
NAMES = [*SHELL, *YAML, *MARKUP, *TABLE, *MODELFILE]


def html_of(text):
    return (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .enable("strikethrough")
        .render(text)
    )


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, *attributes))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def data():
    return load_dataset("demo", 0.1, 0)


def as_words(text):
    return re.sub(r"\s+", " ", text).strip()


def test_a_card_says_the_same_whatever_its_run_base_and_data_are_called(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    usual = None
    for number, name in enumerate(["plain", *NAMES]):
        recipe = Recipe(lora_rank=128, high_rank_reason=name)
        run = Run.create(folder / str(number), recipe, data.files(), name=name)
        plan = PLAN.model_copy(
            update={"base_name": name, "base_on_hub": True, "target_modules": [name]}
        )
        card = card_text(run, dataclasses.replace(data, source=name), plan)
        assert ModelCard(card).data.to_dict()["base_model"] == name
        page = Tags(html_of(render_overview.card_markdown(card, {})))
        headings = [tag for tag in page.found if tag[0].startswith("h")]
        usual = usual or headings
        assert headings == usual, name
        assert not [tag for tag in page.found if tag[0] in ("script", "img", "svg", "b", "a")], name
        assert (
            f"# {as_words(name)} A LoRA adapter for" in f"# {as_words(html.unescape(page.text))}"
            or name.strip() == ""
            or "&" in name
        ), name


def test_front_matter_is_read_as_it_was_meant():
    for name in NAMES:
        text = (
            "---\n"
            + yaml.safe_dump(
                {"base_model": name, "tags": [name]},
                sort_keys=False,
                default_flow_style=None,
                width=float("inf"),
            )
            + "---"
        )
        assert yaml.safe_load(text.split("---\n", 1)[1].rsplit("---", 1)[0]) == {
            "base_model": name,
            "tags": [name],
        }


def test_names_are_shown_as_text():
    for name in NAMES:
        line = " ".join(name.split())
        shown = Tags(html_of("x " + render_overview.escape(line)))
        assert [tag for tag, *_ in shown.found] == ["p"], name
        assert shown.text.strip() == f"x {line}".strip(), name
        coded = Tags(html_of(f"x {code(name)} y"))
        assert [tag for tag, *_ in coded.found] == ["p", "code"], name
        block = Tags(html_of(code_block(name, "text")))
        assert [tag for tag, *_ in block.found] == ["pre", "code"], name
        row = {
            "prompt": name,
            "base": name,
            "adapter": name,
            "rendered": name,
            "chances": {"base": {name: 1.0}, "adapter": {name: 1.0}},
        }
        for markup in (
            render_compare.answers_html([row]),
            render_data.example_html({"row": 1, "tokens": [[name, True]], "cut": 0, "label": name}),
        ):
            assert not {tag for tag, *_ in Tags(markup).found} & {
                "script",
                "img",
                "svg",
                "b",
                "a",
            }, name


def test_commands_are_words_that_a_shell_reads_back():
    traits = AdapterTraits(
        "causal-lm", "llama", 8, False, False, (), ("q_proj",), True, False, "none"
    )
    for name in NAMES:
        shell, _ = render_overview.commands(
            name, name, {"columns": {"prompt": name}}, Recipe(base_model=name)
        )
        words = shlex.split(shell)
        assert words[:4] == ["python", "-m", "peft_space", "train"]
        assert (
            words[4] == (name if name.startswith("hf:") else name.rsplit("/", 1)[-1]) or "/" in name
        )
        for command in commands(
            "adapter", "adapter", tmp(name), traits, name, name, "float32"
        ).values():
            parts = shlex.split(command)
            assert name in parts, command


def tmp(name):
    return Path("/somewhere") / name.strip("/.").replace("..", "_")


def test_a_modelfile_has_the_same_instructions_whatever_is_in_it(tokenizer):
    usual = instructions(modelfile(tokenizer, None, "model.gguf", system="Be brief."))
    for name in NAMES:
        if name.strip():
            try:
                assert (
                    instructions(modelfile(tokenizer, None, "model.gguf", system=name)) == usual
                ), name
            except UserError as error:
                assert "three quotation marks" in str(error)  # noqa: PT017
        for files in ({"model": name}, {"model": "model.gguf", "adapter": name}):
            try:
                assert len(instructions(modelfile(tokenizer, None, **files))) in (4, 5, 6)
            except UserError as error:
                assert "cannot name the file" in str(error)  # noqa: PT017


def instructions(text):
    """The first word of each instruction, as Ollama reads it: three quotation marks open a text, the next three end it."""
    outside = re.sub(r'"""(.*?)"""', "text", text, flags=re.DOTALL)
    assert '"""' not in outside
    return [
        line.split()[0]
        for line in outside.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def test_an_archive_lies_where_it_is_made(tmp_path, data):
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number) / "out"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        run = Run.create(tmp_path / str(number) / "run", Recipe(), {}, name=name)
        path = zip_of(folder, run, "adapter")
        assert path.parent == folder.parent
        assert re.fullmatch(r"[\w.-]+-adapter\.zip", path.name)
        assert zipfile.ZipFile(path).namelist() == ["adapter/adapter_config.json"]


def test_a_hostile_repository_name_is_rejected_before_anything_is_sent(tmp_path):
    run = Run.create(tmp_path / "run", Recipe(), {})
    for name in NAMES:
        for repo in (name, f"maria/{name}", f"{name}/adapter"):
            with pytest.raises(UserError) as error:
                hub_push.push(run, repo, "hf_x")
            assert error.value.code in ("hub.invalid_name", "runs.no_adapter")


def test_a_table_of_votes_has_no_formulas():
    rows = [dict.fromkeys(_FIELDS, name) for name in NAMES]
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert len(read) == len(NAMES)
    for name, row in zip(NAMES, read, strict=True):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())
        assert {cell.removeprefix("'") for cell in row.values()} == {name.removeprefix("'")}


def test_there_are_eighty():
    assert len(set(NAMES)) >= 80
