"""Base models and adapters that try to run code, reach out, or take all memory. Each case changes the built-in model's files, and says what must come of it.

A bait is a file that their code would make and a socket that it would connect to: neither may happen.
"""

import json
import os
import pickle
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.demo import MODEL_DIR

OTHER = "evil/other"
"""A repository that a malicious model names."""


class Bait:
    """A file that no code may make, and a socket that nothing may connect to."""

    def __init__(self, folder: Path):
        self.file = folder / "canary"
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/model"

    @property
    def code(self) -> str:
        """Python that takes the bait."""
        connect = f"import socket; socket.create_connection(('127.0.0.1', {self.port}), 1)"
        return (
            f"open({str(self.file)!r}, 'w').close()\n{connect}\nclass Mine: pass\nclass MineTokenizer: pass\ndef generate(*a, **k): pass\n"
        )

    @property
    def pickled(self) -> bytes:
        """A pickle that takes the bait when it is opened."""
        return pickle.dumps(_Runs(self.code))

    def taken(self) -> bool:
        """Whether code ran or somebody connected."""
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return self.file.exists()
        return True


class _Runs:
    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


@dataclass(frozen=True)
class Case:
    """`make` changes a copy of the built-in model in a folder. `words` are in the refusal; None where it loads as if nothing were there."""

    make: Callable[[Path, Bait], None]
    words: str | None


CONFIG = json.loads((MODEL_DIR / "config.json").read_text())
CODE = "needs code of its own"


def put(name: str, content: bytes | str | Callable[[Bait], bytes | str]) -> Callable[[Path, Bait], None]:
    def make(folder: Path, bait: Bait) -> None:
        made = content(bait) if callable(content) else content
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(made if isinstance(made, bytes) else made.encode())

    return make


def change(name: str, **fields: Any) -> Callable[[Path, Bait], None]:
    def make(folder: Path, bait: Bait) -> None:
        path = folder / name
        own = {key: value(bait) if callable(value) else value for key, value in fields.items()}
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | own))

    return make


def config(**fields: Any) -> Callable[[Path, Bait], None]:
    return change("config.json", **fields)


def tokenizer(**fields: Any) -> Callable[[Path, Bait], None]:
    return change("tokenizer_config.json", **fields)


def without(name: str) -> Callable[[Path, Bait], None]:
    return lambda folder, bait: (folder / name).unlink()


def several(*makes: Callable[[Path, Bait], None]) -> Callable[[Path, Bait], None]:
    def make(folder: Path, bait: Bait) -> None:
        for one in makes:
            one(folder, bait)

    return make


def link(name: str, target: str) -> Callable[[Path, Bait], None]:
    def make(folder: Path, bait: Bait) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def pipe(name: str) -> Callable[[Path, Bait], None]:
    def make(folder: Path, bait: Bait) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def index(part: str) -> Callable[[Path, Bait], None]:
    """Weights in parts, one of which lies where it must not."""

    def make(folder: Path, bait: Bait) -> None:
        (folder.parent / "outside.safetensors").write_bytes(bait.pickled)
        (folder / "part.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(bait.pickled)
        weights = {"model.norm.weight": "part.safetensors", "lm_head.weight": part.format(outside=folder.parent)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))

    return make


def header(text: bytes, length: int | None = None) -> Callable[[Path, Bait], None]:
    return put("model.safetensors", struct.pack("<Q", length or len(text)) + text + b"\0" * 4096)


def tensors(**fields: Any) -> Callable[[Path, Bait], None]:
    """A file of safetensors that says of its first tensor what is not so."""

    def make(folder: Path, bait: Bait) -> None:
        old = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", old[:8])[0]
        told = json.loads(old[8 : 8 + length])
        first = next(name for name in told if name != "__metadata__")
        told[first] |= fields
        text = json.dumps(told).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + old[8 + length :])

    return make


def normalizers(*steps: dict[str, Any]) -> Callable[[Path, Bait], None]:
    def make(folder: Path, bait: Bait) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}))

    return make


MINE = put("code.py", lambda bait: bait.code)
AUTO = {"AutoConfig": "code.Mine", "AutoModel": "code.Mine", "AutoModelForCausalLM": "code.Mine"}
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DEEP = "[" * 100_000 + "]" * 100_000
KERNEL = "names code elsewhere"

