"""The estimates of a training step keep their promises on tiny models.

`benchmarks/memory.py` compares them with measurements.
"""

import copy
import dataclasses

import pytest
import torch
import transformers

from benchmarks.allocations import Allocations, counted
from peft_space.compat.torch import each_result, fake_tensors, materialize_fake
from peft_space.estimation import activations, memory
from peft_space.estimation.memory import MemoryEstimate, bits_a_parameter, estimate, shared_by
from peft_space.estimation.step_time import measure_step
from peft_space.models.architecture import linear_layers
from peft_space.planning.training_estimate import changes_that_fit
from peft_space.recipe import Recipe
from tests.fixtures.architectures import ARCHITECTURES
from tests.models.test_architectures import config_of

PARTS = [field.name for field in dataclasses.fields(MemoryEstimate)]
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
EXACT = Recipe(quantization="none")


def on_meta(kind="LlamaForCausalLM", **more):
    sizes = {
        name: size
        for name, size in SIZES.items()
        if not (kind.startswith("T5") and name == "intermediate_size")
    }
    if kind.startswith("T5"):
        more |= {"decoder_start_token_id": 0}
    config = getattr(transformers, kind).config_class(
        **(sizes | more), bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    endings = {
        "SequenceClassification": "sequence-classification",
        "ConditionalGeneration": "seq2seq-lm",
    }
    return linear_layers(
        config,
        next((task for ending, task in endings.items() if kind.endswith(ending)), "causal-lm"),
    )


@pytest.fixture(scope="module")
def llama():
    return on_meta()


def in_layers(model):
    """Parameters of the linear layers that are quantized: all but the head."""
    head = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )


def test_the_parts_add_up_to_the_total(llama):
    need = estimate(llama, EXACT, 2, 16)
    assert need.total == sum(getattr(need, part) for part in PARTS)
    assert need.weights >= 4 * llama.model.num_parameters()
    assert MemoryEstimate(*range(8)).total == 28


def test_an_estimate_leaves_the_model_unchanged(llama):
    before = copy.deepcopy(llama.model).state_dict()
    assert estimate(llama, Recipe(), 2, 16) == estimate(llama, Recipe(), 2, 16)
    assert {name: tensor.shape for name, tensor in llama.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert all(tensor.is_meta for tensor in llama.model.state_dict().values())


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        (Recipe(), 4.127),
        (Recipe(quantization="fp4"), 4.127),
        (Recipe(double_quantization=False), 4.5),
        (Recipe(quantization="int8"), 8),
    ],
)
@pytest.mark.sample(2)
def test_only_quantized_layers_take_fewer_bits(llama, recipe, bits):
    saved = estimate(llama, EXACT, 2, 16).weights - estimate(llama, recipe, 2, 16).weights
    scales = (
        4 * sum(layer.out_features for name, layer in llama.model.named_modules() if "proj" in name)
        if bits == 8
        else 0
    )
    assert bits_a_parameter(recipe) == pytest.approx(bits, abs=2e-3)
    assert saved == pytest.approx(in_layers(llama.model) * (32 - bits) / 8 - scales, rel=1e-3)


def test_adapter_and_optimizer_take_12_bytes_a_trainable_parameter(llama):
    need = estimate(llama, Recipe(lora_rank=8, target_modules=["q_proj"]), 2, 16)
    trainable = SIZES["num_hidden_layers"] * 8 * (64 + 64)
    assert (need.adapter, need.optimizer) == (4 * trainable, 8 * trainable)


def test_more_rows_tokens_and_rank_take_more(llama):
    def total(batch_size=2, length=16, rank=4):
        return estimate(llama, Recipe(lora_rank=rank), batch_size, length).total

    least = total()
    assert least < total(batch_size=3) < total(batch_size=8)
    assert least < total(length=17) < total(length=64)
    assert least < total(rank=5) < total(rank=32)


def test_gradient_checkpointing_lowers_the_activations(llama):
    with_all, again = (
        estimate(llama, EXACT.model_copy(update={"gradient_checkpointing": on}), 4, 64)
        for on in ("off", "on")
    )
    assert again.activations < with_all.activations / 1.5
    assert (again.weights, again.adapter) == (with_all.weights, with_all.adapter)


@pytest.mark.parametrize(
    "kind", ["GPT2LMHeadModel", "BertForSequenceClassification", "T5ForConditionalGeneration"]
)
@pytest.mark.sample(1)
def test_other_architectures_are_estimated_too(kind):
    model = on_meta(kind)
    need = estimate(model, EXACT, 2, 16)
    assert need.activations > 0
    assert need.weights >= 4 * model.model.num_parameters()


def test_a_gpu_has_no_overhead_and_half_the_bytes_in_16_bits(llama):
    need = estimate(llama, EXACT, 2, 16, device="cuda", dtype="bfloat16")
    assert need.overhead == need.mapped == 0
    assert need.weights == pytest.approx(estimate(llama, EXACT, 2, 16).weights / 2, rel=0.01)


