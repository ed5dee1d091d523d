"""Bases that come quantized: those that can be trained are, and the others are refused with what to do. GPTQ and AWQ: `benchmarks/gptq_awq.py`."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from peft_space import operations
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models import loading, quantization
from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.runs.status import steps_of

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
    """Makes the packages for GPTQ and AWQ look installed or missing, whatever this environment has."""
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
    """A copy of the built-in model whose config says that it comes quantized. (Its weights do not: nothing here loads them.)"""

    def publish(quantization):
        folder = shutil.copytree(MODEL_DIR, tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(config | {"quantization_config": quantization})
        )
        return str(folder)

    return publish


def refusal_of(tmp_path, recipe):
    """Why no run is made of the recipe; none is left behind."""
    with pytest.raises(UserError) as refusal:
        operations.make_run(str(tmp_path / "run"), "demo", recipe)
    assert not (tmp_path / "run").exists()
    return str(refusal.value)


@pytest.mark.parametrize("quantization", [GPTQ, AWQ], ids=["gptq", "awq"])
@pytest.mark.parametrize(
    ("there", "missing"), [((), "gptqmodel, optimum"), (("gptqmodel",), "optimum")]
)
def test_gptq_and_awq_without_their_packages_are_refused_with_how_to_install_them(
    quantization, there, missing, published, installed, tmp_path
):
    installed(*there)
    said = refusal_of(tmp_path, {"base_model": published(quantization)})
    assert (
        f"comes quantized as {quantization['quant_method'].upper()}, which needs what is not installed here: {missing}."
        in said
    )
    assert "`pip install --no-deps -r requirements-gptq.txt`" in said


def test_that_command_is_the_readmes_and_installs_what_is_asked_for():
    assert quantization.GPTQ_EXTRA in (ROOT / "README.md").read_text()
    lines = [
        line
        for line in (ROOT / quantization.GPTQ_EXTRA.split()[-1]).read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ +# \w.*", line) for line in lines)
    assert {line.split("==")[0] for line in lines} >= set(quantization._GPTQ_PACKAGES)


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "mxfp4"])
def test_other_kinds_are_refused_by_their_name(method, published, tmp_path):
    said = refusal_of(tmp_path, {"base_model": published({"quant_method": method})})
    assert (
        said
        == f"The base model comes quantized as {method}, which cannot be trained here. Choose the model in full precision."
    )


@pytest.mark.parametrize("quantization", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_gptq_and_awq_are_told_to_compute_with_a_kernel_that_can_be_trained(
    quantization, published, installed
):
    installed("gptqmodel", "optimum")
    base = find_base(published(quantization))
    given = loading.quantization_config(Recipe(), base, "float32", linear_layers(base.config))
    assert (given.quant_method, given.backend, given.group_size) == (
        quantization["quant_method"],
        "auto_trainable",
        128,
    )


@pytest.mark.parametrize("quantization", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_dora_on_gptq_and_awq_is_refused_before_anything_is_trained(
    quantization, published, installed, tmp_path
):
    installed("gptqmodel", "optimum")
    said = refusal_of(tmp_path, {"base_model": published(quantization), "method": "dora"})
    assert "DoRA" in said
    assert "Choose lora" in said


def test_weights_that_are_held_in_buffers_are_counted():
    import torch

    packed = torch.nn.Module()
    packed.in_features, packed.out_features = 256, 640
    packed.register_buffer("qweight", torch.zeros(32, 640, dtype=torch.int32))
    assert loading._weights_in_buffers(packed) == 256 * 640
    assert loading._weights_in_buffers(torch.nn.Linear(256, 640)) == 0
    assert loading._weights_in_buffers(torch.nn.BatchNorm1d(4, affine=False)) == 0


@pytest.fixture(scope="module")
def nf4_base(tmp_path_factory):
    """The built-in model as transformers saves it from NF4, in bfloat16 as most such models are published."""
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
def test_a_base_that_was_saved_in_nf4_stays_so_whatever_the_recipe_says(nf4_base, quantization):
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
    """A run of two steps on it."""
    run = Run(
        operations.make_run(
            str(tmp_path_factory.mktemp("nf4-run") / "run"),
            "demo",
            {"base_model": nf4_base, "max_steps": 2},
        )["run"]
    )
    operations.train(str(run.directory))
    return run


def test_a_base_that_was_saved_in_nf4_is_trained_and_scored(nf4_run):
    plan = read_plan(nf4_run)
    assert (plan.quantization, plan.num_wrapped) == ("bitsandbytes", 35)
    assert len(steps_of(nf4_run.history())) == 2
    scores = operations.evaluate(str(nf4_run.directory))
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    assert (
        "trained on the base quantized as bitsandbytes"
        in (nf4_run.adapter / "README.md").read_text()
    )


def test_it_answers_the_same_whether_there_is_room_to_unpack_it_or_not(nf4_run, monkeypatch):
    import bitsandbytes
    import torch

    logits = []
    for room in (True, False):
        monkeypatch.setattr(loading, "has_room_for", lambda num_bytes, room=room: room)
        model = loading.load_adapted(nf4_run).model
        assert (
            any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules())
            is not room
        )
        with torch.no_grad():
            logits.append(model(input_ids=torch.arange(5, 25)[None]).logits)
    assert logits[0].dtype == logits[1].dtype == torch.float32
    assert torch.equal(*logits)
