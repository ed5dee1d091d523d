"""The settings of answers are the app's own, whatever the base comes with."""

import json
import shutil
from pathlib import Path

import pytest

from peft_space import operations
from peft_space.evaluation.generate import Sampling, answer, tokenize_prompt
from peft_space.models.loading import AdaptedModel, load_adapted, load_base_model, new_adapter
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs.run import Run
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS

QUESTIONS = [
    [{"role": "user", "content": text}]
    for text in ("the red lamp", "is the blue kettle in Rome", "a white chair")
]
FOREIGN = {
    "beams": {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "tokens": {"suppress_tokens": list(range(5, 40)), "begin_suppress_tokens": [1, 2]},
    "lengths": {"min_length": 12, "max_length": 3},
    "forced tokens": {"forced_bos_token_id": 5, "forced_eos_token_id": 6},
    "sampling": {"do_sample": True, "temperature": 9.0, "top_k": 3},
    "bad words": {"bad_words_ids": [[7], [8], [9]]},
}


def adapted_of(folder, task):
    base, recipe = find_base(folder), Recipe(base_model=folder, quantization="none", lora_rank=2)
    spec = TaskSpec(task)
    model = load_base_model(base, recipe, "float32", spec)
    return AdaptedModel(
        new_adapter(model, recipe, base, spec).eval(), load_tokenizer(base, task=task), spec
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Task -> (folder of a base, the answers of it as it is)."""
    folders = {
        "causal-lm": tiny_models.llama(tmp_path_factory.mktemp("llama")),
        "seq2seq-lm": tiny_models.t5(
            tmp_path_factory.mktemp("t5"), WORDS, tie_word_embeddings=False, initializer_factor=3.0
        ),
    }
    return {
        task: (folder, answer(adapted_of(folder, task), "base", QUESTIONS, Sampling(8)))
        for task, folder in folders.items()
    }


@pytest.mark.parametrize("task", ["causal-lm", "seq2seq-lm"])
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.sample(1)
def test_settings_of_the_base_change_no_answer(task, kind, bases, tmp_path):
    folder, expected = bases[task]
    own = Path(shutil.copytree(folder, tmp_path / "base"))
    config = own / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | FOREIGN[kind]))
    adapted, seen = adapted_of(str(own), task), []
    streamed = answer(
        adapted, "base", QUESTIONS, Sampling(8), on_text=lambda *part: seen.append(part)
    )
    assert streamed == expected
    assert seen
    assert all(expected), "no answer is empty"


@pytest.mark.slow
def test_a_run_of_plain_texts_continues_a_text(tmp_path, write):
    texts = [{"text": f"Once upon a time, Ada had {n} lamps and a kettle."} for n in range(30)]
    run = operations.make_run(
        str(tmp_path / "run"), str(write("rows.json", texts)), {"max_steps": 1, "lora_rank": 2}
    )["run"]
    operations.train(run)
    adapted = load_adapted(Run(run))
    [prompt] = [tokenize_prompt(adapted, [{"role": "user", "content": texts[0]["text"]}])]
    assert prompt == adapted.tokenizer(texts[0]["text"])["input_ids"]
    [shown] = operations.compare(run, ["Once upon"])["answers"]
    assert shown["rendered"] == "Once upon"
    assert adapted.answer_tokens.stops == [adapted.tokenizer.eos_token_id]
