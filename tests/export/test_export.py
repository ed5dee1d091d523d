"""The adapter leaves its run alone, whole or not at all, with a card of measured figures."""

import dataclasses
import hashlib
import json
import zipfile
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard

from peft_space import operations
from peft_space.data.dataset import load_run_data
from peft_space.errors import UserError
from peft_space.evaluation.results import Evaluation, Scores
from peft_space.export.export import export_run
from peft_space.export.loss_plot import loss_svg
from peft_space.export.model_card import card_text
from peft_space.recipe import Recipe
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.runs.status import steps_of


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_export_is_a_copy_and_the_run_stays_as_it_was(short_run, tmp_path):
    before = digests(short_run.directory)
    folder = export_run(short_run, tmp_path / "out").path
    assert digests(short_run.directory) == before
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (short_run.adapter / weights).read_bytes()


def test_the_zip_holds_the_same_files_and_bears_the_name_of_its_run(own_run, tmp_path):
    own_run.rename("Tickets, 2nd try / äöü")
    folder = export_run(own_run, tmp_path / "out").path
    found = operations.export(str(own_run.directory), str(tmp_path / "zipped"), as_zip=True)
    assert found["path"].endswith("/Tickets-2nd-try-äöü-adapter.zip")
    with zipfile.ZipFile(found["path"]) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert digests(tmp_path / "unpacked" / "adapter") == digests(folder)
    assert [path.name for path in (tmp_path / "zipped").iterdir()] == [
        "Tickets-2nd-try-äöü-adapter.zip"
    ]


def test_an_export_that_is_broken_off_leaves_nothing(short_run, tmp_path, monkeypatch):
    def interrupted(run, folder, *more):
        assert (folder / "adapter_model.safetensors").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("peft_space.export.export.prove_adapter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(short_run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_not_exported_into(short_run, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export_run(short_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_run_without_an_adapter_says_how_far_it_is(tmp_path):
    run = Run.create(tmp_path / "run", Recipe(), {}, name="mine")
    with pytest.raises(UserError, match="The run 'mine' has no adapter yet: it is new"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_names_no_base_is_not_exported(own_run, tmp_path):
    path = own_run.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not name its base model"):
        export_run(own_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_tells_figures_of_the_run(own_run, tmp_path):
    scores = Evaluation(
        60, Scores(1.5, 4.5, exact_match=0.0), Scores(0.05, 1.05, exact_match=0.875)
    )
    own_run.path("scores.json").write_text(
        json.dumps(
            {"num_rows": 60, "base": scores.base.__dict__, "adapter": scores.adapter.__dict__}
        )
    )
    text = (export_run(own_run, tmp_path / "out").path / "README.md").read_text()
    steps = steps_of(own_run.history())
    for figure in (
        "87.5%",
        "12 steps",
        f"{steps[-1].tokens:,} tokens",
        f"{steps[-1].loss:.4f}",
        "300 to train, 60 held out",
        "peft_space/demo/model",
    ):
        assert figure in text, figure


def test_the_cards_front_matter_is_yaml_and_names_no_base_that_the_hub_does_not_have(short_run):
    front_matter = yaml.safe_load((short_run.adapter / "README.md").read_text().split("---")[1])
    assert front_matter["library_name"] == "peft"
    assert "base_model" not in front_matter


def test_the_card_states_the_licence_of_the_base_and_the_dataset(short_run, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    plan = read_plan(short_run).model_copy(update={"base_name": str(tmp_path / "base")})
    data = dataclasses.replace(
        load_run_data(short_run), source="hf://datasets/maria/colours@main?split=train"
    )
    stated = ModelCard(card_text(short_run, data, plan)).data
    assert (stated.license, stated.datasets) == ("apache-2.0", ["maria/colours"])


def test_a_base_without_a_readme_has_no_licence_stated(short_run, tmp_path):
    (tmp_path / "base").mkdir()
    plan = read_plan(short_run).model_copy(update={"base_name": str(tmp_path / "base")})
    assert ModelCard(card_text(short_run, load_run_data(short_run), plan)).data.license is None


def test_the_picture_holds_both_curves_and_nothing_without_steps(short_run):
    picture = loss_svg(short_run.history())
    assert picture.count("<polyline") == 2
    ElementTree.fromstring(picture)
    assert loss_svg([]) is None
