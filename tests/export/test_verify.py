"""A proof passes where the written files answer as the adapter does, and catches every merge that is broken on purpose."""

import json
import re

import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file

from peft_space import operations
from peft_space.errors import UserError
from peft_space.export import verify as proofs
from peft_space.export.export import export_run
from peft_space.export.merge import merge
from peft_space.export.verify import verify_adapter, verify_merged
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from tests.fixtures import tiny_models
from tests.training.test_trainers import WORDS, labelled, tagged, translated


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(proofs, "_MOST_ROWS", 4)
    monkeypatch.setattr(proofs, "_MOST_TOKENS", 24)


def prove(run, folder, dtype="float32", into="dequantized"):
    folder.mkdir()
    merge(run, folder, dtype, into)
    return verify_merged(run, folder, dtype, into)


def scaled(factor, only=None):
    """PEFT's own delta of a layer, of another size; of one layer alone where its place is given."""
    right, calls = Linear.get_delta_weight, iter(range(1_000))
    return lambda layer, adapter: (
        right(layer, adapter) * (factor if only in (None, next(calls)) else 1)
    )


def test_merged_into_the_numbers_it_was_trained_on_in_float32_it_is_the_adapter(
    short_run, tmp_path
):
    found = prove(short_run, tmp_path / "out")
    assert found.passed, found.faults
    assert (found.identical, found.num_answers, found.agreement) == (4, 4, 1.0)
    assert found.max_logit_difference < 1e-3
    assert found.mean_kl < 1e-9 < 0.1 < found.adapter_kl


def test_full_precision_is_another_base_and_the_proof_says_how_far_off(short_run, tmp_path):
    found = prove(short_run, tmp_path / "out", "float32", "full")
    assert 1e-4 < found.mean_kl < 0.1
    assert (
        "the base in full precision, in float32, against the adapter on the base quantized as nf4"
        in found.words()
    )
    assert not any("of what the adapter adds" in fault for fault in found.faults)


@pytest.mark.parametrize(
    ("dtype", "change", "seen"),
    [
        (
            "float32",
            lambda: scaled(0.5),
            r"model\.layers\.0\.self_attn\.q_proj has 50% of what .*; 32 more layers likewise",
        ),
        (
            "bfloat16",
            lambda: scaled(0.0, only=20),
            r"model\.layers\.2\.mlp\.down_proj has 0% of what the adapter adds to it",
        ),
        pytest.param(
            "bfloat16",
            lambda: scaled(2.0),
            r"self_attn\.q_proj has 200% of what",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "float16",
            lambda: scaled(0.0, only=0),
            r"layers\.0\.self_attn\.q_proj has 0% of what",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a wrong scale", "a layer is missing", "twice the scale", "the first layer is missing"],
)
def test_a_broken_merge_is_caught(short_run, tmp_path, monkeypatch, dtype, change, seen):
    folder = tmp_path / "out"
    folder.mkdir()
    with monkeypatch.context() as broken:
        broken.setattr(Linear, "get_delta_weight", change())
        merge(short_run, folder, dtype, "dequantized")
    found = verify_merged(short_run, folder, dtype, "dequantized")
    assert re.search(seen, "; ".join(found.faults))
    assert found.words().count("✗ Not passed") == 1


def test_a_wrong_dtype_is_caught_in_the_file_and_where_the_file_hides_it(short_run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    merge(short_run, folder, "bfloat16", "dequantized")
    assert (
        "weights are stored as BF16, not F32"
        in verify_merged(short_run, folder, "float32", "dequantized").faults[0]
    )
    weights, config = folder / "model.safetensors", folder / "config.json"
    save_file(
        {name: weight.float() for name, weight in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    assert "the KL divergence is" in "; ".join(
        verify_merged(short_run, folder, "float32", "dequantized").faults
    )


def test_a_missing_tensor_and_another_chat_template_are_caught(short_run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    merge(short_run, folder, "float32", "dequantized")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.3.mlp.gate_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    template = folder / "chat_template.jinja"
    template.write_text("!" + template.read_text())
    said = "; ".join(verify_merged(short_run, folder, "float32", "dequantized").faults)
    assert "1 weights are missing, such as model.layers.3.mlp.gate_proj.weight" in said
    assert "its tokenizer gives other tokens for the same rows" in said


def test_an_exported_adapter_has_identical_logits_in_plain_peft_and_a_changed_one_has_not(
    short_run, tmp_path
):
    folder = export_run(short_run, tmp_path / "out").path
    found = verify_adapter(short_run, folder)
    assert found.passed
    assert found.max_logit_difference == 0
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: 1.01 * weight for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    assert "the same adapter gives the same" in verify_adapter(short_run, folder).faults[0]


def test_what_does_not_pass_is_refused_with_its_numbers_unless_insisted_on(
    short_run, tmp_path, monkeypatch
):
    with monkeypatch.context() as broken:
        broken.setattr(Linear, "get_delta_weight", scaled(0.5))
        with pytest.raises(
            UserError,
            match=r"does not answer as the adapter does.*\d\d\.\d+% of \d+ tokens agree .*Choose float32.*insist",
        ):
            export_run(short_run, tmp_path / "out", "merged", "bfloat16")
        assert not list(tmp_path.iterdir())
        broken.setattr(Linear, "get_delta_weight", scaled(0.5))
        made = export_run(short_run, tmp_path / "out", "merged", "bfloat16", insist=True)
    kept = json.loads((made.path / "proof.json").read_text())
    assert kept["passed"] is False
    assert kept["words"] in (made.path / "README.md").read_text()


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
def test_of_a_classification_labels_and_probabilities_are_compared(
    tmp_path, write, bert, rows, what
):
    run = trained(tmp_path, write, rows(), bert)
    found = operations.export(run, str(tmp_path / "out"), {"target": "merged", "dtype": "float32"})
    assert found["proof"]["passed"]
    assert "agree (99% are needed)" in found["words"]
    assert f" {what} " in found["words"]
    assert 0 < found["proof"]["max_probability_difference"] < 1e-5
    assert list(found["commands"]) == ["vLLM"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        len(config["id2label"])
        == len(Run(run).path("data", "goal.json").read_text().split(",")) - 1
    )


def test_an_encoder_decoder_is_compared_on_what_it_writes(tmp_path, write, t5):
    run = trained(tmp_path, write, translated(), t5)
    found = operations.export(run, str(tmp_path / "out"), {"target": "merged", "dtype": "float32"})
    assert found["proof"]["passed"], found["words"]
    assert found["proof"]["identical"] == found["proof"]["num_answers"] == 4
    assert torch.tensor(found["proof"]["mean_kl"]) < 1e-9
    assert list(found["commands"]) == ["TGI"]


def test_texts_are_gone_on_with_from_their_middle_and_without_held_out_rows_it_says_so(
    tmp_path, write
):
    rows = write(
        "rows.json",
        [{"text": f"The shop number {number} sells lamps and chairs."} for number in range(8)],
    )
    recipe = Recipe(quantization="none", max_steps=2, eval_split=0)
    run = operations.make_run(str(tmp_path / "run"), str(rows), recipe.model_dump())["run"]
    operations.train(run)
    found = operations.export(run, str(tmp_path / "out"), "merged", "float32")
    assert "on 4 rows that were trained on, as none was held out" in found["words"]
    assert found["proof"]["num_tokens"] > 8
