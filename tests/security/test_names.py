"""Names stay plain text wherever the app writes them.

They try to be syntax of a shell, YAML, Markdown, HTML, CSV or a Modelfile.
"""

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
from peft_space.web.render import overview as render_overview
from peft_space.web.render import rows as render_rows
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
ACTIVE_TAGS = {"script", "img", "svg", "b", "a"}
"""Tags that only a name could add."""


def html_of(text):
    parser = MarkdownIt("commonmark", {"html": True})
    return parser.enable(["table", "strikethrough"]).render(text)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *attributes))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def data():
    return load_dataset("demo", 0.1, 0)


def with_single_spaces(text):
    return re.sub(r"\s+", " ", text).strip()


def test_names_do_not_change_the_structure_of_a_model_card(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    expected = None
    for number, name in enumerate(["plain", *NAMES]):
        recipe = Recipe(lora_rank=128, high_rank_reason=name)
        run = Run.create(folder / str(number), recipe, data.files(), name=name)
        fields = {"base_name": name, "base_on_hub": True, "target_modules": [name]}
        plan = PLAN.model_copy(update=fields)
        card = card_text(run, dataclasses.replace(data, source=name), plan)
        assert ModelCard(card).data.to_dict()["base_model"] == name
        page = Tags(html_of(render_overview.card_markdown(card, {})))
        headings = [tag for tag in page.tags if tag[0].startswith("h")]
        expected = expected or headings
        assert headings == expected, name
        assert not [tag for tag in page.tags if tag[0] in ACTIVE_TAGS], name
        if name.strip() and "&" not in name:
            title = f"# {with_single_spaces(name)} A LoRA adapter for"
            assert title in f"# {with_single_spaces(html.unescape(page.text))}", name


def test_front_matter_keeps_names_unchanged():
    options = {"sort_keys": False, "default_flow_style": None, "width": float("inf")}
    for name in NAMES:
        fields = {"base_model": name, "tags": [name]}
        text = f"---\n{yaml.safe_dump(fields, **options)}---"
        assert yaml.safe_load(text.split("---\n", 1)[1].rsplit("---", 1)[0]) == fields


def test_names_are_shown_as_text():
    for name in NAMES:
        line = " ".join(name.split())
        shown = Tags(html_of("x " + render_overview.escape(line)))
        assert [tag for tag, *_ in shown.tags] == ["p"], name
        assert shown.text.strip() == f"x {line}".strip(), name
        coded = Tags(html_of(f"x {code(name)} y"))
        assert [tag for tag, *_ in coded.tags] == ["p", "code"], name
        block = Tags(html_of(code_block(name, "text")))
        assert [tag for tag, *_ in block.tags] == ["pre", "code"], name
        row = dict.fromkeys(("prompt", "base", "adapter", "rendered"), name)
        row["chances"] = {"base": {name: 1.0}, "adapter": {name: 1.0}}
        example = {"row": 1, "tokens": [[name, True]], "cut": 0, "label": name}
        for markup in (render_compare.answers_html([row]), render_rows.example_html(example)):
            assert not {tag for tag, *_ in Tags(markup).tags} & ACTIVE_TAGS, name


def test_a_shell_reads_names_in_commands_as_one_word():
    traits = AdapterTraits(
        "causal-lm", "llama", 8, False, False, (), ("q_proj",), True, False, False, "none"
    )
    for name in NAMES:
        mapping, recipe = {"columns": {"prompt": name}}, Recipe(base_model=name)
        shell, _ = render_overview.commands(name, name, mapping, recipe)
        words = shlex.split(shell)
        assert words[:2] == ["peft-space", "train"]
        assert words[2] == name or "/" in name
        folder = Path("/somewhere") / name.strip("/.").replace("..", "_")
        by_engine = commands("adapter", "adapter", folder, traits, name, name, "float32")
        for command in by_engine.values():
            assert name in shlex.split(command), command


def test_names_add_no_instructions_to_a_modelfile(tokenizer):
    expected = instructions(modelfile(tokenizer, None, "model.gguf", system="Be brief."))
    for name in NAMES:
        if name.strip():
            try:
                text = modelfile(tokenizer, None, "model.gguf", system=name)
                assert instructions(text) == expected, name
            except UserError as error:
                assert error.code == "export.quotes_in_system_message"  # noqa: PT017
        for files in ({"model": name}, {"model": "model.gguf", "adapter": name}):
            try:
                assert len(instructions(modelfile(tokenizer, None, **files))) in (4, 5, 6)
            except UserError as error:
                assert error.code == "export.modelfile_file_name"  # noqa: PT017


def instructions(text):
    """The first word of each instruction, as Ollama reads it.

    Three quotation marks open a text, and the next three end it.
    """
    outside = re.sub(r'"""(.*?)"""', "text", text, flags=re.DOTALL)
    assert '"""' not in outside
    return [
        line.split()[0]
        for line in outside.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def test_an_archive_is_written_next_to_its_folder(tmp_path, data):
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


def test_there_are_at_least_eighty_names():
    assert len(set(NAMES)) >= 80
