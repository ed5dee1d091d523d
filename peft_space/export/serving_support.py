"""What vLLM and TGI can do with an adapter: serve it beside its base, or only merged into it, and the command for either.

Facts are those of vLLM 0.32 (`vllm/lora/peft_helper.py`, `config/lora.py`, `model_executor/models/registry.py`) and of TGI 3
(`server/text_generation_server/adapters/lora.py`, `utils/adapter.py`). Loads no weights, and needs no torch.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft_space.models.architecture import ModelLayers, modules_to_save, wrapped_layers
from peft_space.recipe import Recipe, Task

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""
_VLLM_HEADS = ("classifier", "score")
_VLLM_WITHOUT_LORA = (
    "bert bloom cohere2_moe dbrx falcon falcon_mamba gemma3n gpt2 gptj mamba mamba2 modernbert orion phi3_v stablelm step1 zamba2"
).split()
"""Kinds of models that it serves without adapters."""
_VLLM_TAGGERS = ("bert", "modernbert", "roberta", "xlm-roberta")
_TGI_LAYERS = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
)

Engine = Literal["PEFT", "vLLM", "TGI"]
SupportLevel = Literal["adapter", "merged", "neither"]


@dataclass(frozen=True)
class AdapterTraits:
    """What of an adapter decides who can serve it."""

    task: Task
    model_type: str
    rank: int
    """The largest of its layers."""
    dora: bool
    bias: bool
    saved: tuple[str, ...]
    layers: tuple[str, ...]
    """Last parts of the names of its layers."""
    every_block: bool
    patterns: bool
    """Whether layers differ in rank or alpha."""
    quantization: str
    """Of the base in training."""


@dataclass(frozen=True)
class EngineSupport:
    """How an engine serves it, and why so."""

    engine: Engine
    how: SupportLevel
    why: str


def traits_of_recipe(recipe: Recipe, layers: ModelLayers, quantization: str) -> AdapterTraits:
    """Of the adapter that a recipe will make. PiSSA and LoftQ end with twice their rank."""
    wrapped = wrapped_layers(recipe, layers)
    return AdapterTraits(
        task=layers.task,
        model_type=layers.model.config.model_type,
        rank=recipe.lora_rank * (2 if recipe.method in ("pissa", "loftq") else 1),
        dora=recipe.method == "dora",
        bias=recipe.lora_bias != "none",
        saved=tuple(modules_to_save(recipe, layers)),
        layers=tuple(sorted({name.rpartition(".")[2] for name in wrapped})),
        every_block=recipe.layers_to_transform is None,
        patterns=False,
        quantization=quantization,
    )


def traits_of_adapter(
    adapter: Path, task: Task, model_type: str, quantization: str
) -> AdapterTraits:
    """Of an adapter in a folder, from its config and the names of its tensors."""
    from safetensors import safe_open

    config: dict[str, Any] = json.loads(
        (adapter / "adapter_config.json").read_text(encoding="utf-8")
    )
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = {name.partition(".lora_")[0] for name in file.keys() if ".lora_" in name}  # noqa: SIM118 - it is no dict
    return AdapterTraits(
        task=task,
        model_type=model_type,
        rank=max([config["r"], *ranks.values()]),
        dora=bool(config.get("use_dora")),
        bias=config.get("bias", "none") != "none" or bool(config.get("lora_bias")),
        saved=tuple(config.get("modules_to_save") or ()),
        layers=tuple(sorted({name.rpartition(".")[2] for name in names})),
        every_block=config.get("layers_to_transform") is None,
        patterns=bool(ranks or alphas),
        quantization=quantization,
    )


def engine_support(traits: AdapterTraits) -> list[EngineSupport]:
    """How each engine serves it, as an adapter where it can."""
    return [
        EngineSupport("PEFT", "adapter", "PEFT loads every adapter that is trained here."),
        _vllm(traits),
        _tgi(traits),
    ]


def _vllm(traits: AdapterTraits) -> EngineSupport:
    if traits.task == "seq2seq-lm":
        return EngineSupport(
            "vLLM",
            "neither",
            "vLLM serves no encoder-decoders that write texts. Use it with transformers.",
        )
    if traits.task == "token-classification":
        if traits.model_type not in _VLLM_TAGGERS:
            return EngineSupport(
                "vLLM",
                "neither",
                f"vLLM serves no {traits.model_type} models that tag tokens. Use it with transformers.",
            )
        return EngineSupport(
            "vLLM", "merged", "Merge first: it serves models that tag tokens without adapters."
        )
    reasons = []
    if traits.dora:
        reasons.append("it does not support DoRA")
    if traits.bias:
        reasons.append("it supports no trained biases")
    if others := [name for name in traits.saved if name not in _VLLM_HEADS]:
        reasons.append(
            f"of modules saved whole it takes only a head called classifier or score, not {others[0]}"
        )
    if traits.rank > VLLM_RANKS[-1]:
        reasons.append(f"its largest rank is {VLLM_RANKS[-1]}, and this one is {traits.rank}")
    if traits.model_type in _VLLM_WITHOUT_LORA:
        reasons.append(f"it serves {traits.model_type} models without adapters")
    if reasons:
        return EngineSupport("vLLM", "merged", f"Merge first: {', and '.join(reasons)}.")
    return EngineSupport(
        "vLLM",
        "adapter",
        f"Serve it as an adapter, with --max-lora-rank {vllm_rank(traits.rank)}.{_other_base(traits)}",
    )


def _tgi(traits: AdapterTraits) -> EngineSupport:
    if traits.task in ("sequence-classification", "token-classification"):
        return EngineSupport(
            "TGI",
            "neither",
            "TGI serves models that write text, no classification. Use it with transformers, or vLLM where that can.",
        )
    reasons = []
    if traits.task == "seq2seq-lm":
        reasons.append("it takes adapters for decoders alone")
    if traits.dora:
        reasons.append("it would leave out DoRA's magnitudes without a word")
    if traits.bias or traits.saved:
        reasons.append("it would leave out trained biases and modules saved whole without a word")
    if others := [name for name in traits.layers if name not in _TGI_LAYERS]:
        reasons.append(f"it knows no adapter for layers called {others[0]}")
    if not traits.every_block:
        reasons.append("it leaves out layers of which not every block has an adapter")
    if traits.patterns:
        reasons.append("it scales all layers alike")
    if reasons:
        return EngineSupport("TGI", "merged", f"Merge first: {', and '.join(reasons)}.")
    return EngineSupport(
        "TGI", "adapter", f"Serve it as an adapter, by LORA_ADAPTERS.{_other_base(traits)}"
    )


def _other_base(traits: AdapterTraits) -> str:
    if traits.quantization == "none":
        return ""
    return (
        f" It was trained on the base in {traits.quantization}; on the full-precision base answers differ a little, which the proof of a "
        "merge into full measures."
    )


def vllm_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that does."""
    return next(step for step in VLLM_RANKS if step >= rank)


