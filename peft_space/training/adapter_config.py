"""Checks the config of an adapter made elsewhere, and writes it without patterns.

PEFT matches patterns with regular expressions, some of which take forever. The names in the
adapter's file say which layers it adapts, and with which rank, so that no pattern is needed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.compat.peft import matching_pattern
from peft_space.errors import UserError
from peft_space.models.architecture import CLASSIFYING, ModelLayers
from peft_space.models.repo_files import SafetensorsHeader, read_header, weight_file_fault
from peft_space.models.resolve import built_in_model
from peft_space.recipe import Recipe
from peft_space.training.adapter_source import CONFIG, WEIGHTS

_TASKS = {
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
_MAX_CONFIG_BYTES = 4_000_000
_KNOWN_FIELDS = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules",
    "modules_to_save", "bias", "use_dora", "use_rslora", "fan_in_fan_out", "inference_mode",
    "base_model_name_or_path", "revision", "layers_to_transform", "layers_pattern", "lora_bias",
    "rank_pattern", "alpha_pattern", "exclude_modules", "trainable_token_indices",
    "ensure_weight_tying", "target_parameters",
}  # fmt: skip
"""Fields of a LoRA adapter's config that are kept."""
_IGNORED_FIELDS = {
    "auto_mapping", "peft_version", "init_lora_weights", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "megatron_core", "enable_lora", "merge_weights",
    "qalora_group_size",
}  # fmt: skip
"""Fields that only matter when a new adapter is created, or that no version reads. Dropped."""
_REASONS = {
    "alora_invocation_tokens": "it is an aLoRA, which is active only after certain tokens. Only "
    "PEFT can run it",
    "layer_replication": "it repeats blocks of its base model. Merge it in PEFT, and use the "
    "merged model as base_model",
}
"""Why a known field cannot be imported, and what to do instead."""
CONVERTIBLE = (
    "LOHA", "LOKR", "ADALORA", "MISS", "VERA", "RANDLORA", "DELORA", "GRALORA", "C3A", "FOURIERFT",
)  # fmt: skip
"""Types of adapters that PEFT converts to LoRA: those that add a matrix to each layer."""
_MODULE = re.compile(r"[\w.-]{1,200}")
_PART_NAMES = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_PARTS = "|".join(_PART_NAMES)
_ADAPTER_NAME = re.compile(rf"(\.(?:{_PARTS}))\.default(?=\.weight$|\.bias$|$)")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterInfo:
    """The checked config of an adapter and the header of its weights."""

    config: dict[str, Any]
    header: SafetensorsHeader
    renamed: dict[str, str]
    """Names of tensors in the file that PEFT would not find -> the names that it looks for."""

    @property
    def layers(self) -> dict[str, int]:
        """The adapted layers by their full names, with the rank of each."""
        ranks = {}
        for name, shape in self.header.shapes.items():
            layer, _, part = self.renamed.get(name, name).rpartition(".lora_")
            if part in ("A.weight", "embedding_A") and layer.startswith(_PREFIX) and shape:
                ranks[layer.removeprefix(_PREFIX)] = shape[0]
        return ranks


def read_adapter(folder: Path, name: str) -> AdapterInfo:
    """Read and check the config and the header of an adapter.

    Args:
        folder: with both of its files.
        name: what messages call it.

    Raises:
        UserError: it is damaged, or it cannot be imported.
    """
    config = _read_config(folder, name)
    if fault := weight_file_fault(folder / WEIGHTS):
        raise UserError(
            "models.adapter_damaged",
            f"The adapter {name} cannot be loaded: {fault}. Copy or download it again.",
        )
    header = read_header(folder / WEIGHTS)
    assert header is not None, "the file was checked"
    if config["peft_type"] != "LORA":
        return AdapterInfo(_config_of_other_kind(config, name), header, {})
    _check_fields(config, name)
    renamed = {key: new for key in header.shapes if (new := _peft_name(key)) != key}
    kept = {field: value for field, value in config.items() if field in _KNOWN_FIELDS}
    return AdapterInfo(kept, header, renamed)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        if (folder / CONFIG).stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large for an adapter_config.json")
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config["peft_type"], str):
            raise TypeError("not a name")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name}: its adapter_config.json is damaged. Save the adapter again.",
        ) from None
    return config