def test_changes_that_fit_begin_with_the_mildest(llama):
    now = estimate(llama, EXACT, 8, 128)
    limit = now.total - now.activations // 4
    changes = changes_that_fit(llama, EXACT, 8, 128, limit)
    assert [change.what for change in changes][:2] == [
        "batches of 4, 2 accumulated",
        "gradient checkpointing",
    ]
    for change in changes:
        again = estimate(llama, change.recipe, change.batch_size, change.length)
        assert again == change.estimate
        assert again.total <= limit
    assert changes[0].recipe.batch_size * changes[0].recipe.gradient_accumulation_steps == 8


def test_there_are_no_changes_if_no_single_one_suffices(llama):
    assert changes_that_fit(llama, EXACT, 2, 64, 1_000) == []


@pytest.mark.parametrize("checkpointing", ["on", "off"])
@pytest.mark.parametrize(
    "kind",
    [
        "LlamaForCausalLM",
        "Gemma2ForCausalLM",
        "GPT2LMHeadModel",
        "OPTForCausalLM",  # calls its decoder alone
        "BertForSequenceClassification",
        "T5ForConditionalGeneration",
    ],
)
@pytest.mark.slow
def test_the_estimate_is_close_to_a_count_of_all_allocations(kind, checkpointing):
    layers = on_meta(
        kind, **{"hidden_size": 256, "num_hidden_layers": 6} if "T5" not in kind else {}
    )
    recipe = EXACT.model_copy(update={"gradient_checkpointing": checkpointing})
    estimated = estimate(layers, recipe, 4, 128, "cuda", "bfloat16").total
    assert estimated == pytest.approx(counted(layers, recipe, 4, 128, "bfloat16"), rel=0.2)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name)
@pytest.mark.sample(24)
@pytest.mark.slow
def test_every_architecture_is_estimated_and_timed(architecture, quantization):
    layers = linear_layers(config_of(architecture), architecture.task)
    recipe = Recipe(quantization=quantization)
    need = estimate(layers, recipe, 2, 16)
    assert need.activations > 0
    assert estimate(layers, recipe, 8, 16).activations > need.activations
    step = measure_step(layers, recipe, 2, 16)
    assert min(step.forward, step.both) > 0


@pytest.mark.parametrize(
    "kind", ["LlamaForCausalLM", "BertForSequenceClassification", "T5ForConditionalGeneration"]
)
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.sample(1)
def test_blocks_and_output_layer_are_timed_for_each_token(kind, quantization):
    step = measure_step(on_meta(kind), Recipe(quantization=quantization), 2, 16)
    assert min(step.forward, step.both) > 0
    assert (step.label > 0) == (kind != "BertForSequenceClassification")


def test_a_step_is_timed_anew_only_if_its_shape_or_adapter_changes():
    llama = on_meta("LlamaForCausalLM")
    first = measure_step(llama, EXACT, 2, 16)
    other_rate = EXACT.model_copy(update={"learning_rate": 1e-4, "num_epochs": 7.0})
    assert measure_step(llama, other_rate, 2, 16) is first
    other_rank = EXACT.model_copy(update={"lora_rank": 32})
    assert measure_step(llama, other_rank, 2, 16) is not first
    assert measure_step(llama, EXACT, 2, 24) is not first


@pytest.mark.slow
def test_gpus_that_share_the_base_each_hold_a_part_of_the_blocks():
    llama = on_meta(num_hidden_layers=16)
    whole = estimate(llama, EXACT, 2, 16, "cuda", "bfloat16")
    shared = [shared_by(whole, llama, count).weights for count in (2, 4, 8)]
    assert sorted(shared, reverse=True) == shared
    assert whole.weights > shared[-1]
    assert shared_by(whole, llama, 2).activations == whole.activations


@pytest.mark.parametrize(
    "kind", ["LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration"]
)
def test_holes_of_the_heap_follow_what_a_whole_forward_pass_allocates(kind):
    layers, sizes = on_meta(kind, num_hidden_layers=4), []
    model = memory.with_adapter(layers, EXACT, "cpu", "float32")
    with fake_tensors():
        materialize_fake(model, "cpu")
        batch = activations._fake_batch(layers.task, 64, 256, "cpu")
        log = Allocations([*model.parameters(), *model.buffers(), *batch.values()])
        add = log.add
        log.add = lambda size: (sizes.append(size), add(size))
        with each_result(log.record):
            activations._run(model.train(), layers.task, batch)
    small, huge = (
        sum(size for size in sizes if size > 0 and (size < activations.HUGE_PAGE) == is_small)
        for is_small in (True, False)
    )
    assert small
    assert huge
    holes = activations.HOLES * small + activations.HUGE_HOLES * huge
    overhead = estimate(layers, EXACT, 64, 256).overhead - memory.LIBRARIES
    assert overhead == pytest.approx(holes, rel=0.05)


def test_checkpointing_and_quantization_change_what_the_heap_wastes():
    layers = on_meta()
    plain, checkpointed, quantized = (
        estimate(layers, Recipe(quantization=quantization, gradient_checkpointing=how), 8, 128)
        for quantization, how in (("none", "off"), ("none", "on"), ("nf4", "off"))
    )
    assert checkpointed.overhead < plain.overhead < quantized.overhead
