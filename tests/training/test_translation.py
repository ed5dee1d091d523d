"""Encoder-decoders whose tokenizer marks a text with its language."""

import json

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.render import render
from peft_space.errors import UserError
from peft_space.evaluation.generate import Sampling, answer, generation_settings
from peft_space.export.merge import merge
from peft_space.models.loading import load_adapted
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.recipe import Recipe
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import translated

ROW = Conversation(
    1,
    [
        {"role": "user", "content": "the lamp is red"},
        {"role": "assistant", "content": "lamp ist rot"},
    ],
)
KINDS = {
    "NLLB": (transformers.M2M100Config, ("eng_Latn", "deu_Latn")),
    "mBART": (transformers.MBartConfig, ("en_XX", "de_DE")),
    "mBART-50": (transformers.MBartConfig, ("en_XX", "de_DE")),
}


@pytest.fixture(scope="module", params=KINDS)
def translator(request, tmp_path_factory):
    """(folder of a base, its languages)."""
    folder, (config_class, languages) = tmp_path_factory.mktemp("base"), KINDS[request.param]
    tokenizer = _tokenizer(request.param)
    return tiny_models.like_bart(folder, config_class, tokenizer), languages


def _tokenizer(kind):
    texts = [" ".join(row.values()) for row in translated()]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "NLLB":
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    if kind == "NLLB":
        merges = [tuple(merge) for merge in model["merges"]]
        return transformers.NllbTokenizer(vocab=model["vocab"], merges=merges)
    vocabulary = [tuple(piece) for piece in model["vocab"]]
    names = {"mBART": transformers.MBartTokenizer, "mBART-50": transformers.MBart50Tokenizer}
    return names[kind](vocab=vocabulary)


def test_targets_are_tokenized_as_transformers_does(translator):
    folder, (source, target) = translator
    own = AutoTokenizer.from_pretrained(folder)
    own.src_lang, own.tgt_lang = source, target
    expected = own("the lamp is red", text_target="lamp ist rot")
    tokenizer = load_tokenizer(
        find_base(folder), Recipe(src_lang=source, tgt_lang=target), "seq2seq-lm"
    )
    for _ in range(2):
        [example] = render(tokenizer, [ROW], 512, task="seq2seq-lm")
        assert example.input_ids == expected["input_ids"]
        assert example.target.labels == expected["labels"]


@pytest.mark.parametrize(
    ("languages", "code"),
    [
        ((None, None), "models.language_missing"),
        (("{source}", None), "models.language_missing"),
        (("{source}", "Klingon"), "models.unknown_language"),
    ],
)
def test_languages_are_asked_for(translator, languages, code):
    folder, (source, _) = translator
    given = tuple(one and one.format(source=source) for one in languages)
    with pytest.raises(UserError) as error:
        load_tokenizer(
            find_base(folder), Recipe(src_lang=given[0], tgt_lang=given[1]), "seq2seq-lm"
        )
    assert error.value.code == code


def test_languages_are_refused_where_nothing_uses_them():
    with pytest.raises(UserError) as error:
        load_tokenizer(find_base("demo"), Recipe(src_lang="en", tgt_lang="de"))
    assert error.value.code == "models.no_languages"


@pytest.mark.slow
def test_answers_and_the_merged_model_begin_with_the_target_language(translator, tmp_path, write):
    folder, (source, target) = translator
    recipe = Recipe(
        base_model=folder, quantization="none", max_steps=2, src_lang=source, tgt_lang=target
    )
    run = make_run(tmp_path / "run", str(write("rows.json", translated())), recipe)
    with run.lock():
        train(run)
    adapted = load_adapted(run)
    settings = generation_settings(adapted, Sampling(max_new_tokens=4))
    code = adapted.tokenizer.convert_tokens_to_ids(target)
    [text] = answer(adapted, "adapter", [ROW.messages[:1]], Sampling(max_new_tokens=4))
    assert code in (settings.forced_bos_token_id, settings.decoder_start_token_id)
    if settings.forced_bos_token_id == code:
        assert not text.startswith(target), "it is not part of the translation"
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(run, merged, "float32", "full")
    stored = json.loads((merged / "generation_config.json").read_text())
    for name in ("forced_bos_token_id", "decoder_start_token_id"):
        assert stored.get(name) == getattr(settings, name)
    saved = AutoTokenizer.from_pretrained(merged)
    assert (saved.src_lang, saved.tgt_lang) == (source, target)
