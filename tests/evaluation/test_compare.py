"""Both sides answer fairly from one base. The exported adapter answers as it does in the app."""

import dataclasses

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from peft_space.data.batches import collate
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import prompt_ids, render, stop_token_ids
from peft_space.demo import MODEL_DIR
from peft_space.evaluation.adapter_off_check import use_side
from peft_space.evaluation.compare import compare
from peft_space.evaluation.evaluate import evaluate, mean_loss
from peft_space.evaluation.generate import Sampling, answer, generate_greedy
from peft_space.evaluation.results import read_scores
from peft_space.export.export import export_run
from peft_space.models.loading import load_adapted, load_base_model
from peft_space.models.resolve import find_base


@pytest.fixture(scope="module")
def adapted(short_run):
    return load_adapted(short_run)


@pytest.fixture(scope="module")
def prompts(short_run):
    return [row.messages[:-1] for row in load_run_data(short_run).held_out[:6]]


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


def test_base_side_is_the_untouched_base(adapted, short_run, prompts):
    untouched = load_base_model(find_base("demo"), short_run.recipe, "float32").eval()
    for messages in prompts:
        ids = prompt_ids(adapted.tokenizer, messages)
        with use_side(adapted, "base"):
            assert torch.equal(logits(adapted.model, ids), logits(untouched, ids))


@pytest.mark.slow
def test_exported_folder_in_plain_peft_gives_the_logits_of_the_app(
    adapted, short_run, prompts, tmp_path
):
    folder = export_run(short_run, tmp_path / "adapter").path
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        MODEL_DIR, dtype=torch.float32, quantization_config=quantization
    )
    # in eval mode bitsandbytes rounds 4-bit layers on some CPUs (see compat/bitsandbytes.py);
    # training mode has no other effect on them
    plain = PeftModel.from_pretrained(base, folder)
    for module in plain.modules():
        kind = type(module)
        module.training = "Linear4bit" in kind.__name__ and "lora" not in kind.__module__
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for messages in prompts:
        ids = prompt_ids(tokenizer, messages)
        assert ids == prompt_ids(adapted.tokenizer, messages)
        assert torch.allclose(logits(plain, ids), logits(adapted.model, ids), atol=1e-4)
        with use_side(adapted, "base"):
            assert not torch.allclose(logits(plain, ids), logits(adapted.model, ids), atol=1e-2)


@pytest.mark.slow
def test_batched_answers_equal_those_one_by_one(adapted, prompts):
    sampling = Sampling(max_new_tokens=30)
    alone = [answer(adapted, "adapter", [messages], sampling)[0] for messages in prompts]
    assert answer(adapted, "adapter", prompts, sampling) == alone


@pytest.mark.slow
def test_streamed_text_of_both_sides_ends_as_the_answer(adapted, prompts):
    streamed = {}
    sampling = Sampling(max_new_tokens=30, temperature=1.0, seed=3)

    def on_text(side, prompt, text):
        streamed[side, prompt] = text

    comparisons = compare(adapted, prompts[:2], sampling, on_text)
    for number, comparison in enumerate(comparisons):
        assert comparison.prompt == prompts[number][-1]["content"]
        assert comparison.prompt in comparison.rendered
        assert streamed["base", number] == comparison.base
        assert streamed["adapter", number] == comparison.adapter
    assert compare(adapted, prompts[:2], sampling) == comparisons


def test_a_limited_answer_is_the_beginning_of_the_whole(adapted, prompts):
    sampling = Sampling(max_new_tokens=40)
    whole = answer(adapted, "adapter", prompts, sampling)
    limited = answer(adapted, "adapter", prompts, sampling, limits=[3, 40, 3, 40, 3, 40])
    assert limited[1::2] == whole[1::2]
    for cut, text in zip(limited[::2], whole[::2], strict=True):
        assert 0 < len(cut) < len(text)
        assert text.startswith(cut)


def test_an_answer_ends_before_its_stop_token(adapted, prompts):
    stop = adapted.tokenizer.decode(stop_token_ids(adapted.tokenizer))
    texts = answer(adapted, "adapter", prompts, Sampling(max_new_tokens=60))
    assert all(stop not in text for text in texts)


@pytest.mark.parametrize("pads_with_a_stop", [False, True])
def test_an_answer_that_its_limit_cuts_did_not_end_by_itself(
    adapted, prompts, pads_with_a_stop, monkeypatch
):
    """A batch pads the rows that are over, in many models with the end token."""
    [stop] = adapted.answer_tokens.stops
    if pads_with_a_stop:
        tokens = dataclasses.replace(adapted.answer_tokens, pad=stop)
        monkeypatch.setitem(vars(adapted), "answer_tokens", tokens)
    lengths = [generate_greedy(adapted, [prompt_ids(adapted.tokenizer, m)], 60) for m in prompts]
    needed = [len(ids) for [ids] in lengths]
    assert all(ids[-1] == stop for [ids] in lengths)
    limits = [length - 1 if row % 2 else length for row, length in enumerate(needed)]
    ended = []
    answer(adapted, "adapter", prompts, Sampling(60), limits=limits, ended=ended)
    assert ended == [True, False] * 3


def test_loss_of_a_side_is_that_of_its_trained_tokens(adapted, short_run):
    examples = render(adapted.tokenizer, load_run_data(short_run).held_out[:1], 512)
    with torch.inference_mode():
        direct = adapted.model(**collate(examples, 0)).loss.item()
    assert mean_loss(adapted, "adapter", examples) == pytest.approx(direct, abs=1e-5)


@pytest.mark.slow
def test_the_adapter_scores_better_than_the_base(own_run, adapted):
    shares = []
    scores = evaluate(own_run, adapted, lambda share, what: shares.append(share))
    assert scores.num_rows == 60
    assert scores.adapter.loss < scores.base.loss / 2
    assert 0 <= scores.base.exact_match <= 0.1
    assert (scores.base.ended, scores.adapter.ended) == (1, 1)
    assert read_scores(own_run) == scores
    assert shares == sorted(shares)