CASES: dict[str, Case] = {
    # code of its own
    "auto_map with an unknown kind": Case(several(config(model_type="mine", auto_map=AUTO), MINE), CODE),
    "auto_map beside a known kind": Case(several(config(auto_map=AUTO), MINE), None),
    "auto_map to another repository": Case(config(model_type="mine", auto_map={"AutoConfig": f"{OTHER}--code.Mine"}), CODE),
    "auto_map to a path": Case(several(config(model_type="mine", auto_map={"AutoConfig": "../../code.Mine"}), MINE), CODE),
    "auto_map that is a list": Case(several(config(model_type="mine", auto_map=["code.Mine"]), MINE), "cannot be loaded"),
    "auto_map to a module of the system": Case(config(model_type="mine", auto_map={"AutoConfig": "os.system"}), CODE),
    "auto_map in a config within": Case(
        several(
            config(
                model_type="encoder-decoder",
                encoder={"model_type": "mine", "auto_map": AUTO},
                decoder={"model_type": "mine", "auto_map": AUTO},
            ),
            MINE,
        ),
        "cannot be loaded",
    ),
    "architectures of the system": Case(config(architectures=["os.system"]), None),
    "a dtype that is a function": Case(config(dtype="load"), "cannot be loaded"),
    "_attn_implementation_internal": Case(config(_attn_implementation_internal="evil/kernel"), KERNEL),
    "attn_implementation with a version": Case(config(attn_implementation="evil/kernel@main:run"), KERNEL),
    "_attn_implementation by part": Case(config(_attn_implementation={"": "evil/kernel"}), KERNEL),
    "_experts_implementation_internal": Case(config(_experts_implementation_internal="evil/kernel"), KERNEL),
    "an implementation within": Case(config(text_config={"_attn_implementation_internal": "evil/kernel"}), KERNEL),
    "flash attention from the Hub": Case(config(_attn_implementation="flash_attention_2"), "FlashAttention2"),
    "kernels from the Hub": Case(config(use_kernels=True), None),
    "a new line in model_type": Case(config(model_type="llama\nimport os; os.system('id')"), "is no name"),
    "a path in model_type": Case(config(model_type="../../code"), "is no name"),
    "model_type that is a list": Case(config(model_type=["llama"]), "is no name"),
    "a number that is code": Case(config(hidden_size="__import__('os').system('id')"), "hidden_size"),
    "a name that is an address": Case(config(_name_or_path=lambda bait: bait.url, base_model=lambda bait: bait.url), None),
    "quantized by torchao": Case(config(quantization_config={"quant_method": "torchao", "quant_type": "x"}), "comes quantized as torchao"),
    "quantized by kernels of the Hub": Case(config(quantization_config={"quant_method": "metal"}), "comes quantized as metal"),
    "quantization_config that is text": Case(config(quantization_config="evil"), "is no JSON object"),
    "custom_generate": Case(put("custom_generate/generate.py", lambda bait: bait.code), None),
    "generating by another model": Case(
        change("generation_config.json", assistant_model=OTHER, custom_generate=OTHER), "is not a valid argument"
    ),
    "generating without end": Case(change("generation_config.json", num_beams=10**9, num_return_sequences=10**6), None),
    # pickles
    "pickled weights": Case(several(without("model.safetensors"), put("pytorch_model.bin", lambda bait: bait.pickled)), "a pickle"),
    "a pickle beside safetensors": Case(put("pytorch_model.bin", lambda bait: bait.pickled), None),
    "other pickles": Case(
        several(*(put(name, lambda bait: bait.pickled) for name in ("training_args.bin", "optimizer.pt", "vocab.pkl", "model.ckpt"))), None
    ),
    "a pickle named safetensors": Case(put("model.safetensors", lambda bait: bait.pickled), "is damaged"),
    "weights linked to a pickle": Case(
        several(put("pytorch_model.bin", lambda bait: bait.pickled), link("model.safetensors", "pytorch_model.bin")), "is damaged"
    ),
    "an index with ..": Case(index("../outside.safetensors"), "is missing"),
    "an index with an absolute path": Case(index("{outside}/outside.safetensors"), "is missing"),
    "an index that names a pickle": Case(index("pytorch_model.bin"), "is damaged"),
    "an index of anything": Case(
        several(without("model.safetensors"), put("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}')), "is damaged"
    ),
    "an adapter beside the model": Case(
        several(
            put("adapter_config.json", json.dumps({"peft_type": "LORA", "base_model_name_or_path": OTHER})),
            put("adapter_model.bin", lambda bait: bait.pickled),
        ),
        "an adapter lies beside them",
    ),
    # tokenizers
    "a tokenizer with code": Case(several(tokenizer(tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", None]}), MINE), CODE),
    "a known tokenizer with code": Case(several(tokenizer(auto_map={"AutoTokenizer": ["code.MineTokenizer", None]}), MINE), None),
    "a tokenizer that is a retriever": Case(tokenizer(tokenizer_class="RagRetriever"), "is no tokenizer"),
    "a tokenizer that is a model": Case(
        several(tokenizer(tokenizer_class="AutoModel"), put("pytorch_model.bin", lambda bait: bait.pickled)), "is no tokenizer"
    ),
    "a tokenizer that is itself": Case(tokenizer(tokenizer_class="AutoTokenizer"), "cannot be loaded"),
    "files of the machine in init_inputs": Case(tokenizer(init_inputs=["/etc/passwd"]), "sets init_inputs"),
    "files of the machine as a vocabulary": Case(tokenizer(vocab_file="/etc/passwd", merges_file="/etc/passwd"), None),
    "files of the machine as GGUF": Case(tokenizer(gguf_file="/etc/passwd"), "sets gguf_file"),
    "a tokenizer nested deeply": Case(put("tokenizer.json", '{"a": ' + DEEP + "}"), "nested too deeply"),
    "tokens that double forty times": Case(normalizers(*[DOUBLED] * 40), "did not finish"),
    "a pattern without end": Case(normalizers({"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"}), "did not finish"),
    # sizes
    "a config nested deeply": Case(put("config.json", '{"model_type": "llama", "a": ' + DEEP + "}"), "nested too deeply"),
    "a config of 65 MB": Case(put("config.json", lambda bait: json.dumps(CONFIG) + " " * 65_000_000), "larger than"),
    "a config that is a pipe": Case(pipe("config.json"), "no config.json"),
    "a billion layers": Case(config(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000"),
    "fifty thousand layers": Case(config(num_hidden_layers=50_000), "modules"),
    "a billion labels": Case(config(num_labels=10**9), "num_labels"),
    "layers as wide as nothing is": Case(config(hidden_size=2**60), "is no size of anything"),
    "a thousand billion parameters": Case(config(vocab_size=10**9, hidden_size=1024, head_dim=64), "its config claims"),
    "no heads": Case(config(num_attention_heads=0, num_key_value_heads=0), "can"),
    "a header of exabytes": Case(header(b"{}", 1 << 62), "cannot be read"),
    "a header nested deeply": Case(header(DEEP.encode()), "cannot be read"),
    "a tensor beyond the file": Case(tensors(data_offsets=[0, 1 << 60]), "is damaged"),
    "a tensor of a negative size": Case(tensors(shape=[-1, 1 << 40]), "cannot be loaded"),
    "a tensor larger than its bytes": Case(tensors(shape=[1 << 31, 1 << 31]), "cannot be loaded"),
    # templates
    "a template in a file of its own": Case(put("chat_template.jinja", "{{ cycler.__init__.__globals__.os.system('id') }}"), "refuses"),
    "a template of a name with a path": Case(put("additional_chat_templates/x.jinja", "{{ 1 / 0 }}"), None),
}

ADAPTERS: dict[str, Case] = {
    "a base that is an address": Case(
        change("adapter_config.json", base_model_name_or_path=lambda bait: bait.url), "There is no base model"
    ),
    "a base that is no text": Case(change("adapter_config.json", base_model_name_or_path=["x"]), "does not name its base model"),
    "pickled weights": Case(
        several(without("adapter_model.safetensors"), put("adapter_model.bin", lambda bait: bait.pickled)),
        "has no adapter_model.safetensors",
    ),
    "a pickle named safetensors": Case(put("adapter_model.safetensors", lambda bait: bait.pickled), "is damaged"),
    "a module for megatron": Case(
        several(change("adapter_config.json", megatron_config={"a": 1}, megatron_core="code"), MINE), "sets 'megatron_config'"
    ),
    "a library to import": Case(
        several(change("adapter_config.json", auto_mapping={"base_model_class": "Mine", "parent_library": "code"}), MINE), None
    ),
    "layers made of layers": Case(change("adapter_config.json", layer_replication=[[0, 10**9]]), "sets 'layer_replication'"),
    "a pattern without end": Case(change("adapter_config.json", target_modules="(a|aa)+$"), "no list of names"),
    "a pattern in a list": Case(change("adapter_config.json", target_modules=["(a|aa)+$"]), "no list of names"),
    "patterns of ranks": Case(change("adapter_config.json", alpha_pattern={"(a|aa)+$": 2}), "sets 'alpha_pattern'"),
    "a start from a pickle": Case(
        change("adapter_config.json", init_lora_weights="corda", corda_config={"cache_file": "adapter_model.bin"}), None
    ),
    "a config nested deeply": Case(put("adapter_config.json", DEEP), "is damaged"),
    "a config of 5 MB": Case(put("adapter_config.json", " " * 5_000_000 + "{}"), "adapter"),
    "a rank without end": Case(change("adapter_config.json", r=10**12), "lora_rank"),
    "a rank that is code": Case(change("adapter_config.json", r="__import__('os')"), "as numbers"),
    "a kind that is code": Case(change("adapter_config.json", peft_type="os.system"), "Only LoRA"),
}


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")
