"""Adapters as Unsloth, LLaMA-Factory, Axolotl and plain PEFT write them load as in plain PEFT."""

import json
import shutil

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from peft_space import operations
from peft_space.errors import UserError
from peft_space.models.loading import base_of, load_adapted
from peft_space.models.resolve import load_tokenizer
from peft_space.recipe import Recipe
from peft_space.runs.events import Notice
from peft_space.runs.run import Run
from tests.fixtures.tokenizers import tokenizer_of

ROWS = [{"prompt": f"Say {number}.", "completion": f"It is {number}."} for number in range(20)]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)
ADAPTERS = {
    "plain": {},
    "regex": {"target_modules": UNSLOTH},
    "chosen by architecture": {"target_modules": None},
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 7}},
    "alphas": {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32, "v_proj": 3}},
    "fractional alpha": {"lora_alpha": 12.5},
    "large alpha": {"r": 64, "lora_alpha": 2048},
    "one block": {"layers_to_transform": 1},
    "blocks": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True, "r": 9},
    "embeddings with LoRA": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embeddings in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "token rows": {"trainable_token_indices": [5, 6, 300]},
    "all biases": {"bias": "all"},
    "no task": {"task_type": None},
}


def llama(folder, tokenizer=None, seed=0, **settings):
    """A random Llama with a tokenizer, saved in a folder."""
    tokenizer = tokenizer or tokenizer_of("ChatML")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    config = LlamaConfig(
        vocab_size=len(tokenizer), initializer_range=0.1, **sizes | heads | settings
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("bases") / "llama")


def adapter_of(base, folder, rows=None, config=LoraConfig, **settings):
    """Save an adapter that plain PEFT made, with random numbers in all that it trains."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    own = {"lora_alpha": 8} if config is LoraConfig else {}
    options = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(model, config(**options | own | settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shift = 0.05 * torch.randn_like(parameter)
            parameter.data += shift.abs() if "magnitude" in name else shift
    model.save_pretrained(folder)
    return model.eval()


def import_run(tmp_path, write, adapter, **recipe):
    rows = str(write("rows.json", ROWS))
    recipe = {"quantization": "none", "max_steps": 2, **recipe}
    return Run(operations.import_adapter(str(tmp_path / "run"), str(adapter), rows, recipe)["run"])


def logits(model, start=20):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(start, start + 40)[None]).logits


def largest_difference(run, base, adapter):
    """Between the logits of the run and those of plain PEFT."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    unadapted = logits(plain)
    plain = logits(PeftModel.from_pretrained(plain, adapter))
    assert not torch.allclose(plain, unadapted, atol=1e-2)
    return float((logits(load_adapted(run).model) - plain).abs().max())


def notices(run):
    return [event.what for event in run.history() if isinstance(event, Notice)]


@pytest.mark.sample(7)
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.slow
def test_an_adapter_answers_as_in_plain_peft_and_is_merged(name, base, tmp_path, write):
    adapter_of(base, tmp_path / "adapter", **ADAPTERS[name])
    run = import_run(tmp_path, write, tmp_path / "adapter")
    assert largest_difference(run, base, tmp_path / "adapter") < 1e-5
    options = {"target": "merged", "dtype": "float32"}
    exported = operations.export(str(run.directory), str(tmp_path / "merged"), options)
    assert exported["proof"]["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_further_training_starts_from_the_adapter_and_keeps_its_config(name, base, tmp_path, write):
    adapter_of(base, tmp_path / "adapter", **ADAPTERS[name])
    run = import_run(tmp_path, write, tmp_path / "adapter", learning_rate=1e-9, lora_dropout=0.0)
    before = logits(load_adapted(run).model)
    kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "trainable_token_indices", "bias")
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert operations.train(str(run.directory))["event"] == "Finished"
    after = json.loads((run.adapter / "adapter_config.json").read_text())
    assert torch.allclose(logits(load_adapted(run).model), before, atol=1e-3)
    assert {field: after.get(field) or None for field in kept} == {
        field: config.get(field) or None for field in kept
    }