def _peft_name(name: str) -> str:
    """The name that PEFT writes, of a tensor that a wrapper of torch or another tool has renamed.

    torch.compile adds `_orig_mod`, DataParallel `module`, and `state_dict` the adapter's name.
    """
    plain = name.replace("_orig_mod.", "").removeprefix("module.")
    plain = plain.replace(".modules_to_save.default.", ".")
    plain = _ADAPTER_NAME.sub(r"\1", plain)
    is_adapter = plain.startswith(_PREFIX) or not re.search(rf"\.(?:{_PARTS})(?:\.|$)", plain)
    return plain if is_adapter else f"{_PREFIX}{plain}"


# Fields


def _check_fields(config: Mapping[str, Any], name: str) -> None:
    """Reject fields from which PEFT would take modules, paths or patterns, and unknown ones."""
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    for field, value in config.items():
        known = field in _KNOWN_FIELDS or field in _IGNORED_FIELDS
        if not known and value and value != defaults.get(field):
            reason = _REASONS.get(field)
            known_to_peft = f"{field[:60]!r}, which cannot be imported. Merge the adapter into its "
            known_to_peft += "base model in PEFT, and use the merged model as base_model"
            unknown = f"{field[:60]!r}, which PEFT {_peft_version()} does not know. If the adapter "
            unknown += "works without it, remove it from the file"
            detail = known_to_peft if field in defaults else unknown
            sentence = f"{field}: {reason}" if reason else f"its {CONFIG} sets {detail}"
            raise UserError("training.adapter_unsupported", f"{name}: {sentence}.")
    if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name}: r and lora_alpha in its adapter_config.json are not numbers. "
            "Save the adapter again.",
        )
    targets = config.get("target_modules")
    if targets is not None and not isinstance(targets, str):
        _check_names(config, "target_modules", name)
    for field in ("modules_to_save", "exclude_modules", "layers_pattern", "target_parameters"):
        _check_names(config, field, name)
    for field in ("rank_pattern", "alpha_pattern"):
        _check_patterns(config.get(field) or {}, field, name)
    _check_token_indices(config.get("trainable_token_indices"), name)


def _check_names(config: Mapping[str, Any], field: str, name: str) -> None:
    value = config.get(field) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(
        isinstance(item, str) and _MODULE.fullmatch(item) for item in names
    ):
        raise UserError(
            "training.adapter_unsupported",
            f"{name}: {field} in its adapter_config.json is not a list of module names. "
            "Only such adapters can be imported.",
        )


def _check_patterns(patterns: Any, field: str, name: str) -> None:
    """Reject patterns that could take forever: repeated groups, or many repetitions."""
    valid = isinstance(patterns, dict) and all(
        isinstance(value, int | float) and _is_harmless(key) for key, value in patterns.items()
    )
    if not valid:
        raise UserError(
            "training.adapter_unsupported",
            f"{name}: {field} in its adapter_config.json has patterns that are not names of "
            "layers with a number. Write the names of the layers in their place.",
        )


def _is_harmless(pattern: str) -> bool:
    repetitions = len(re.findall(r"[*+{]", pattern))
    if len(pattern) > 300 or repetitions > 3 or re.search(r"\)[*+?{]", pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _check_token_indices(value: Any, name: str) -> None:
    lists = list(value.values()) if isinstance(value, dict) else [value or []]
    names = list(value) if isinstance(value, dict) else []
    are_numbers = all(
        isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids) for ids in lists
    )
    if not are_numbers or not all(_MODULE.fullmatch(one) for one in names):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name}: trainable_token_indices in its adapter_config.json is not a list of token "
            "ids. Save the adapter again.",
        )


