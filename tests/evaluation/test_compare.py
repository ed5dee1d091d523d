"""Both columns come from one base, fairly: the base column is the untouched base, and the exported adapter is what the app showed."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from peft_space.data.batches import collate
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import prompt_ids, stop_token_ids
from peft_space.demo import MODEL_DIR
from peft_space.evaluation.compare import Sampling, answer, compare, only
from peft_space.evaluation.evaluate import evaluate, mean_loss
from peft_space.evaluation.results import read_scores
from peft_space.export.export import export_run
from peft_space.models.loading import load_adapted


@pytest.fixture(scope="module")
def adapted(short_run):
    return load_adapted(short_run)


@pytest.fixture(scope="module")
def prompts(short_run):
    return [row.messages[:-1] for row in load_run_data(short_run).held_out[:6]]


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


def test_the_base_column_is_the_untouched_base(adapted, short_run, prompts):
    from peft_space.models.loading import load_base_model
    from peft_space.models.resolve import find_base

    untouched = load_base_model(find_base("demo"), short_run.recipe, "float32").eval()
    for messages in prompts:
        ids = prompt_ids(adapted.tokenizer, messages)
        with only(adapted, "base"):
            shown = logits(adapted.model, ids)
        assert torch.equal(shown, logits(untouched, ids))


def test_the_exported_folder_in_plain_peft_gives_the_logits_of_the_app(
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
    # eval mode in bitsandbytes rounds 4-bit layers on some CPUs (see models/loading.py): they are used in training mode, which has no effect but that
    plain = PeftModel.from_pretrained(base, folder)
    for module in plain.modules():
        module.training = (
            "Linear4bit" in type(module).__name__ and "lora" not in type(module).__module__
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for messages in prompts:
        ids = prompt_ids(tokenizer, messages)
        assert ids == prompt_ids(adapted.tokenizer, messages)
        assert torch.allclose(logits(plain, ids), logits(adapted.model, ids), atol=1e-4)
        with only(adapted, "base"):
            assert not torch.allclose(logits(plain, ids), logits(adapted.model, ids), atol=1e-2)


def test_batched_answers_equal_those_one_by_one(adapted, prompts):
    together = answer(adapted, "adapter", prompts, Sampling(max_new_tokens=30))
    alone = [
        answer(adapted, "adapter", [messages], Sampling(max_new_tokens=30))[0]
        for messages in prompts
    ]
    assert together == alone


def test_both_columns_get_the_same_prompt_and_the_streamed_text_ends_as_the_answer(
    adapted, prompts
):
    streamed = {}
    sampling = Sampling(max_new_tokens=30, temperature=1.0, seed=3)
    given = compare(
        adapted,
        prompts[:2],
        sampling,
        lambda column, prompt, text: streamed.__setitem__((column, prompt), text),
    )
    for number, comparison in enumerate(given):
        assert comparison.prompt == prompts[number][-1]["content"]
        assert comparison.prompt in comparison.rendered
        assert (streamed["base", number], streamed["adapter", number]) == (
            comparison.base,
            comparison.adapter,
        )
    assert compare(adapted, prompts[:2], sampling) == given


def test_an_answer_ends_at_its_own_limit_and_is_the_beginning_of_the_whole(adapted, prompts):
    whole = answer(adapted, "adapter", prompts, Sampling(max_new_tokens=40))
    short = answer(
        adapted, "adapter", prompts, Sampling(max_new_tokens=40), limits=[3, 40, 3, 40, 3, 40]
    )
    assert short[1::2] == whole[1::2]
    assert all(
        0 < len(cut) < len(text) and text.startswith(cut)
        for cut, text in zip(short[::2], whole[::2], strict=True)
    )


def test_an_answer_ends_before_its_stop_token(adapted, prompts):
    stop = adapted.tokenizer.decode(stop_token_ids(adapted.tokenizer))
    assert all(
        stop not in text
        for text in answer(adapted, "adapter", prompts, Sampling(max_new_tokens=60))
    )


def test_the_loss_of_a_column_is_that_of_its_trained_tokens(adapted, short_run):
    from peft_space.data.tokenization.render import render

    examples = render(adapted.tokenizer, load_run_data(short_run).held_out[:1], 512)
    with torch.inference_mode():
        direct = adapted.model(**collate(examples, 0)).loss.item()
    assert mean_loss(adapted, "adapter", examples) == pytest.approx(direct, abs=1e-5)


def test_both_columns_are_scored_on_the_held_out_rows_and_the_adapter_has_learnt(own_run, adapted):
    shares = []
    scores = evaluate(own_run, adapted, lambda share, what: shares.append(share))
    assert scores.num_rows == 60
    assert scores.adapter.loss < scores.base.loss / 2
    assert 0 <= scores.base.exact_match <= 0.1
    assert read_scores(own_run) == scores
    assert shares == sorted(shares)
