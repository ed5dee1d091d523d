"""Base models small enough to be trained in a test, of kinds that the built-in one is not; random, with a vocabulary of whole words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_space.demo import MODEL_DIR

CONTROLS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "</s>"]


def bert(folder, words):
    """An encoder whose tokenizer puts [CLS] and [SEP] around a text, and [SEP] between two."""
    return _encoder(folder, words, BertConfig, BertForMaskedLM)


def deberta(folder, words):
    """The same, built as DeBERTa v3 is: its attention is masked with the least number of what its queries are held in."""
    positions = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_buckets": 32}
    return _encoder(folder, words, DebertaV2Config, DebertaV2ForMaskedLM, **positions)


def _encoder(folder, words, config_class, model_class, **own):
    tokenizer = _tokenizer(words, single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", around=("[CLS]", "[SEP]"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        pad_token_id=fast.pad_token_id, **own,
    )  # fmt: skip
    return _saved(folder, model_class(config), fast)


def t5(folder, words):
    """An encoder-decoder whose tokenizer ends each text with </s>."""
    tokenizer = _tokenizer(words, single="$A </s>", pair=None, around=("</s>",))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(fast), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    return _saved(folder, T5ForConditionalGeneration(config), fast)


def llama(folder):
    """A decoder with the built-in model's tokenizer and chat template."""
    return _decoder(folder, LlamaConfig, LlamaForCausalLM)


def qwen2(folder):
    """The same with biases in its attention."""
    return _decoder(folder, Qwen2Config, Qwen2ForCausalLM)


def _decoder(folder, config_class, model_class):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return _saved(folder, model_class(config), tokenizer)


def _tokenizer(words, single, pair, around):
    vocabulary = {word: number for number, word in enumerate([*CONTROLS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, vocabulary[token]) for token in around]
    )
    return tokenizer


def _saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
