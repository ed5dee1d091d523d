"""Tokenizers as the model families have them, made without network: their kind of vocabulary, control tokens and chat template.

Templates that TRL ships are read from it; the others are written here in our own words, to write what the family writes.
"""

import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Hi. The red lamp is broken.\nWhat is your name? I am sorry to hear that.  Thank you, Mira.",
    "You are a helpful assistant. Answer the question with one word:\n\n- kettle\n- lamp\n\n\tand  nothing else.",
    '{"name": "weather", "arguments": {"city": "Köln", "days": 3}}\n{"temperature": 21, "sky": "clear"}',
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 23), 'é ß ñ 猫 犬 … “quoted” —')",
] * 3


@dataclass(frozen=True)
class Family:
    """What a family's tokenizer and template are, as facts from its model cards and tokenizer files."""

    name: str
    kind: str
    """`bytes`: byte-level BPE; `pieces`: BPE over ▁ with bytes for what it does not know."""
    template: str
    """A name of TRL's folder, or the template itself."""
    stop: str
    """The token at which generation stops."""
    openings: tuple[str, ...]
    """What stands directly before an answer: after it the model is asked."""
    controls: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    """Added tokens that are no special ones, such as <tool_call>."""
    bos: str | None = None
    eos: str = ""
    system: bool = True
    tools: bool = False
    strips: bool = False
    """Whether the template strips the messages."""
    swallows: bool = False
    """Whether control tokens swallow the white space after them."""
    composes: bool = False
    """Whether the tokenizer writes characters in their composed form (NFC)."""
    prefixed: bool = False
    """Whether the tokenizer puts a ▁ before every text."""
    written: tuple[str, ...] = ()
    """What the template itself writes into an answer, beside its text and its end."""
    asks_as_trained: bool = True
    """Whether the template asks the model with the words that stand before the answer once it is answered."""
    also: dict[str, str] = field(default_factory=dict)


LLAMA_2 = """\
{%- if messages[0].role == 'system' -%}
{%- set first = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for turn in turns -%}
{%- if turn.role not in ('user', 'assistant') -%}{{- raise_exception('There is no role ' + turn.role) -}}{%- endif -%}
{%- if turn.role == 'user' -%}{{- bos_token + '[INST] ' + ((first if loop.first else '') + turn.content) | trim + ' [/INST]' -}}
{%- else -%}{{- ' ' + turn.content | trim + ' ' + eos_token -}}{%- endif -%}
{%- endfor -%}"""

