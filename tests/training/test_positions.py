"""Models with a limited number of positions are trained, asked and scored within it."""

import pytest

from peft_space import operations
from peft_space.data.dataset import load_run_data
from peft_space.evaluation.generate import Sampling, answer
from peft_space.models.loading import load_adapted
from peft_space.runs.events import Notice
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS

PLACES = 64
BASES = {
    "GPT-2": lambda folder: tiny_models.gpt2(folder, PLACES),
    "BART": lambda folder: tiny_models.bart(folder, WORDS),
}
LONG, SHORT = "the red lamp " * 90, "the lamp"


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.sample(1)
@pytest.mark.slow
def test_rows_prompts_and_answers_stay_within_the_positions(kind, tmp_path, write):
    base = BASES[kind](tmp_path / "base")
    rows = [
        {"source": f"{LONG if n % 3 == 0 else SHORT} {n}", "target": f"{SHORT} " * (n % 40)}
        for n in range(1, 41)
    ]
    data = str(write("rows.json", rows))
    recipe = {"base_model": base, "quantization": "none", "max_steps": 2, "eval_split": 0.2}
    checked = operations.check(data, recipe=recipe)
    assert checked["max_length"] == PLACES
    run = operations.make_run(str(tmp_path / "run"), data, recipe)["run"]
    assert operations.train(run)["event"] == "Finished"
    assert read_plan(Run(run)).max_length == PLACES
    notices = [one.what for one in Run(run).history() if isinstance(one, Notice)]
    assert any("64" in what and "512" in what for what in notices)
    long, short = operations.compare(run, [LONG, SHORT])["answers"]
    assert (long["cut"] > 0, short["cut"]) == (True, 0)
    scores = operations.evaluate(run)
    assert scores["adapter"]["loss"] > 0
    asked = [row.messages[0]["content"] for row in load_run_data(Run(run)).held_out]
    assert scores["num_cut"] == sum(text.startswith(LONG) for text in asked) > 0
    adapted = load_adapted(Run(run))
    questions = [[{"role": "user", "content": text}] for text in (LONG, SHORT, "lamp lamp lamp")]
    together = answer(adapted, "adapter", questions, Sampling(60))
    alone = [answer(adapted, "adapter", [one], Sampling(60))[0] for one in questions]
    assert together == alone, "a long prompt in the batch does not shorten the other answers"
