"""A merge equals plain PEFT in float32, byte for byte, in memory and on disk."""

import copy
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_space.errors import UserError
from peft_space.export import merge as merging
from peft_space.export.merge import _tensor_store, load_published_base, merge, merge_into, merged
from peft_space.export.verify import expected_deltas, layers_missing_delta
from peft_space.models.loading import base_of
from tests.fixtures.digests import digests

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
    "biases of the adapter": (
        LLAMA,
        {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    ),
    "a head saved in full": (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a tied head saved in full": (
        TIED,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "tied embeddings": (TIED, {"target_modules": ["q_proj", "embed_tokens"]}),
    "Conv1D": (GPT2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "experts with other keys in the file": (
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
    """The class, and the folders of a base in bfloat16 and of an adapter with random weights."""
    (kind, config), settings = CASES[request.param]
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    base = cls(config).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        cls.from_pretrained(tmp_path / "base", dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, **settings),
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return cls, tmp_path / "base", tmp_path / "adapter"


def logits_of(model):
    ids = torch.arange(3, 20)[None]
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model.eval()(input_ids=ids, **decoder).logits


@pytest.mark.sample(1)
def test_a_merge_equals_peft_in_float32_and_answers_as_the_adapter_does(pair, tmp_path):
    cls, base, adapter = pair
    adapted = PeftModel.from_pretrained(cls.from_pretrained(base, dtype=torch.float32), adapter)
    tuned = logits_of(adapted)
    untuned = logits_of(cls.from_pretrained(base, dtype=torch.float32))
    deltas = expected_deltas(adapted)
    files = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, scratch in (("memory", None), ("disk", tmp_path)):
            published = cls.from_pretrained(base, dtype="auto")
            model = merged(published, adapter, dtype, _tensor_store(scratch))
            model.save_pretrained(tmp_path / name)
            files[name] = load_file(tmp_path / name / "model.safetensors")
        plain = PeftModel.from_pretrained(
            cls.from_pretrained(base, dtype=torch.float32), adapter
        ).merge_and_unload()
        plain.to(dtype).save_pretrained(tmp_path / "plain")
        by_peft = load_file(tmp_path / "plain" / "model.safetensors")
        assert files["memory"].keys() == files["disk"].keys()
        assert all(torch.equal(files["memory"][key], files["disk"][key]) for key in files["disk"])
        # PEFT also merges embeddings into the tied head, and so changes the answers
        if "embed_tokens" not in adapted.peft_config["default"].target_modules:
            assert files["disk"].keys() == by_peft.keys()
            assert all(torch.equal(files["disk"][key], by_peft[key]) for key in by_peft)
        loaded = cls.from_pretrained(tmp_path / "disk", dtype="auto")
        assert not layers_missing_delta(loaded, deltas, str(dtype).removeprefix("torch."))
        difference = (logits_of(loaded).float() - tuned).abs().max()
        effect = (tuned - untuned).abs().max()
        assert difference < (1e-4 if dtype == torch.float32 else 0.2 * effect)
    assert not [path for path in tmp_path.iterdir() if path.is_file()], "temporary files are gone"


def faults_of(model, deltas, dtype):
    """Layer and percentage of each fault."""
    faults = layers_missing_delta(model, deltas, dtype)
    return [tuple(fault.split()[index] for index in (0, 2)) for fault in faults]


def test_a_wrong_scale_or_a_missing_layer_shows_in_the_weights():
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(LLAMA[1])
    targets = {"target_modules": ["q_proj", "v_proj"]}
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **targets)
    adapted = get_peft_model(base, config)
    deltas = expected_deltas(adapted)
    adapted.base_model.model.model.layers[1].self_attn.v_proj.scaling["default"] /= 2
    adapted.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] = 0.0
    model = adapted.merge_and_unload().to(torch.bfloat16)
    assert faults_of(model, deltas, "bfloat16") == [
        ("model.layers.0.self_attn.q_proj", "0%"),
        ("model.layers.1.self_attn.v_proj", "50%"),
    ]


def test_faults_of_a_merged_dora_show_in_the_weights():
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_dora=True)
    adapted = get_peft_model(transformers.LlamaForCausalLM(LLAMA[1]), config)
    assert len(expected_deltas(adapted)) == 4
    untrained = copy.deepcopy(adapted).merge_and_unload()
    assert layers_missing_delta(untrained, expected_deltas(adapted), "float32") == []
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    deltas, layers = expected_deltas(adapted), adapted.base_model.model.model.layers
    magnitude = layers[1].self_attn.v_proj.lora_magnitude_vector["default"].weight
    magnitude.data = layers[1].self_attn.v_proj.get_base_layer().weight.norm(dim=1)
    skipped = layers[0].self_attn.q_proj.get_base_layer().weight.clone()
    model = adapted.merge_and_unload()
    model.model.layers[0].self_attn.q_proj.weight.data = skipped
    first, second = faults_of(model.to(torch.bfloat16), deltas, "bfloat16")
    assert first == ("model.layers.0.self_attn.q_proj", "0%")
    assert second[0] == "model.layers.1.self_attn.v_proj"


@pytest.mark.slow
def test_the_merged_folder_is_a_complete_model_in_shards(short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "MAX_SHARD_SIZE", "3MB")
    before = digests(short_run.directory)
    (tmp_path / "out").mkdir()
    merge(short_run, tmp_path / "out", "bfloat16", "dequantized", on_disk=True)
    assert digests(short_run.directory) == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    configs = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    assert configs | {"README.md"} < names
    assert "model.safetensors.index.json" in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    assert "dequantizing" in (tmp_path / "out" / "README.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


def test_a_weight_too_large_for_float16_is_rejected(tmp_path):
    base = transformers.LlamaForCausalLM(LLAMA[1])
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    base = adapted.unload()
    base.model.layers[0].self_attn.q_proj.weight.data[0, 0] = 1e6
    with pytest.raises(UserError) as error:
        merged(base, tmp_path / "adapter", torch.float16, _tensor_store(None))
    assert error.value.code == "export.weight_too_large"


def test_a_full_disk_is_reported_before_anything_is_written(short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as error:
        merge(short_run, tmp_path / "out", "float32", "full")
    assert error.value.code == "export.no_disk_space"
    assert str(tmp_path) in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_do_not_exist_are_not_merged_into(short_run):
    assert merge_into(short_run, None) == "dequantized"
    assert merge_into(short_run, "full") == "full"
    plain = type(short_run)(short_run.directory)
    plain.recipe = short_run.recipe.model_copy(update={"quantization": "none"})
    assert merge_into(plain, None) == "full"
    with pytest.raises(UserError) as error:
        merge_into(plain, "dequantized")
    assert error.value.code == "export.no_such_weights"


def test_the_published_base_has_its_own_dtype_and_is_not_quantized(short_run):
    model = load_published_base(short_run, *base_of(short_run))
    assert model.dtype == torch.float16
    assert not hasattr(model, "hf_quantizer")


@pytest.mark.slow
def test_merging_a_large_model_takes_the_memory_of_a_shard(tmp_path):
    """287 MiB of weights, merged from bfloat16 to float16 with shards of 50 MB."""
    script = """
        import sys, threading, time, torch, transformers
        from pathlib import Path
        from peft import LoraConfig, get_peft_model
        from peft_space.export.merge import _tensor_store, merged
        folder = Path(sys.argv[1])
        if sys.argv[2] == "make":
            sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
            config = transformers.LlamaConfig(vocab_size=8000, num_attention_heads=8, **sizes)
            model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
            model.save_pretrained(folder / "base")
            config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
            get_peft_model(model, config).save_pretrained(folder / "adapter")
            raise SystemExit
        def anonymous():
            lines = open("/proc/self/status").readlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
        before, peak = anonymous(), [0.0]
        def watch():
            while True:
                peak[0] = max(peak[0], anonymous())
                time.sleep(0.005)
        threading.Thread(target=watch, daemon=True).start()
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype="auto")
        model = merged(model, folder / "adapter", torch.float16, _tensor_store(folder))
        model.save_pretrained(folder / "out", max_shard_size="50MB")
        print(peak[0] - before)
    """
    for step in ("make", "merge"):
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), step]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) < 287 / 2