RENAMED = {
    "torch.compile": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled whole": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "state_dict": lambda name: name.replace(".weight", ".default.weight"),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
@pytest.mark.sample(1)
def test_tensors_that_other_tools_renamed_are_found(rename, base, tmp_path, write):
    adapter_of(base, tmp_path / "plain")
    renamed = shutil.copytree(tmp_path / "plain", tmp_path / "adapter")
    tensors = load_file(renamed / "adapter_model.safetensors")
    save_file(
        {rename(name): tensor for name, tensor in tensors.items()},
        renamed / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    run = import_run(tmp_path, write, renamed)
    assert largest_difference(run, base, tmp_path / "plain") < 1e-5


# the folder


def test_pickled_weights_are_refused_with_the_reason(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    for source in (folder, packed):
        with pytest.raises(UserError) as error:
            import_run(tmp_path, write, source)
        assert error.value.code == "training.adapter_pickled"


def test_of_a_training_s_folder_the_last_adapter_is_taken(base, tmp_path, write):
    adapter_of(base, tmp_path / "out")
    adapter_of(base, tmp_path / "out" / "checkpoint-8", r=2)
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "out")
    for source in (tmp_path / "out", packed):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert import_run(tmp_path, write, source).recipe.lora_rank == 4


def test_a_folder_with_only_checkpoints_is_reported_with_their_names(base, tmp_path, write):
    for step in (8, 10):
        adapter_of(base, tmp_path / "out" / f"checkpoint-{step}")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "out")
    codes = {}
    for source in (tmp_path / "out", packed):
        with pytest.raises(UserError) as error:
            import_run(tmp_path, write, source)
        codes[error.value.code] = str(error.value)
    assert set(codes) == {"training.adapter_incomplete", "training.adapter_ambiguous"}
    assert all("checkpoint-10" in message for message in codes.values())


def test_the_chosen_base_model_wins_over_a_path_of_another_machine(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    path = folder / "adapter_config.json"
    elsewhere = {"base_model_name_or_path": "/data/models/Qwen2.5-7B"}
    path.write_text(json.dumps(json.loads(path.read_text()) | elsewhere))
    with pytest.raises(UserError) as error:
        import_run(tmp_path, write, folder)
    assert error.value.code == "models.not_found"
    assert "/data/models/Qwen2.5-7B" in str(error.value)
    assert "base_model" in str(error.value)
    run = import_run(tmp_path, write, folder, base_model=str(base))
    assert largest_difference(run, base, folder) < 1e-5
    [notice] = notices(run)
    assert str(base) in notice


# the tokenizer


def with_another_end(tokenizer):
    """A copy with another template, and <|im_start|> as its end token."""
    changed = AutoTokenizer.from_pretrained(tokenizer)
    changed.eos_token = "<|im_start|>"
    changed.chat_template = changed.chat_template.replace("<|im_start|>", "<|im_start|>the ")
    return changed


@pytest.mark.slow
def test_the_adapter_s_own_tokenizer_and_template_are_used_and_exported(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    own = with_another_end(base)
    own.save_pretrained(folder)
    run = import_run(tmp_path, write, folder)
    [notice] = notices(run)
    assert "tokenizer" in notice
    adapted = load_adapted(run)
    assert adapted.tokenizer.chat_template == own.chat_template
    assert adapted.tokenizer.eos_token == "<|im_start|>"
    for target in ("adapter", "merged"):
        out = str(tmp_path / f"exported {target}")
        operations.export(str(run.directory), out, {"target": target})
        exported = AutoTokenizer.from_pretrained(out)
        assert exported.chat_template == own.chat_template
        assert exported.eos_token == "<|im_start|>"


def test_a_template_alone_is_used_with_the_base_s_tokenizer(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    template = with_another_end(base).chat_template
    (folder / "chat_template.jinja").write_text(template)
    assert load_adapted(import_run(tmp_path, write, folder)).tokenizer.chat_template == template


def test_the_same_tokenizer_is_not_copied(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    run = import_run(tmp_path, write, folder)
    assert not notices(run)
    assert not run.path("data", "tokenizer").exists()


def test_a_chosen_template_wins_over_the_adapter_s(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    with_another_end(base).save_pretrained(folder)
    run = import_run(tmp_path, write, folder, chat_template="vicuna")
    assert (
        load_adapted(run).tokenizer.chat_template
        == load_tokenizer(base_of(run)[0], Recipe(chat_template="vicuna")).chat_template
    )


def test_a_tokenizer_that_cannot_be_used_is_reported(base, tmp_path, write):
    adapter_of(base, folder := tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    run = import_run(tmp_path, write, folder)
    [notice] = notices(run)
    assert "tokenizer" in notice
    assert load_adapted(run).tokenizer.eos_token == "<|im_end|>"


@pytest.mark.slow
def test_trained_rows_of_embeddings_are_merged_and_served_merged(base, tmp_path, write):
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(
        half := tmp_path / "half"
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(half)
    plain = adapter_of(half, tmp_path / "adapter", trainable_token_indices=[5, 300])
    run = import_run(tmp_path, write, tmp_path / "adapter")
    options = {"target": "merged", "dtype": "float32"}
    operations.export(str(run.directory), str(tmp_path / "merged"), options)
    merged = load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"]
    expected = plain.merge_and_unload().get_input_embeddings().weight
    assert torch.equal(merged, expected), "no row is rounded to the 16 bits of the base"
    options = {"target": "gguf", "separate_adapter": True}
    with pytest.raises(UserError) as error:
        operations.export(str(run.directory), str(tmp_path / "separate"), options)
    assert error.value.code == "export.gguf_adapter"
    ways = {way["engine"]: way["how"] for way in operations.serving(str(run.directory))["ways"]}
    assert ways == {"PEFT": "adapter", "vLLM": "merged", "TGI": "merged"}


RESIZED = {
    "saved in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved because resized": {},
    "rows": {"trainable_token_indices": []},
}


@pytest.mark.parametrize("settings", RESIZED.values(), ids=RESIZED)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.slow
def test_an_adapter_with_new_tokens_answers_as_in_plain_peft(settings, tied, tmp_path, write):
    base = llama(tmp_path / "base", tie_word_embeddings=tied)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>", "</tool>"], special_tokens=True)
    rows = len(tokenizer)
    if "trainable_token_indices" in settings:
        settings = {"trainable_token_indices": [3, rows - 1, rows - 2]}
    plain = adapter_of(base, folder := tmp_path / "adapter", rows, **settings)
    tokenizer.save_pretrained(folder)
    run = import_run(tmp_path, write, folder)
    assert run.recipe.lora_rank == 4
    adapted = load_adapted(run)
    assert len(adapted.tokenizer) == rows
    assert torch.allclose(logits(adapted.model, rows - 40), logits(plain, rows - 40), atol=1e-5)
    options = {"target": "merged", "dtype": "float32"}
    exported = operations.export(str(run.directory), str(tmp_path / "merged"), options)
    assert exported["proof"]["passed"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(merged, rows - 40), logits(plain, rows - 40), atol=1e-5)


TENSORS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERTS = {
    "experts and layers": {"target_parameters": TENSORS},
    "experts alone": {"target_parameters": TENSORS, "target_modules": []},
    "one tensor": {"target_parameters": TENSORS[1:]},
    "one block": {"target_parameters": [f"model.layers.1.{TENSORS[0]}"]},
    "regex": {"target_parameters": TENSORS, "target_modules": r".*layers\.1.*(q_proj|v_proj)"},
    "ranks and alphas": {
        "target_parameters": TENSORS,
        "rank_pattern": {"experts.gate_up_proj": 2, "q_proj": 3},
        "alpha_pattern": {r"layers\.0.*down_proj": 5, "v_proj": 3},
    },
}


@pytest.fixture(scope="module")
def base_with_experts(tmp_path_factory):
    tokenizer = tokenizer_of("ChatML")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        initializer_range=0.1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).save_pretrained(folder := tmp_path_factory.mktemp("bases") / "moe")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", EXPERTS)
def test_an_adapter_of_experts_answers_as_in_plain_peft_and_is_merged(
    name, base_with_experts, tmp_path, write
):
    adapter_of(base_with_experts, tmp_path / "adapter", **EXPERTS[name])
    run = import_run(tmp_path, write, tmp_path / "adapter", learning_rate=1e-9)
    assert run.recipe.adapt_experts
    assert largest_difference(run, base_with_experts, tmp_path / "adapter") < 1e-5
    options = {"target": "merged", "dtype": "float32"}
    exported = operations.export(str(run.directory), str(tmp_path / "merged"), options)
    assert exported["proof"]["passed"]
    before = logits(load_adapted(run).model)
    assert operations.train(str(run.directory))["event"] == "Finished"
    assert torch.allclose(logits(load_adapted(run).model), before, atol=1e-3)


def test_layers_of_single_experts_are_refused_with_the_reason(tmp_path, write):
    tokenizer = tokenizer_of("ChatML")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    config = MixtralConfig(vocab_size=len(tokenizer), num_experts_per_tok=1, **sizes | heads)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter_of(tmp_path / "base", folder := tmp_path / "adapter")
    path = folder / "adapter_config.json"
    targets = {"target_modules": ["q_proj", "v_proj", "w1", "w2", "w3"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | targets))
    with pytest.raises(UserError) as error:
        import_run(tmp_path, write, folder)
    assert error.value.code == "models.adapter_mismatch"
    assert "expert" in str(error.value)


# other types


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
@pytest.mark.sample(1)
def test_an_adapter_of_another_type_becomes_a_lora_with_the_measured_error(
    config, base, tmp_path, write
):
    original = logits(adapter_of(base, folder := tmp_path / "adapter", config=config, alpha=16))
    run = import_run(tmp_path, write, folder)
    converted = logits(load_adapted(run).model)
    assert torch.allclose(converted, original, atol=2e-2)
    [notice] = notices(run)
    assert "LoRA of rank" in notice


def test_adapters_that_cannot_become_a_lora_are_reported(base, tmp_path, write):
    from peft import IA3Config

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )  # fmt: skip
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError) as error:
        import_run(tmp_path, write, tmp_path / "adapter")
    assert error.value.code == "training.adapter_unsupported"
    assert "IA3" in str(error.value)