def _config_of_other_kind(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of an adapter that PEFT can convert to LoRA."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = config["peft_type"]
    if kind not in CONVERTIBLE:
        raise UserError(
            "training.adapter_unsupported",
            f"{name} is an adapter of type {kind[:40]}, and PEFT {_peft_version()} cannot convert "
            f"it to LoRA; it converts {', '.join(CONVERTIBLE)}. If PEFT can merge it into its base "
            "model (merge_and_unload), use the merged model as base_model.",
        )
    fields = PEFT_TYPE_TO_CONFIG_MAPPING[kind]().to_dict()
    plain: dict[str, Any] = {}
    for field, value in config.items():
        is_pattern = field.endswith("_pattern") and isinstance(value, dict)
        if field not in fields or field in ("auto_mapping", "peft_version"):
            continue
        if is_pattern:
            _check_patterns(value, field, name)
        elif isinstance(value, list):
            numbers = all(type(item) is int for item in value)
            if not numbers:
                _check_names(config, field, name)
        elif isinstance(value, str) and field in ("target_modules", "layers_pattern"):
            _check_names(config, field, name)
        elif isinstance(value, dict):
            continue
        plain[field] = value
    return plain


def _peft_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("peft")


# The canonical config


def without_patterns(info: AdapterInfo, layers: ModelLayers) -> dict[str, Any]:
    """The config with the names of layers in place of patterns, from what is in the file.

    Args:
        info: the adapter.
        layers: of its base model.
    """
    config = dict(info.config)
    experts = _adapted_experts(config, layers)
    blocks = {name.rpartition(".")[0] for name in experts}
    # PEFT wraps a block of experts once for each of its tensors
    adapted = {
        name: rank
        for name, rank in info.layers.items()
        if name.replace(".base_layer", "") not in blocks
    }
    if not isinstance(config.get("target_modules"), list) and adapted:
        config["target_modules"] = _shortest_names(adapted, layers)
        # a pattern has taken these into account
        config |= {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    if ranks := config.get("rank_pattern"):
        own = adapted | {name: ranks.get(matching_pattern(ranks, name)) for name in experts}
        config["rank_pattern"] = {
            name: rank for name, rank in own.items() if rank not in (None, config["r"])
        }
    if alphas := config.get("alpha_pattern"):
        own = {name: alphas.get(matching_pattern(alphas, name)) for name in [*adapted, *experts]}
        config["alpha_pattern"] = {name: value for name, value in own.items() if value is not None}
    return config


def _adapted_experts(config: Mapping[str, Any], layers: ModelLayers) -> list[str]:
    """Full names of the tensors of experts that an adapter names in `target_parameters`.

    Raises:
        UserError: it names another parameter, or a tensor that the base model does not have.
    """
    targets = config.get("target_parameters") or []
    names = [name for name, _ in layers.model.named_parameters()]
    known = [name for name in names if name.endswith(tuple(f".{e}" for e in layers.expert_tensors))]
    found: list[str] = []
    for target in [targets] if isinstance(targets, str) else targets:
        matched = [name for name in names if f".{name}".endswith(f".{target}")]
        if not matched or not set(matched) <= set(known):
            raise UserError(
                "training.adapter_unsupported",
                f"The adapter's target_parameters name {target[:60]!r}, and this base model has "
                "no experts with such a tensor. Merge it into its base model in PEFT, and use the "
                "merged model as base_model.",
            )
        found += matched
    return found


def _shortest_names(adapted: Mapping[str, int], layers: ModelLayers) -> list[str]:
    """The last parts of names where they name the same layers, otherwise the whole names."""
    leaves = {name.rpartition(".")[2] for name in adapted}
    found = {name for name, _ in layers.model.named_modules() if name.rpartition(".")[2] in leaves}
    return sorted(leaves if found == set(adapted) else adapted)


def recipe_fields(info: AdapterInfo, name: str) -> dict[str, Any]:
    """The recipe fields that an adapter determines, apart from the base model and its layers.

    Raises:
        UserError: its rank is larger than a recipe's can be.
    """
    config = info.config
    largest = largest_rank()
    if config["r"] > largest:
        raise UserError(
            "training.adapter_unsupported",
            f"{name} has the rank {config['r']}, and ranks up to {largest} can be imported. "
            "Merge it into its base model in PEFT, and use the merged model as base_model.",
        )
    task = _TASKS.get(config.get("task_type") or "", "automatic")
    method = "rslora" if config.get("use_rslora") else "lora"
    return {
        "task": task,
        "method": "dora" if config.get("use_dora") else method,
        "lora_rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "modules_to_save": None if task in CLASSIFYING else config.get("modules_to_save"),
        **({"adapt_experts": True, "lora_dropout": 0.0} if config.get("target_parameters") else {}),
        "high_rank_reason": "The adapter was made with this rank." if config["r"] > 64 else None,
    }


def largest_rank() -> int:
    """The largest rank of a recipe."""
    limits = Recipe.model_fields["lora_rank"].metadata
    return int(next(limit.le for limit in limits if hasattr(limit, "le")))


def base_fields(config: Mapping[str, Any], chosen: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The base model of an imported adapter: the one that was chosen, or the one that it names.

    Args:
        config: of the adapter.
        chosen: fields that the user has set.
        name: what messages call the adapter.

    Raises:
        UserError: there is neither.
    """
    if chosen.get("base_model"):
        return {"base_model": chosen["base_model"], "revision": chosen.get("revision")}
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name} does not name its base model. Set base_model in the recipe.",
        )
    revision = config.get("revision")
    return {
        "base_model": built_in_model(base) or base,
        "revision": None if str(revision or "").startswith("sha256-") else revision,
    }