MISTRAL = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('User and assistant must take turns') -}}{%- endif -%}
{%- if turn.role == 'user' -%}{{- ' [INST] ' + (first if loop.first else '') + turn.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + turn.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""

# the system message and the tools stand with the last question, so that earlier answers were asked for otherwise than they are read
MISTRAL_3 = """\
{{- bos_token -}}
{%- set seen = namespace(last=0) -%}
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for turn in turns -%}{%- if turn.role == 'user' -%}{%- set seen.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for turn in turns -%}
{%- if turn.role == 'user' -%}
{%- if tools and loop.index0 == seen.last -%}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}
{{- '[INST] ' + (system if loop.index0 == seen.last else '') + turn.content + '[/INST]' -}}
{%- elif turn.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in turn.tool_calls -%}{{- call.function | tojson -}}{{- '' if loop.last else ', ' -}}{%- endfor -%}
{{- ']' + eos_token -}}
{%- elif turn.role == 'tool' -%}{{- '[TOOL_RESULTS] {"content": ' + turn.content + '}[/TOOL_RESULTS]' -}}
{%- else -%}{{- ' ' + turn.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""

CHATML = """\
{%- for turn in messages -%}
{%- if turn.role == 'tool' -%}{{- raise_exception('There is no role tool') -}}{%- endif -%}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

# <|user|> and its like are plain text in Zephyr's vocabulary
ZEPHYR = """\
{%- for turn in messages -%}
{{- '<|' + turn.role + '|>\\n' + turn.content + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"""

_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_LLAMA_3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_TOOL_CALL = ("<tool_call>", "</tool_call>")
_DEEPSEEK_TOOLS = tuple(
    f"<｜tool▁{part}｜>"
    for part in "calls▁begin call▁begin sep call▁end calls▁end outputs▁begin output▁begin output▁end outputs▁end".split()
)

FAMILIES = {
    family.name: family
    for family in (
        Family("Llama 2", "pieces", LLAMA_2, "</s>", ("[/INST]",), ("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>", strips=True, prefixed=True),
        Family("Llama 3", "bytes", "llama3", "<|eot_id|>", (_HEADER,), _LLAMA_3, bos="<|begin_of_text|>", eos="<|eot_id|>", strips=True),
        Family("Llama 3.1", "bytes", "llama3_1", "<|eot_id|>", (_HEADER,), _LLAMA_3, bos="<|begin_of_text|>", eos="<|eot_id|>", strips=True, tools=True),
        Family("Mistral", "pieces", MISTRAL, "</s>", ("[/INST]",), ("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>", prefixed=True),
        Family(
            "Mistral 3", "pieces", MISTRAL_3, "</s>", ("[/INST]", "[/TOOL_RESULTS]"),
            ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
            bos="<s>", eos="</s>", tools=True, prefixed=True,
        ),
        Family("Qwen 2.5", "bytes", "qwen2_5", "<|im_end|>", ("<|im_start|>assistant",), _IM, _TOOL_CALL, eos="<|im_end|>", tools=True, composes=True),
        Family(
            "Qwen 3", "bytes", "qwen3", "<|im_end|>", ("<|im_start|>assistant\n",), _IM, (*_TOOL_CALL, "<think>", "</think>"),
            eos="<|im_end|>", tools=True, composes=True, written=("<think>\n\n</think>\n\n",),
        ),
        Family("Gemma 2", "pieces", "gemma", "<end_of_turn>", ("<start_of_turn>model\n",), _GEMMA, bos="<bos>", eos="<eos>", system=False, strips=True),
        Family("Gemma 3", "pieces", "gemma3", "<end_of_turn>", ("<start_of_turn>model\n",), _GEMMA, bos="<bos>", eos="<eos>", strips=True),
        Family(
            "Phi 3", "pieces", "phi3", "<|end|>", ("<|assistant|>\n",),
            ("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
            bos="<s>", eos="<|endoftext|>", swallows=True, prefixed=True, written=("<|endoftext|>",),
        ),
        Family("ChatML", "bytes", CHATML, "<|im_end|>", ("<|im_start|>assistant\n",), _IM, eos="<|im_end|>"),
        Family("Zephyr", "pieces", ZEPHYR, "</s>", ("<|assistant|>\n",), ("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>", prefixed=True),
        Family(
            "DeepSeek", "bytes", "deepseekv3", "<｜end▁of▁sentence｜>", ("",), ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
            ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", *_DEEPSEEK_TOOLS),
            bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>", tools=True,
            written=("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"), asks_as_trained=False,
        ),
    )
}  # fmt: skip


@functools.cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer. Shared: not to be changed."""
    family = FAMILIES[name]
    backend = _bytes(family) if family.kind == "bytes" else _pieces(family)
    # what a model's own vocabulary has for a control token is not split, and not composed
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False, rstrip=family.swallows) for token in family.controls])
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.markers])
    if family.bos:
        bos = (family.bos, backend.token_to_id(family.bos))
        backend.post_processor = processors.TemplateProcessing(single=f"{family.bos}:0 $A:0", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos, pad_token=family.eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = trl_template(family.template) if "{" not in family.template else family.template
    return tokenizer


def trl_template(name: str) -> str:
    """A chat template that TRL ships."""
    found = importlib.util.find_spec("trl")
    return (Path(found.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


# where Llama 3, Qwen and DeepSeek part words: line breaks stay together, whatever follows
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes(family: Family) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC() if family.composes else None
    parts = [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    return backend


def _pieces(family: Family) -> Tokenizer:
    """As SentencePiece makes them: spaces are ▁, line breaks merge with nothing, unknown characters are their bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=220, special_tokens=["<unk>"], show_progress=False))
    vocab, merges = _parts(trained)
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if family.prefixed else spaces
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _parts(trained: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    model = json.loads(trained.to_str())["model"]
    return dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]
