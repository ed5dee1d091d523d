"""An export copies the adapter completely or not at all, with a card of measured figures."""

import dataclasses
import json
import shlex
import zipfile
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from peft_space import operations
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import stop_token_ids
from peft_space.errors import UserError
from peft_space.evaluation.results import Evaluation, Scores
from peft_space.export.export import export_run, make_export_spec, serving_commands
from peft_space.export.model_card import card_text, loss_svg, put_card
from peft_space.recipe import Recipe
from peft_space.runs.events import steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.training.train import _sort_lists
from tests.fixtures.digests import digests


@pytest.mark.slow
def test_an_export_copies_the_adapter_and_leaves_the_run_as_it_was(short_run, tmp_path):
    before = digests(short_run.directory)
    folder = export_run(short_run, tmp_path / "out").path
    assert digests(short_run.directory) == before
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (short_run.adapter / weights).read_bytes()


@pytest.mark.slow
def test_the_zip_contains_the_same_files_and_is_named_after_its_run(own_run, tmp_path):
    own_run.rename("Tickets, 2nd try / äöü")
    folder = export_run(own_run, tmp_path / "out").path
    result = operations.export(str(own_run.directory), str(tmp_path / "zipped"), as_zip=True)
    assert result["path"].endswith("/Tickets-2nd-try-äöü-adapter.zip")
    with zipfile.ZipFile(result["path"]) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert digests(tmp_path / "unpacked" / "adapter") == digests(folder)
    [path] = (tmp_path / "zipped").iterdir()
    assert path.name == "Tickets-2nd-try-äöü-adapter.zip"


def test_an_interrupted_export_leaves_nothing(short_run, tmp_path, monkeypatch):
    def interrupt(run, folder, *_):
        assert (folder / "adapter_model.safetensors").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("peft_space.export.export.verify_adapter", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_run(short_run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_write_into_a_folder_with_files(short_run, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        export_run(short_run, tmp_path)
    assert error.value.code == "machine.folder_not_empty"
    assert str(tmp_path) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_run_without_an_adapter_reports_its_status(tmp_path):
    run = Run.create(tmp_path / "run", Recipe(), {}, name="mine")
    with pytest.raises(UserError) as error:
        export_run(run, tmp_path / "out")
    assert "'mine'" in str(error.value)
    assert run.status() in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_does_not_name_its_base_is_rejected(own_run, tmp_path):
    path = own_run.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError) as error:
        export_run(own_run, tmp_path / "out")
    assert error.value.code == "export.adapter_without_base"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ({"target": "onnx"}, "onnx"),
        ({"dtype": "int4"}, "int4"),
        ({"merge_into": "half"}, "half"),
        ({"target": "gguf", "gguf": {"numbers": "q2"}}, "q2"),
    ],
)
def test_an_unknown_choice_is_rejected_with_its_value(choice, value):
    with pytest.raises(UserError) as error:
        make_export_spec(**choice)
    assert error.value.code == "export.invalid_choice"
    assert repr(value) in str(error.value)


@pytest.mark.slow
def test_the_card_contains_figures_of_the_run(own_run, tmp_path):
    base, adapter = Scores(1.5, 4.5, exact_match=0.0), Scores(0.05, 1.05, exact_match=0.875)
    scores = Evaluation(60, base, adapter)
    values = {"num_rows": 60, "base": vars(scores.base), "adapter": vars(scores.adapter)}
    own_run.path("scores.json").write_text(json.dumps(values))
    text = (export_run(own_run, tmp_path / "out").path / "README.md").read_text()
    last = steps_of(own_run.history())[-1]
    figures = ["87.5%", "12 steps", f"{last.tokens:,} tokens", f"{last.loss:.4f}"]
    for figure in [*figures, "300 to train, 60 held out", "peft_space/demo/model"]:
        assert figure in text, figure


def card_of(run, **data):
    changed = dataclasses.replace(load_run_data(run), **data)
    return card_text(run, changed, read_plan(run))


def test_the_front_matter_names_no_base_that_the_hub_does_not_have(short_run):
    front_matter = yaml.safe_load(card_of(short_run).split("---")[1])
    assert front_matter["library_name"] == "peft"
    assert "base_model" not in front_matter


def test_the_card_states_the_license_of_the_base_and_the_dataset(short_run, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    plan = read_plan(short_run).model_copy(update={"base_name": str(tmp_path)})
    source = "hf://datasets/maria/colours@main?split=train"
    data = dataclasses.replace(load_run_data(short_run), source=source)
    metadata = ModelCard(card_text(short_run, data, plan)).data
    assert (metadata.license, metadata.datasets) == ("apache-2.0", ["maria/colours"])


def test_no_license_is_stated_for_a_base_without_a_readme(short_run, tmp_path):
    plan = read_plan(short_run).model_copy(update={"base_name": str(tmp_path)})
    assert ModelCard(card_text(short_run, load_run_data(short_run), plan)).data.license is None


@pytest.mark.parametrize(
    ("text", "code"),
    [("---\na: [\n---\n# x", "export.invalid_card"), ("# x", "export.card_without_base")],
)
def test_an_edited_card_must_be_readable_and_name_its_base(tmp_path, text, code):
    original = "---\nbase_model: maria/base\n---\n# Mine"
    (tmp_path / "README.md").write_text(original)
    with pytest.raises(UserError) as error:
        put_card(tmp_path, text)
    assert error.value.code == code
    assert (tmp_path / "README.md").read_text() == original


def test_the_plot_has_two_curves_and_needs_two_steps(short_run):
    plot = loss_svg(short_run.history())
    assert plot.count("<polyline") == 2
    ElementTree.fromstring(plot)
    assert loss_svg([]) is None


def test_the_export_of_an_adapter_says_what_ends_its_answers(own_run, tmp_path, monkeypatch):
    """Servers take the ends from the base's settings, which may lack that of the template."""
    monkeypatch.setattr("peft_space.export.export._generation_config", lambda base: None)
    exported = export_run(own_run, tmp_path / "out", "adapter").path
    ends = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert ends == stop_token_ids(tokenizer)
    command = shlex.split(serving_commands(own_run, "adapter", exported, "bfloat16")["vLLM"])
    for option in ("--tokenizer", "--generation-config"):
        assert command[command.index(option) + 1] == str(exported)


def test_sets_in_an_adapter_config_are_written_in_order(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"exclude_modules": ["b", "a"], "layers_to_transform": [3, 1]}))
    _sort_lists(path)
    written = json.loads(path.read_text())
    assert written == {"exclude_modules": ["a", "b"], "layers_to_transform": [3, 1]}
