"""An imported adapter is checked, and answers, evaluates, trains and exports like in plain PEFT."""

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
from peft_space.runs.events import steps_of
from peft_space.runs.run import Run
from peft_space.web.panels.runs import adapter_source

ROWS = [{"prompt": f"Say {number}.", "completion": f"It is {number}."} for number in range(20)]


@pytest.fixture(scope="module")
def peft_adapter(tmp_path_factory):
    """An adapter that plain PEFT made for the built-in model."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def import_run(tmp_path, adapter, write, **recipe):
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


@pytest.mark.slow
def test_it_answers_as_in_plain_peft_and_can_be_evaluated_and_exported(
    peft_adapter, tmp_path, write
):
    from peft import PeftModel

    run = import_run(tmp_path, peft_adapter, write)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32), peft_adapter
    )
    assert torch.allclose(logits(load_adapted(run).model), logits(plain), atol=1e-5)
    assert (run.recipe.lora_rank, run.recipe.target_modules) == (4, ["q_proj", "v_proj"])
    scores = operations.evaluate(str(run.directory))
    assert scores["adapter"]["loss"] != scores["base"]["loss"]
    operations.export(str(run.directory), str(tmp_path / "out"))
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.slow
def test_it_can_be_trained_further(peft_adapter, tmp_path, write):
    run = import_run(tmp_path, peft_adapter, write)
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
        "training does not start from an untrained adapter"
    )
    assert operations.evaluate(str(run.directory))["adapter"]["loss"] < before


def test_only_two_files_of_a_zip_are_imported(peft_adapter, tmp_path, write):
    packed = shutil.make_archive(str(tmp_path / "mine"), "zip", peft_adapter.parent)
    assert import_run(tmp_path, packed, write).name.startswith("mine on ")
    assert sorted(path.name for path in (tmp_path / "run" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"peft_type": "IA3"}, "training.adapter_unsupported", "IA3"),
        ({"base_model_name_or_path": None}, "training.adapter_config_invalid", "base_model"),
        ({"lora_alpha": "two"}, "training.adapter_config_invalid", "lora_alpha"),
        ({"rank_pattern": {"(a+)+": 2}}, "training.adapter_unsupported", "rank_pattern"),
        ({"target_modules": ["c_attn"]}, None, "'c_attn'"),
        ({"r": 8}, None, "4 x 256"),
        ({"target_parameters": ["w"]}, "training.adapter_unsupported", "'w'"),
        (
            {"target_parameters": ["q_proj.weight"]},
            "training.adapter_unsupported",
            "target_parameters",
        ),
        ({"megatron_config": {"a": 1}}, "training.adapter_unsupported", "'megatron_config'"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.sample(3)
def test_an_adapter_that_cannot_be_imported_is_reported_and_makes_no_run(
    peft_adapter, tmp_path, write, change, code, part
):
    broken = shutil.copytree(peft_adapter, tmp_path / "broken")
    path = broken / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as error:
        import_run(tmp_path, broken, write)
    assert code in (None, error.value.code), "errors of other packages have their own codes"
    assert part in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adapter", ["nobody/nothing", "two words", "/nowhere/at/all"])
def test_a_missing_adapter_is_reported(tmp_path, write, adapter):
    with pytest.raises(UserError) as error:
        import_run(tmp_path, adapter, write)
    assert error.value.code == "training.adapter_not_found"
    assert adapter in str(error.value)


def test_on_a_space_files_of_the_server_cannot_be_imported(
    monkeypatch, peft_adapter, tmp_path, write
):
    monkeypatch.setenv("SYSTEM", "spaces")
    with pytest.raises(UserError) as error:
        adapter_source(None, str(tmp_path / "another.zip"))
    assert error.value.code == "web.zip_not_uploaded"
    with pytest.raises(UserError) as error:
        import_run(tmp_path, peft_adapter, write)
    assert error.value.code == "training.adapter_not_found"
    assert adapter_source("/uploaded/mine.zip", "") == "/uploaded/mine.zip"
