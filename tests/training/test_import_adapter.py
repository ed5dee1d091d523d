"""An adapter that was made elsewhere is verified, scored as plain PEFT sees it, gone on with, and exported."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peft_space import operations
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models.loading import load_adapted
from peft_space.runs.run import Run
from peft_space.runs.status import steps_of
from peft_space.web.tabs.runs import adapter_source

ROWS = [{"prompt": f"Say {number}.", "completion": f"It is {number}."} for number in range(20)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """An adapter that PEFT alone has made, on the built-in model's folder."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    folder = tmp_path_factory.mktemp("theirs") / "adapter"
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def adopt(tmp_path, adapter, write, **recipe):
    rows = str(write("rows.json", ROWS))
    return Run(
        operations.import_adapter(
            str(tmp_path / "run"),
            str(adapter),
            rows,
            {"quantization": "none", "max_steps": 2, **recipe},
        )["run"]
    )


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(30, 50)[None]).logits


def test_it_answers_as_in_plain_peft_and_is_scored_and_exported(theirs, tmp_path, write):
    from peft import PeftModel

    run = adopt(tmp_path, theirs, write)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32), theirs
    )
    assert torch.allclose(logits(load_adapted(run).model), logits(plain), atol=1e-5)
    assert (run.recipe.lora_rank, run.recipe.target_modules) == (4, ["q_proj", "v_proj"])
    scores = operations.evaluate(str(run.directory))
    assert scores["adapter"]["loss"] != scores["base"]["loss"]
    card = operations.export(str(run.directory), str(tmp_path / "out"))
    assert "made elsewhere" in (tmp_path / "out" / "README.md").read_text(), card


def test_training_goes_on_from_it(theirs, tmp_path, write):
    run = adopt(tmp_path, theirs, write)
    before = operations.evaluate(str(run.directory))["adapter"]["loss"]
    assert operations.train(str(run.directory))["event"] == "Finished"
    first = steps_of(run.history())[0].loss
    fresh = Run(
        operations.make_run(
            str(tmp_path / "fresh"), str(tmp_path / "rows.json"), run.recipe.model_dump()
        )["run"]
    )
    operations.train(str(fresh.directory))
    assert first != pytest.approx(steps_of(fresh.history())[0].loss, abs=1e-4), (
        "it does not begin at nothing"
    )
    assert operations.evaluate(str(run.directory))["adapter"]["loss"] < before


def test_a_zip_is_opened_by_its_two_files_alone(theirs, tmp_path, write):
    packed = shutil.make_archive(str(tmp_path / "mine"), "zip", theirs.parent)
    assert (
        adopt(tmp_path, packed, write).name == "mine on demo"
        or (tmp_path / "run" / "adapter").is_dir()
    )
    assert sorted(path.name for path in (tmp_path / "run" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3. Only LoRA"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"target_modules": ["c_attn"]}, "has no linear layer 'c_attn'"),
        ({"r": 8}, "is 4 x 256, and should be 8 x 256"),
        ({"rank_pattern": {"q_proj": 2}}, "other ranks in some layers"),
    ],
)
def test_what_cannot_be_opened_is_told_and_makes_no_run(theirs, tmp_path, write, change, said):
    broken = shutil.copytree(theirs, tmp_path / "broken")
    path = broken / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        adopt(tmp_path, broken, write)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adapter", ["nobody/nothing", "two words", "/nowhere/at/all"])
def test_an_adapter_that_is_not_there_is_told(tmp_path, write, adapter):
    with pytest.raises(UserError, match="There is no adapter"):
        adopt(tmp_path, adapter, write)


def test_on_a_space_nobody_opens_a_file_of_the_server_by_its_path(
    monkeypatch, theirs, tmp_path, write
):
    monkeypatch.setenv("SYSTEM", "spaces")
    with pytest.raises(UserError) as error:
        adapter_source(None, str(tmp_path / "another.zip"))
    assert error.value.code == "web.zip_not_uploaded"
    with pytest.raises(UserError, match="There is no adapter"):
        adopt(tmp_path, theirs, write)
    assert adapter_source("/uploaded/mine.zip", "") == "/uploaded/mine.zip"
