"""Verification passes if the files answer as the adapter does, and catches broken merges."""

import json
import re

import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file

from peft_space import operations
from peft_space.errors import UserError
from peft_space.export import verify
from peft_space.export.export import export_run
from peft_space.export.merge import merge
from peft_space.export.verify import verify_adapter, verify_merged
from peft_space.models.loading import task_spec_for
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS, labelled, tagged, translated


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(verify, "MAX_ROWS", 4)
    monkeypatch.setattr(verify, "MAX_TOKENS", 24)


def merge_and_verify(run, folder, dtype="float32", into="dequantized"):
    folder.mkdir()
    merge(run, folder, dtype, into)
    return verify_merged(run, folder, dtype, into)


def scaled(factor, only=None):
    """PEFT's update of each layer, or only of one, times a factor."""
    original, calls = Linear.get_delta_weight, iter(range(1_000))
    return lambda layer, adapter: (
        original(layer, adapter) * (factor if only in (None, next(calls)) else 1)
    )


@pytest.mark.slow
def test_a_dequantized_float32_merge_equals_the_adapter(short_run, tmp_path):
    result = merge_and_verify(short_run, tmp_path / "out")
    assert result.passed, result.faults
    assert (result.identical, result.num_answers, result.agreement) == (4, 4, 1.0)
    assert result.max_logit_difference < 1e-3
    assert result.mean_kl < 1e-9 < 0.1 < result.adapter_kl


@pytest.mark.slow
def test_a_full_precision_merge_reports_its_distance_from_the_adapter(short_run, tmp_path):
    result = merge_and_verify(short_run, tmp_path / "out", "float32", "full")
    assert 1e-4 < result.mean_kl < 0.1
    for name in ("full precision", "float32", "nf4"):
        assert name in result.compared
    assert not any("_proj" in fault for fault in result.faults)


