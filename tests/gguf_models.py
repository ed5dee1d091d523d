"""Small random models of every family that can be written as GGUF, with tokenizers as the families have them."""

import json

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from peft_space.export.gguf_vocabulary import DIGITS, GPT2
from tests.families import CORPUS, tokenizer_of

_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.5] * 4, "long_factor": [2.0, 3.0] * 4}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
MODELS = {
    "Llama 3": ("llama", "Llama 3", {"rope_parameters": _LLAMA_3, "attention_bias": True}),
    "Llama 2": ("llama", "Llama 2", {"head_dim": 32}),
    "Mistral": ("mistral", "Mistral", {"sliding_window": None}),
    "Qwen 2.5": ("qwen2", "Qwen 2.5", {"tie_word_embeddings": True}),
    "Qwen 3": ("qwen3", "Qwen 3", {"head_dim": 32}),
    "Gemma": ("gemma", "Gemma 2", {"head_dim": 32}),
    "Gemma 2": ("gemma2", "Gemma 2", {**_GEMMA, "num_hidden_layers": 4}),
    "Gemma 3": ("gemma3_text", "Gemma 3", {**_GEMMA, "num_hidden_layers": 7}),
    "Phi 2": ("phi", "ChatML", {"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}}),
    "Phi 3": ("phi3", "Phi 3", {"rope_parameters": _LONG, "max_position_embeddings": 512, "original_max_position_embeddings": 256}),
    "Phi 4": ("phi3", "ChatML", {"rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}}),
    "Qwen 3, YaRN": ("qwen3", "Qwen 3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}}),
    "Gemma 3, linear": ("gemma3_text", "Gemma 3", {**_GEMMA, "num_hidden_layers": 7, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }}),
}  # fmt: skip
"""Name -> kind, tokenizer, and what else is in its config."""


def model(folder, name, tokenizer=None):
    """The folder of such a model, saved with its tokenizer or another one."""
    kind, tokenizer_name, more = MODELS[name]
    tokenizer = tokenizer or merging_as_sentencepiece(tokenizer_of(tokenizer_name))
    if name == "Phi 3":
        tokenizer = _swallowing_as_phi_3(tokenizer)
    ids = {part: getattr(tokenizer, part) for part in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **_SIZES | {"vocab_size": len(tokenizer) + 3} | ids | more)
    made = AutoModelForCausalLM.from_config(config)
    for parameter_name, parameter in made.named_parameters():
        if parameter.ndim == 1:  # norms and biases come as ones and zeros, which would hide a mistake
            parameter.data += 0.3 * torch.randn_like(parameter)
        assert torch.isfinite(parameter).all(), parameter_name
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parting(words, whole=False):
    """A byte-level tokenizer that parts words so (a key of PRE_TOKENIZERS), and takes a word in the vocabulary whole or merges it."""
    backend = Tokenizer(models.BPE(ignore_merges=whole))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words in (GPT2, DIGITS))
    first = [pre_tokenizers.Digits(individual_digits=True)] if words == DIGITS else []
    first += [pre_tokenizers.Split(Regex(words), "isolated")] if words not in (GPT2, DIGITS) else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_only]) if first else bytes_only
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    if whole:  # a word that merging does not lead to
        made = json.loads(backend.to_str())
        made["model"]["vocab"]["kettle"] = len(made["model"]["vocab"])
        backend = Tokenizer.from_str(json.dumps(made))
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = tokenizer_of("ChatML").chat_template
    return tokenizer


def merging_as_sentencepiece(tokenizer):
    """The tokenizer, with every two of its pieces merged that make a third, as SentencePiece does it; one of bytes as it is."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if not model["byte_fallback"]:
        return tokenizer
    made = dict.fromkeys("".join(pair) for pair in model["merges"])
    vocab = model["vocab"]
    model["merges"] = [
        [token[:cut], token[cut:]]
        for token in made
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]  # fmt: skip
    return _made_of(backend, tokenizer)


def _swallowing_as_phi_3(tokenizer):
    """White space after some control tokens is swallowed, and there is a </s>, as in Phi 3's own files."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    backend["added_tokens"].append({**backend["added_tokens"][-1], "id": len(tokenizer), "content": "</s>"})
    return _made_of(backend, tokenizer)


def _made_of(backend, tokenizer):
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token, unk_token="<unk>", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    whole.chat_template = tokenizer.chat_template
    return whole
