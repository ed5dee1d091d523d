"""A merged model is what plain PEFT makes of base and adapter in float32, to the byte, whether it is merged in memory or on the disk."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_space.errors import UserError
from peft_space.export import folder as folders
from peft_space.export.merge import _tensor_store, load_published_base, merge, merge_into, merged
from peft_space.export.verify_weights import expected_deltas, layers_missing_delta
from peft_space.models.loading import base_of
from tests.export.test_export import digests

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
LLAMA = ("LlamaForCausalLM", transformers.LlamaConfig(**SMALL, attention_bias=True))
TIED = ("LlamaForCausalLM", transformers.LlamaConfig(**SMALL, tie_word_embeddings=True))
GPT2 = ("GPT2LMHeadModel", transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))
MIXTRAL = (
    "MixtralForCausalLM",
    transformers.MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1
    ),
)
BERT = ("BertForSequenceClassification", transformers.BertConfig(**SMALL, num_labels=3))
T5 = (
    "T5ForConditionalGeneration",
    transformers.T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2),
)
CASES = {
    "rank and alpha patterns, rsLoRA": (
        LLAMA,
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"v_proj": 32},
        },
    ),
    "DoRA": (LLAMA, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "all biases": (LLAMA, {"target_modules": ["q_proj", "v_proj"], "bias": "all"}),
    "biases of the adapter's own": (
        LLAMA,
        {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    ),
    "a head saved whole": (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a head saved whole that was tied": (
        TIED,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "embeddings that are tied": (TIED, {"target_modules": ["q_proj", "embed_tokens"]}),
    "Conv1D": (GPT2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "experts whose keys are others in the file": (
        MIXTRAL,
        {"target_modules": ["q_proj", "v_proj"]},
    ),
    "a classifier": (
        BERT,
        {
            "target_modules": ["query", "value"],
            "modules_to_save": ["classifier"],
            "task_type": "SEQ_CLS",
        },
    ),
    "an encoder-decoder": (T5, {"target_modules": ["q", "v", "wi"]}),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def pair(request, tmp_path):
    """(class, base in bfloat16, trained-looking adapter), both on the disk."""
    (kind, config), chosen = CASES[request.param]
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    base = cls(config).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        cls.from_pretrained(tmp_path / "base", dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, **chosen),
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return cls, tmp_path / "base", tmp_path / "adapter"


def ask(model):
    ids = torch.arange(3, 20)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model.eval()(input_ids=ids, **more).logits


def test_a_merge_is_what_peft_makes_in_float32_and_answers_as_the_adapter_does(pair, tmp_path):
    cls, base, adapter = pair
    adapted = PeftModel.from_pretrained(cls.from_pretrained(base, dtype=torch.float32), adapter)
    wanted, before = ask(adapted), ask(cls.from_pretrained(base, dtype=torch.float32))
    added = expected_deltas(adapted)
    files = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, scratch in (("memory", None), ("disk", tmp_path)):
            model = merged(
                cls.from_pretrained(base, dtype="auto"), adapter, dtype, _tensor_store(scratch)
            )
            model.save_pretrained(tmp_path / name)
            files[name] = load_file(tmp_path / name / "model.safetensors")
        plain = (
            PeftModel.from_pretrained(cls.from_pretrained(base, dtype=torch.float32), adapter)
            .merge_and_unload()
            .to(dtype)
        )
        plain.save_pretrained(tmp_path / "plain")
        by_peft = load_file(tmp_path / "plain" / "model.safetensors")
        assert files["memory"].keys() == files["disk"].keys()
        assert all(torch.equal(files["memory"][key], files["disk"][key]) for key in files["disk"])
        if (
            "embed_tokens" not in adapted.peft_config["default"].target_modules
        ):  # PEFT merges into the tied head too, and so answers otherwise
            assert files["disk"].keys() == by_peft.keys()
            assert all(torch.equal(files["disk"][key], by_peft[key]) for key in by_peft)
        loaded = cls.from_pretrained(tmp_path / "disk", dtype="auto")
        assert not layers_missing_delta(loaded, added, str(dtype).removeprefix("torch."))
        off = (ask(loaded).float() - wanted).abs().max()
        assert off < (1e-4 if dtype == torch.float32 else 0.2 * (wanted - before).abs().max())
    assert not [
        path for path in tmp_path.iterdir() if path.is_file()
    ]  # what lay on the disk meanwhile


def test_a_wrong_scale_or_a_layer_left_out_is_seen_in_the_weights():
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(LLAMA[1])
    adapted = get_peft_model(
        base,
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    added = expected_deltas(adapted)
    adapted.base_model.model.model.layers[1].self_attn.v_proj.scaling["default"] /= 2
    adapted.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] = 0.0
    model = adapted.merge_and_unload().to(torch.bfloat16)
    assert layers_missing_delta(model, added, "bfloat16") == [
        "model.layers.0.self_attn.q_proj has 0% of what the adapter adds to it",
        "model.layers.1.self_attn.v_proj has 50% of what the adapter adds to it",
    ]


def test_of_dora_the_same_is_seen():
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_dora=True)
    adapted = get_peft_model(transformers.LlamaForCausalLM(LLAMA[1]), config)
    assert len(expected_deltas(adapted)) == 4
    assert (
        layers_missing_delta(
            copy.deepcopy(adapted).merge_and_unload(), expected_deltas(adapted), "float32"
        )
        == []
    )  # nothing is added yet
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    added, layers = expected_deltas(adapted), adapted.base_model.model.model.layers
    magnitude = layers[1].self_attn.v_proj.lora_magnitude_vector["default"].weight
    magnitude.data = layers[1].self_attn.v_proj.get_base_layer().weight.norm(dim=1)
    left_out = layers[0].self_attn.q_proj.get_base_layer().weight.clone()
    model = adapted.merge_and_unload()
    model.model.layers[0].self_attn.q_proj.weight.data = left_out
    first, second = layers_missing_delta(model.to(torch.bfloat16), added, "bfloat16")
    assert first == "model.layers.0.self_attn.q_proj has 0% of what the adapter adds to it"
    assert second.startswith("model.layers.1.self_attn.v_proj has"), second


def test_the_merged_folder_has_all_that_a_model_needs_in_shards_and_the_run_stays_as_it_was(
    short_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("peft_space.export.merge.SHARD", "3MB")
    before = digests(short_run.directory)
    (tmp_path / "out").mkdir()
    merge(short_run, tmp_path / "out", "bfloat16", "dequantized", on_disk=True)
    assert digests(short_run.directory) == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    } < names
    assert "model.safetensors.index.json" in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    assert (
        "with a LoRA adapter merged into it as its quantized weights stand"
        in (tmp_path / "out" / "README.md").read_text()
    )
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


def test_a_weight_that_float16_cannot_hold_is_told(tmp_path):
    base = transformers.LlamaForCausalLM(LLAMA[1])
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    base = adapted.unload()
    base.model.layers[0].self_attn.q_proj.weight.data[0, 0] = 1e6
    with pytest.raises(UserError, match=r"larger than 65,504.*bfloat16 or float32"):
        merged(base, tmp_path / "adapter", torch.float16, _tensor_store(None))


def test_a_disk_without_room_is_told_before_anything_is_written(short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        folders.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20})
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"needs 0\.\d\d GiB .* and 0\.00 GiB are free"):
        merge(short_run, tmp_path / "out", "float32", "full")
    assert not list((tmp_path / "out").iterdir())


def test_what_is_not_to_be_had_is_not_merged_into(short_run):
    assert merge_into(short_run, None) == "dequantized"
    assert merge_into(short_run, "full") == "full"
    plain = type(short_run)(short_run.directory)
    plain.recipe = short_run.recipe.model_copy(update={"quantization": "none"})
    assert merge_into(plain, None) == "full"
    with pytest.raises(UserError, match="nothing to dequantize"):
        merge_into(plain, "dequantized")


def test_the_published_base_is_in_its_own_dtype_and_whole(short_run):
    base, goal = base_of(short_run)
    model = load_published_base(short_run, base, goal)
    assert model.dtype == torch.float16
    assert not hasattr(model, "hf_quantizer")


@pytest.mark.slow
def test_a_large_model_takes_the_memory_of_a_shard_not_of_itself(tmp_path):
    """287 MiB of weights, merged from bfloat16 to float16 with shards of 50 MB."""
    script = """
        import sys, threading, time, torch, transformers
        from pathlib import Path
        from peft import LoraConfig, get_peft_model
        from peft_space.export.merge import _keeping, merged
        folder = Path(sys.argv[1])
        if sys.argv[2] == "make":
            config = transformers.LlamaConfig(vocab_size=8000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8)
            model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
            model.save_pretrained(folder / "base")
            get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).save_pretrained(folder / "adapter")
            raise SystemExit
        def anonymous():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
        before, most = anonymous(), [0.0]
        def watch():
            while True:
                most[0] = max(most[0], anonymous())
                time.sleep(0.005)
        threading.Thread(target=watch, daemon=True).start()
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype="auto")
        model = merged(model, folder / "adapter", torch.float16, _keeping(folder))
        model.save_pretrained(folder / "out", max_shard_size="50MB")
        print(most[0] - before)
    """
    for what in ("make", "merge"):
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), what]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) < 287 / 2
