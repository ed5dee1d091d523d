"""Models published with a quantization are trained or rejected.

Training on GPTQ and AWQ is measured in `benchmarks/gptq_awq.py`.
"""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from peft_space import operations
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models import loading, quantization
from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.runs.events import steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS, labelled

ROOT = Path(__file__).parents[2]
GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


@pytest.fixture
def installed(monkeypatch):
    """Makes the packages for GPTQ and AWQ look installed or missing."""
    really = importlib.util.find_spec

    def set_installed(*names):
        def find_spec(name, *more):
            return (
                (name in names or None) if name in ("gptqmodel", "optimum") else really(name, *more)
            )

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return set_installed


@pytest.fixture
def published(tmp_path):
    """A copy of the built-in model whose config, unlike its weights, says that it is quantized."""

    def publish(quantization):
        folder = shutil.copytree(MODEL_DIR, tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(config | {"quantization_config": quantization})
        )
        return str(folder)

    return publish


def error_of(tmp_path, recipe):
    """The error of making a run with the recipe. No run is left behind."""
    with pytest.raises(UserError) as error:
        operations.make_run(str(tmp_path / "run"), "demo", recipe)
    assert not (tmp_path / "run").exists()
    return error.value


@pytest.mark.parametrize("quantization", [GPTQ, AWQ], ids=["gptq", "awq"])
@pytest.mark.parametrize(
    ("names", "missing"), [((), "gptqmodel, optimum"), (("gptqmodel",), "optimum")]
)
@pytest.mark.sample(1)
def test_gptq_and_awq_without_their_packages_are_rejected(
    quantization, names, missing, published, installed, tmp_path
):
    installed(*names)
    error = error_of(tmp_path, {"base_model": published(quantization)})
    assert error.code == "models.missing_packages"
    command = "`pip install --no-deps -r requirements-gptq.txt`"
    for value in (quantization["quant_method"].upper(), f": {missing}.", command):
        assert value in str(error)


def test_the_install_command_is_in_the_readme_and_pins_the_packages():
    assert quantization.GPTQ_EXTRA in (ROOT / "docs" / "choosing-a-recipe.md").read_text()
    lines = [
        line
        for line in (ROOT / quantization.GPTQ_EXTRA.split()[-1]).read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ +# \w.*", line) for line in lines)
    assert {line.split("==")[0] for line in lines} >= set(quantization._GPTQ_PACKAGES)


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "mxfp4"])
@pytest.mark.slow
def test_other_quantizations_are_rejected_by_name(method, published, tmp_path):
    error = error_of(tmp_path, {"base_model": published({"quant_method": method})})
    assert error.code == "models.quantization_unsupported"
    assert method in str(error)


@pytest.mark.parametrize("quantization", [GPTQ, AWQ], ids=["gptq", "awq"])
@pytest.mark.sample(1)
def test_gptq_and_awq_compute_with_a_kernel_that_has_a_gradient(quantization, published, installed):
    installed("gptqmodel", "optimum")
    base = find_base(published(quantization))
    config = loading.quantization_config(Recipe(), base, "float32", linear_layers(base.config))
    assert config.quant_method == quantization["quant_method"]
    assert (config.backend, config.group_size) == ("auto_trainable", 128)


@pytest.mark.parametrize("quantization", [GPTQ, AWQ], ids=["gptq", "awq"])
@pytest.mark.sample(1)
def test_dora_on_gptq_and_awq_is_rejected_before_training(
    quantization, published, installed, tmp_path
):
    installed("gptqmodel", "optimum")
    error = error_of(tmp_path, {"base_model": published(quantization), "method": "dora"})
    assert error.code == "models.dora_impossible"


def test_weights_in_buffers_are_counted():
    import torch

    packed = torch.nn.Module()
    packed.in_features, packed.out_features = 256, 640
    packed.register_buffer("qweight", torch.zeros(32, 640, dtype=torch.int32))
    assert loading._weights_in_buffers(packed) == 256 * 640
    assert loading._weights_in_buffers(torch.nn.Linear(256, 640)) == 0
    assert loading._weights_in_buffers(torch.nn.BatchNorm1d(4, affine=False)) == 0


@pytest.fixture(scope="module")
def nf4_base(tmp_path_factory):
    """The built-in model, saved in NF4 and bfloat16, as most such models are published."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("nf4")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_pretrained(
        MODEL_DIR, quantization_config=config, dtype=torch.bfloat16
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.sample(1)
def test_a_base_saved_in_nf4_stays_in_nf4_with_any_recipe(nf4_base, quantization):
    import bitsandbytes
    import torch

    base, recipe = find_base(nf4_base), Recipe(base_model=nf4_base, quantization=quantization)
    model = loading.load_base_model(base, recipe, "float32")
    layers = [
        module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    assert len(layers) == len(linear_layers(base.config).names)
    assert all(
        layer.weight.quant_state.quant_type == "nf4" and layer.compute_dtype == torch.float32
        for layer in layers
    )
    adapted = loading.new_adapter(model, recipe, base)
    assert loading.parameter_counts(adapted) == loading.expected_parameter_counts(
        recipe, linear_layers(find_base("demo").config)
    )
    assert all(
        parameter.dtype in (torch.float32, torch.uint8) for parameter in adapted.parameters()
    )


@pytest.fixture(scope="module")
def nf4_run(nf4_base, tmp_path_factory):
    """A run of two steps on the base in NF4."""
    run = Run(
        operations.make_run(
            str(tmp_path_factory.mktemp("nf4-run") / "run"),
            "demo",
            {"base_model": nf4_base, "max_steps": 2},
        )["run"]
    )
    operations.train(str(run.directory))
    return run


@pytest.mark.slow
def test_a_base_saved_in_nf4_is_trained_and_scored(nf4_run):
    plan = read_plan(nf4_run)
    assert (plan.quantization, plan.num_wrapped) == ("bitsandbytes", 35)
    assert len(steps_of(nf4_run.history())) == 2
    scores = operations.evaluate(str(nf4_run.directory))
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    assert "quantized as bitsandbytes" in (nf4_run.adapter / "README.md").read_text()


@pytest.mark.slow
def test_a_base_in_nf4_answers_the_same_packed_and_unpacked(nf4_run, monkeypatch):
    import bitsandbytes
    import torch

    logits = []
    for fits in (True, False):
        monkeypatch.setattr(loading, "fits_in_memory", lambda num_bytes, fits=fits: fits)
        model = loading.load_adapted(nf4_run).model
        kinds = {type(module) for module in model.modules()}
        assert any(issubclass(kind, bitsandbytes.nn.Linear4bit) for kind in kinds) is not fits
        with torch.no_grad():
            logits.append(model(input_ids=torch.arange(5, 25)[None]).logits)
    assert logits[0].dtype == logits[1].dtype == torch.float32
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.slow
def test_an_encoder_whose_file_lacks_its_pooler_is_trained_quantized(kind, tmp_path, write):
    folder = tiny_models.bert(tmp_path / "base", WORDS)  # saved from a masked LM, without a pooler
    recipe = Recipe(base_model=folder, quantization=kind, max_steps=2, batch_size=4, max_length=64)
    run = make_run(tmp_path / "run", str(write("rows.json", labelled())), recipe)
    with run.lock():
        train(run)
    saved = set(load_file(run.adapter / "adapter_model.safetensors"))
    assert "base_model.model.bert.pooler.dense.weight" in saved
    scores = operations.evaluate(str(run.directory))
    assert scores["adapter"]["loss"] != scores["base"]["loss"]
