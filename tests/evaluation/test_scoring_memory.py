"""Scoring and training compute no logits but those of labels, and survive a lack of memory."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_space.compat.torch import each_result
from peft_space.data.arrow_store import TokenizedExample
from peft_space.demo import MODEL_DIR
from peft_space.evaluation.evaluate import log_likelihoods
from peft_space.export.verify import _logits, _Question
from peft_space.models import label_scorer
from peft_space.models.label_scorer import score_labels_only
from peft_space.models.loading import AdaptedModel
from peft_space.recipe import CAUSAL_LM

VOCABULARY = 50_021
WIDTH = 32
ROWS, LENGTH, TRAINED = 4, 64, 5


@pytest.fixture
def adapted():
    """A model with a large vocabulary."""
    from peft import LoraConfig, get_peft_model

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config), lora)
    return AdaptedModel(model, AutoTokenizer.from_pretrained(MODEL_DIR))


@pytest.fixture
def examples():
    """Rows of which few tokens are trained."""
    return [
        TokenizedExample(row, list(range(10, 10 + LENGTH)), [(LENGTH - TRAINED, LENGTH)])
        for row in range(ROWS)
    ]


def most_logits(compute):
    """The size of the largest tensor with a vocabulary dimension."""
    sizes = [0]

    def note(result):
        shape = tuple(getattr(result, "shape", ()))
        if VOCABULARY in shape[-1:] and shape != (WIDTH, VOCABULARY):  # a view of the weight
            sizes.append(result.numel())

    with each_result(note):
        compute()
    return max(sizes)


def test_scoring_computes_the_logits_of_labels_alone(adapted, examples):
    adapted.model.eval()
    assert adapted.scorer.computes_only_labeled
    seen = most_logits(lambda: log_likelihoods(adapted, "adapter", examples))
    assert 0 < seen <= ROWS * TRAINED * VOCABULARY


def test_logits_exist_in_chunks(adapted, examples, monkeypatch):
    monkeypatch.setattr(label_scorer, "_MIN_CHUNK_ROWS", 1)
    monkeypatch.setitem(label_scorer._CHUNK_LOGITS, "cpu", 2 * VOCABULARY)
    whole = log_likelihoods(adapted, "adapter", examples)
    assert most_logits(lambda: log_likelihoods(adapted, "adapter", examples)) == 2 * VOCABULARY
    monkeypatch.setitem(label_scorer._CHUNK_LOGITS, "cpu", 2**30)
    assert log_likelihoods(adapted, "adapter", examples) == pytest.approx(whole, abs=1e-5)


def test_a_training_step_computes_the_logits_of_labels_alone(adapted, examples):
    score_labels_only(adapted.model)
    ids = torch.tensor([example.input_ids for example in examples])
    labels = torch.tensor([example.labels for example in examples])
    seen = most_logits(lambda: adapted.model(input_ids=ids, labels=labels).loss.backward())
    assert 0 < seen <= ROWS * TRAINED * VOCABULARY


@pytest.mark.slow
def test_scoring_halves_its_batches_when_memory_runs_out(adapted, examples, monkeypatch):
    expected = log_likelihoods(adapted, "adapter", examples)
    own, sizes = adapted.scorer.forward, []

    def forward(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return own(**inputs)

    monkeypatch.setattr(adapted.scorer, "forward", forward)
    assert log_likelihoods(adapted, "adapter", examples) == pytest.approx(expected, abs=1e-4)
    assert sizes[:3] == [4, 2, 1]


def test_a_proof_computes_the_logits_of_answers_alone(adapted):
    question = _Question(list(range(10, 60)), [7, 8, 9], [], [], [], None)
    found = []
    seen = most_logits(lambda: found.append(_logits(adapted.model, CAUSAL_LM, question)))
    assert seen == 4 * VOCABULARY
    ids = torch.tensor([question.ids + question.answer])
    with torch.inference_mode():
        expected = adapted.model(input_ids=ids).logits[0, 49:52]
    assert torch.allclose(found[0], expected, atol=1e-5)