def commands(
    how: SupportLevel,
    name: str,
    folder: Path,
    traits: AdapterTraits,
    base: str,
    revision: str | None,
    dtype: str,
) -> dict[Engine, str]:
    """A command line for each engine that can serve what lies in `folder`.

    Args:
        how: whether that is an adapter or a merged model.
        base: the base's Hub id or folder, and its `revision` where it has one.
    """
    found: dict[Engine, str] = {}
    at = str(folder)
    pinned = ["--revision", revision] if revision else []
    for way in engine_support(traits):
        if (
            way.engine == "PEFT"
            or way.how == "neither"
            or (how == "adapter" and way.how != "adapter")
        ):
            continue
        if way.engine == "vLLM":
            words = ["vllm", "serve", at, "--dtype", dtype]
            if how == "adapter":
                lora = [
                    "--enable-lora",
                    "--lora-modules",
                    f"{name}={at}",
                    "--max-lora-rank",
                    str(vllm_rank(traits.rank)),
                ]
                words = ["vllm", "serve", base, *pinned, *lora]
            found["vLLM"] = shlex.join(words)
        elif how == "adapter":
            launched = shlex.join(["text-generation-launcher", "--model-id", base, *pinned])
            found["TGI"] = f"LORA_ADAPTERS={shlex.quote(f'{name}={at}')} {launched}"
        else:  # it has no float32 to offer
            found["TGI"] = shlex.join(
                [
                    "text-generation-launcher",
                    "--model-id",
                    at,
                    *([] if dtype == "float32" else ["--dtype", dtype]),
                ]
            )
    return found
