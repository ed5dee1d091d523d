"""Decides how vLLM and TGI can serve an adapter, and writes the commands.

Facts are those of vLLM 0.32 (`vllm/lora/peft_helper.py`, `config/lora.py`,
`model_executor/models/registry.py`) and of TGI 3 (`server/text_generation_server/adapters/lora.py`,
`utils/adapter.py`). Loads no weights and does not need torch.
"""

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peft_space.models.architecture import (
    AUTO_CLASSES,
    ModelLayers,
    modules_to_save,
    text_half,
    wrapped_layers,
)
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `--max-lora-rank` accepts."""
_VLLM_HEADS = ("classifier", "score")
_VLLM_WITHOUT_LORA = (
    "bert bloom cohere2_moe dbrx falcon falcon_mamba gemma3n gpt2 gptj mamba mamba2 modernbert "
    "orion phi3_v stablelm step1 zamba2"
).split()
"""Model types that vLLM serves without adapters."""
_VLLM_TAGGERS = ("bert", "modernbert", "roberta", "xlm-roberta")
_TGI_LAYERS = frozenset(
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
)

Engine = Literal["PEFT", "vLLM", "TGI"]
SupportLevel = Literal["adapter", "merged", "neither"]


@dataclass(frozen=True)
class AdapterTraits:
    """The properties of an adapter that decide which engine can serve it."""

    task: Task
    model_type: str
    rank: int
    """The largest of its layers."""
    dora: bool
    bias: bool
    saved: tuple[str, ...]
    """Modules that are saved whole or in part, such as the rows of new tokens in the embeddings."""
    layers: tuple[str, ...]
    """The last part of the name of each kind of layer."""
    every_block: bool
    patterns: bool
    """Layers differ in rank or alpha."""
    experts: bool
    """It adapts tensors that hold all experts of a block."""
    quantization: str
    """Of the base model in training."""
    text_half: str | None = None
    """The class that was trained, if the base model is more than this text half."""


@dataclass(frozen=True)
class EngineSupport:
    """How an engine serves an adapter, and why."""

    engine: Engine
    how: SupportLevel
    why: str


def traits_of_recipe(recipe: Recipe, layers: ModelLayers, quantization: str) -> AdapterTraits:
    """Return the traits of the adapter that a recipe will train.

    Args:
        recipe: the recipe; PiSSA and LoftQ end with twice their rank.
        layers: the layers of its base model.
        quantization: of the base model.
    """
    wrapped = wrapped_layers(recipe, layers)
    return AdapterTraits(
        task=layers.task,
        model_type=layers.model.config.model_type,
        rank=recipe.lora_rank * (2 if recipe.method in ("pissa", "loftq") else 1),
        dora=recipe.method == "dora",
        bias=recipe.lora_bias != "none",
        saved=tuple(modules_to_save(recipe, layers)),
        layers=_kinds(wrapped),
        every_block=recipe.layers_to_transform is None,
        patterns=recipe.adapt_experts,
        experts=recipe.adapt_experts,
        quantization=quantization,
        text_half=layers.text_half,
    )


def traits_of_adapter(
    adapter: Path, task: Task, config: "PreTrainedConfig", quantization: str
) -> AdapterTraits:
    """Return the traits of an adapter, from its config and the names of its tensors.

    Args:
        adapter: the folder of the adapter.
        task: that it was trained for.
        config: of its base model.
        quantization: of its base model in training.
    """
    from safetensors import safe_open

    text = (adapter / "adapter_config.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    ranks, alphas = values.get("rank_pattern") or {}, values.get("alpha_pattern") or {}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        tensors = list(file.keys())
    return AdapterTraits(
        task=task,
        model_type=config.model_type,
        rank=max([values["r"], *ranks.values()]),
        dora=bool(values.get("use_dora")),
        bias=values.get("bias", "none") != "none" or bool(values.get("lora_bias")),
        saved=_trained_without_lora(values, tensors),
        layers=_kinds(name.partition(".lora_")[0] for name in tensors if ".lora_" in name),
        every_block=values.get("layers_to_transform") is None,
        patterns=bool(ranks or alphas),
        experts=bool(values.get("target_parameters")),
        quantization=quantization,
        text_half=text_half(config, task),
    )


def _trained_without_lora(config: dict[str, Any], tensors: Iterable[str]) -> tuple[str, ...]:
    """The modules in `modules_to_save`, and the embeddings of which the file contains rows."""
    saved = list(config.get("modules_to_save") or ())
    for name in tensors:
        module = re.split(r"\.(?:token_adapter|base_layer|original_module)\.|\.weight$", name)[0]
        leaf = module.rpartition(".")[2]
        if ".lora_" not in name and leaf in ("embed_tokens", "lm_head", "wte", "word_embeddings"):
            saved.append(leaf)
    return tuple(dict.fromkeys([*saved, *_token_rows(config)]))


def _kinds(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name.rpartition(".")[2] for name in names}))


def engine_support(traits: AdapterTraits) -> list[EngineSupport]:
    """Return how each engine serves an adapter: as an adapter if it can."""
    why = "PEFT loads every adapter that is trained here."
    if traits.text_half:
        why += f" Load the base model with {AUTO_CLASSES[traits.task]}, which makes "
        why += f"{traits.text_half} of it. On the whole model the adapter has no effect."
    return [EngineSupport("PEFT", "adapter", why), _vllm(traits), _tgi(traits)]


def _vllm(traits: AdapterTraits) -> EngineSupport:
    if traits.task == "seq2seq-lm":
        why = "vLLM does not serve encoder-decoder models. Use transformers."
        return EngineSupport("vLLM", "neither", why)
    if traits.task == "token-classification":
        if traits.model_type not in _VLLM_TAGGERS:
            why = f"vLLM does not serve {traits.model_type} models that tag tokens. "
            return EngineSupport("vLLM", "neither", why + "Use transformers.")
        why = "Merge first: vLLM serves models that tag tokens without adapters."
        return EngineSupport("vLLM", "merged", why)
    reasons = []
    if traits.dora:
        reasons.append("it does not support DoRA")
    if traits.bias:
        reasons.append("it does not support trained biases")
    if others := [name for name in traits.saved if name not in _VLLM_HEADS]:
        heads = " or ".join(_VLLM_HEADS)
        reasons.append(f"of modules without a LoRA it accepts only {heads}, not {others[0]}")
    if traits.rank > VLLM_RANKS[-1]:
        reasons.append(f"its largest rank is {VLLM_RANKS[-1]}, and this one is {traits.rank}")
    if traits.experts:
        reasons.append("it loads adapters of experts only for some models")
    if traits.text_half:
        reasons.append(_on_the_whole_base(traits.text_half))
    if traits.model_type in _VLLM_WITHOUT_LORA:
        reasons.append(f"it serves {traits.model_type} models without adapters")
    how = "" if reasons else f"with --max-lora-rank {vllm_rank(traits.rank)}"
    return _support("vLLM", traits, reasons, how)


def _on_the_whole_base(text_half: str) -> str:
    return (
        f"the adapter fits {text_half}, and it would load the whole base model, whose layers have "
        "other names, so the adapter would do nothing"
    )


def _tgi(traits: AdapterTraits) -> EngineSupport:
    if traits.task in ("sequence-classification", "token-classification"):
        why = "TGI serves only models that write text. Use transformers, or vLLM if it supports it."
        return EngineSupport("TGI", "neither", why)
    reasons = []
    if traits.task == "seq2seq-lm":
        reasons.append("it accepts adapters only for decoders")
    if traits.task == "image-text-to-text":
        reasons.append("its adapters are meant for models that read only text")
    if traits.text_half:
        reasons.append(_on_the_whole_base(traits.text_half))
    if traits.dora:
        reasons.append("it silently ignores DoRA's magnitudes")
    if traits.bias or traits.saved:
        reasons.append("it silently ignores trained biases and modules without a LoRA")
    if others := [name for name in traits.layers if name not in _TGI_LAYERS]:
        reasons.append(f"it does not support adapters of layers called {others[0]}")
    if not traits.every_block:
        reasons.append("it ignores layers unless every block has an adapter")
    if traits.patterns:
        reasons.append("it scales all layers by the same factor")
    return _support("TGI", traits, reasons, "with LORA_ADAPTERS")


def _support(engine: Engine, traits: AdapterTraits, reasons: list[str], how: str) -> EngineSupport:
    """Merged if there is a reason for it, otherwise as an adapter."""
    if reasons:
        return EngineSupport(engine, "merged", f"Merge first: {', and '.join(reasons)}.")
    why = f"Serve it as an adapter, {how}."
    if traits.quantization != "none":
        why += f" It was trained on the base model quantized as {traits.quantization}, so on the "
        why += "full-precision base its answers differ a little. A merge into full measures that."
    return EngineSupport(engine, "adapter", why)


def vllm_rank(rank: int) -> int:
    """Return the smallest `--max-lora-rank` that is large enough."""
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def commands(
    how: SupportLevel,
    name: str,
    folder: Path,
    traits: AdapterTraits,
    base: str,
    revision: str | None,
    dtype: str,
) -> dict[Engine, str]:
    """Return a shell command for each engine that can serve an export.

    Args:
        how: `adapter` or `merged`: the content of `folder`.
        name: under which the server offers the adapter.
        folder: the exported files.
        traits: of the adapter.
        base: Hub id or folder of the base model.
        revision: of the base model on the Hub.
        dtype: of a merged model, or `gptq` or `awq`.
    """
    support = {way.engine: way.how for way in engine_support(traits)}
    served = [engine for engine, level in support.items() if level in ("adapter", how)]
    path, pinned = str(folder), ["--revision", revision] if revision else []
    lora, tgi = f"{name}={path}", ["text-generation-launcher", "--model-id"]
    if how == "adapter":
        vllm = ["vllm", "serve", base, *pinned, "--enable-lora", "--lora-modules", lora]
        if traits.task == "causal-lm":  # as in training: tokens, chat template, ends of answers
            vllm += ["--tokenizer", path, "--generation-config", path]
        launch = shlex.join([*tgi, base, *pinned])
        lines: dict[Engine, str] = {"TGI": f"LORA_ADAPTERS={shlex.quote(lora)} {launch}"}
        if "vLLM" in served:
            lines["vLLM"] = shlex.join([*vllm, "--max-lora-rank", str(vllm_rank(traits.rank))])
    else:
        vllm, tgi = ["vllm", "serve", path], [*tgi, path]
        if dtype in ("gptq", "awq"):  # vLLM reads it in the model's config
            tgi += ["--quantize", dtype]
        else:
            vllm += ["--dtype", dtype]
            tgi += [] if dtype == "float32" else ["--dtype", dtype]  # which TGI does not offer
        lines = {"vLLM": shlex.join(vllm), "TGI": shlex.join(tgi)}
    return {engine: lines[engine] for engine in served if engine in lines}


def _token_rows(config: dict[str, Any]) -> tuple[str, ...]:
    """The layer in which rows of single tokens are trained. Engines do not load such rows."""
    rows = config.get("trainable_token_indices")
    return tuple(rows) if isinstance(rows, dict) else ("embeddings",) * bool(rows)