@pytest.mark.parametrize(
    ("dtype", "change", "fault"),
    [
        (
            "float32",
            lambda: scaled(0.5),
            r"model\.layers\.0\.self_attn\.q_proj has 50% .*; 32 more layers",
        ),
        (
            "bfloat16",
            lambda: scaled(0.0, only=20),
            r"model\.layers\.2\.mlp\.down_proj has 0% ",
        ),
        pytest.param(
            "bfloat16",
            lambda: scaled(2.0),
            r"self_attn\.q_proj has 200% ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "float16",
            lambda: scaled(0.0, only=0),
            r"layers\.0\.self_attn\.q_proj has 0% ",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a wrong scale", "a layer is missing", "twice the scale", "the first layer is missing"],
)
@pytest.mark.slow
def test_a_broken_merge_is_caught(short_run, tmp_path, monkeypatch, dtype, change, fault):
    folder = tmp_path / "out"
    folder.mkdir()
    with monkeypatch.context() as broken:
        broken.setattr(Linear, "get_delta_weight", change())
        merge(short_run, folder, dtype, "dequantized")
    result = verify_merged(short_run, folder, dtype, "dequantized")
    assert re.search(fault, "; ".join(result.faults))
    assert result.words().count("✗") == 1


@pytest.mark.slow
def test_a_wrong_dtype_is_caught_even_if_the_file_hides_it(short_run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    merge(short_run, folder, "bfloat16", "dequantized")
    first = verify_merged(short_run, folder, "float32", "dequantized").faults[0]
    assert re.search("BF16.*F32", first)
    weights, config = folder / "model.safetensors", folder / "config.json"
    wide = {name: weight.float() for name, weight in load_file(weights).items()}
    save_file(wide, weights, metadata={"format": "pt"})
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    [fault] = verify_merged(short_run, folder, "float32", "dequantized").faults
    assert "KL divergence" in fault


@pytest.mark.slow
def test_a_missing_tensor_and_another_chat_template_are_caught(short_run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    merge(short_run, folder, "float32", "dequantized")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.3.mlp.gate_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    template = folder / "chat_template.jinja"
    template.write_text("!" + template.read_text())
    faults = "; ".join(verify_merged(short_run, folder, "float32", "dequantized").faults)
    assert "such as model.layers.3.mlp.gate_proj.weight" in faults
    assert "its tokenizer" in faults


def test_an_exported_adapter_has_identical_logits_and_a_changed_one_has_not(short_run, tmp_path):
    folder = export_run(short_run, tmp_path / "out").path
    result = verify_adapter(short_run, folder)
    assert result.passed
    assert result.max_logit_difference == 0
    path = folder / "adapter_model.safetensors"
    changed = {name: 1.01 * weight for name, weight in load_file(path).items()}
    save_file(changed, path, metadata={"format": "pt"})
    assert "logits differ" in verify_adapter(short_run, folder).faults[0]


@pytest.mark.slow
def test_a_failed_export_is_rejected_with_its_figures_unless_forced(
    short_run, tmp_path, monkeypatch
):
    with monkeypatch.context() as broken:
        broken.setattr(Linear, "get_delta_weight", scaled(0.5))
        with pytest.raises(UserError) as error:
            export_run(short_run, tmp_path / "out", "merged", "bfloat16")
        assert error.value.code == "export.mismatch"
        assert re.search(r"\d\d\.\d+% of \d+ tokens agree.*float32", str(error.value))
        assert not list(tmp_path.iterdir())
        broken.setattr(Linear, "get_delta_weight", scaled(0.5))
        exported = export_run(short_run, tmp_path / "out", "merged", "bfloat16", insist=True)
    report = json.loads((exported.path / "proof.json").read_text())
    assert report["passed"] is False
    assert report["words"] in (exported.path / "README.md").read_text()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_models.bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_models.t5(tmp_path_factory.mktemp("t5"), WORDS)


def trained(tmp_path, write, rows, base):
    recipe = Recipe(
        base_model=base,
        quantization="none",
        max_steps=3,
        learning_rate=5e-3,
        eval_split=0.2,
        eval_steps=3,
    )
    run = operations.make_run(
        str(tmp_path / "run"), str(write("rows.json", rows)), recipe.model_dump()
    )["run"]
    operations.train(run)
    return run


@pytest.mark.parametrize(
    ("rows", "what"), [(labelled, "labels"), (tagged, "tags")], ids=["labels", "tags"]
)
@pytest.mark.sample(1)
def test_labels_and_probabilities_of_a_classification_are_compared(
    tmp_path, write, bert, rows, what
):
    run = trained(tmp_path, write, rows(), bert)
    result = operations.export(run, str(tmp_path / "out"), {"target": "merged", "dtype": "float32"})
    assert result["proof"]["passed"]
    assert (result["proof"]["needed"], result["proof"]["what"]) == (0.99, what)
    assert 0 < result["proof"]["max_probability_difference"] < 1e-5
    assert list(result["commands"]) == ["vLLM"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(config["id2label"]) == len(task_spec_for(Run(run)).labels)


@pytest.mark.slow
def test_an_encoder_decoder_is_compared_on_its_own_answers(tmp_path, write, t5):
    run = trained(tmp_path, write, translated(), t5)
    result = operations.export(run, str(tmp_path / "out"), {"target": "merged", "dtype": "float32"})
    assert result["proof"]["passed"], result["words"]
    assert result["proof"]["identical"] == result["proof"]["num_answers"] == 4
    assert torch.tensor(result["proof"]["mean_kl"]) < 1e-9
    assert list(result["commands"]) == ["TGI"]


@pytest.mark.slow
def test_texts_without_held_out_rows_are_continued_from_their_middle(tmp_path, write):
    texts = [f"The shop number {number} sells lamps and chairs." for number in range(8)]
    rows = write("rows.json", [{"text": text} for text in texts])
    recipe = Recipe(quantization="none", max_steps=2, eval_split=0)
    run = operations.make_run(str(tmp_path / "run"), str(rows), recipe.model_dump())["run"]
    operations.train(run)
    result = operations.export(run, str(tmp_path / "out"), {"target": "merged", "dtype": "float32"})
    assert result["proof"]["rows"].startswith("4 training rows")
    assert result["proof"]["num_tokens"] > 8
