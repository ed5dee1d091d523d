"""Numbers of a model are found in composite and unusual configurations."""

import re
from pathlib import Path

import pytest
import transformers

import peft_space
from peft_space.models.config_values import config_number

GEMMA = {"text_config": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 5}}
CASES = {
    "a decoder": (transformers.LlamaConfig(hidden_size=64), "hidden_size", 64),
    "an alias of transformers": (transformers.GPT2Config(n_embd=24), "hidden_size", 24),
    "the text part": (transformers.Gemma3Config(**GEMMA), "hidden_size", 24),
    "heads of the text part": (transformers.Gemma3Config(**GEMMA), "num_attention_heads", 3),
    "several parts": (transformers.BltConfig(), "num_hidden_layers", 25),
    "no attention": (transformers.FNetConfig(), "num_attention_heads", 0),
    "no attention in a decoder": (transformers.RwkvConfig(), "num_attention_heads", 0),
    "another name": (transformers.xLSTMConfig(num_heads=4), "num_attention_heads", 4),
    "its own name for the length": (transformers.RwkvConfig(), "max_position_embeddings", 1024),
    "layers that differ": (
        transformers.CONFIG_MAPPING["dots3_note_text"](), "num_attention_heads", 128,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "name", "value"), CASES.values(), ids=CASES)
def test_a_number_is_found_wherever_a_config_has_it(config, name, value):
    assert config_number(config, name) == value


def test_nothing_else_reads_these_numbers_from_a_config():
    package = Path(peft_space.__file__).parent
    own = {package / "models" / "config_values.py", *(package / "export" / "gguf").glob("*.py")}
    reads = re.compile(r"onfig\.(hidden_size|num_attention_heads|num_hidden_layers|vocab_size)\b")
    readers = [path for path in package.rglob("*.py") if reads.search(path.read_text())]
    assert set(readers) <= own
