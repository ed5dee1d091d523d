"""The text, HTML and tables of the page, made from results alone."""

import json
import re
import shlex

import pytest

from peft_space.cli.main import build_parser
from peft_space.recipe import Recipe, read_recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.web.render import compare as render_compare
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview
from peft_space.web.render import train as render_train
from peft_space.web.tabs.runs import recipe_differences


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", Recipe(), {}, name="<b>mine</b> *1*")


def started(run, *more):
    for event in (events.Queued(), events.Started(attempt=1, from_step=0, total_steps=4), *more):
        run.append(event)
    return run.history()


def step(number, attempt=1, loss=1.0, tokens=100):
    return events.Step(
        attempt=attempt,
        step=number,
        loss=loss,
        learning_rate=0.1,
        grad_norm=1.0,
        tokens=tokens,
        seconds=0.5,
        memory=2**30,
    )


def test_text_of_users_and_models_is_escaped(run):
    assert "<b>" not in render_train.status_markdown(run, [])
    rows = [
        {
            "prompt": "<script>1</script>",
            "base": "<img src=x>",
            "adapter": "a & b",
            "rendered": "</pre>",
        }
    ]
    shown = render_compare.answers_html(rows)
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "&lt;/pre&gt;" in shown
    assert "<b>" not in render_data.example_html({"row": 1, "tokens": [["<b>", True]], "cut": 0})
    assert render_overview.escape("[a](b) <c>") == r"\[a\]\(b\) &lt;c&gt;"


def test_words_that_differ_are_marked_and_escaped():
    base, adapter = render_compare.marked_words(
        "The <b>old</b> lamp is late.", "The new lamp\nis late."
    )
    assert base == "The <del>&lt;b&gt;old&lt;/b&gt;</del> lamp is late."
    assert adapter == "The <ins>new</ins> lamp\nis late."
    assert render_compare.marked_words("one two", "three") == ("one two", "three"), (
        "texts without a common word are not marked"
    )


def test_labels_show_probabilities_and_tags_are_marked():
    chances = {"base": {"<a>": 0.25, "b": 0.75}, "adapter": {"<a>": 0.9, "b": 0.1}}
    row = {"prompt": "x", "base": "", "adapter": "", "chances": chances}
    shown = render_compare.answers_html([row])
    assert shown.count('<th scope="col">') == 3
    assert "untrained" in shown
    assert (
        shown.index("b: 75.0%") < shown.index("&lt;a&gt;: 25.0%") < shown.index("&lt;a&gt;: 90.0%")
    )
    tagged = {"base": [("Oslo", "O")], "adapter": [("<Oslo>", "B-PLACE")]}
    shown = render_compare.answers_html([row | {"chances": None, "tags": tagged}])
    assert "<p>Oslo</p>" in shown
    assert "<mark>&lt;Oslo&gt;<sub>B-PLACE</sub></mark>" in shown


def test_an_unfair_comparison_is_marked_as_unfair():
    comparison = {
        "sampling": {"temperature": 0, "top_p": 1, "seed": 3, "max_new_tokens": 8},
        "fairness": {"words": "NOT FAIR: <x>"},
    }
    rows = [
        {"base": "a", "adapter": "a", "expected": "a"},
        {"base": "b", "adapter": "c", "expected": "c"},
    ]
    shown = render_compare.summary_html(comparison, rows)
    assert '<p class="unfair">NOT FAIR: &lt;x&gt;</p>' in shown
    assert "1 of 2 answers" in shown
    assert "base 1/2, adapter 2/2" in shown
    assert "seed 3" in shown
    assert "8 tokens" in shown


def test_a_comparison_says_so_if_all_answers_differ():
    comparison = {
        "sampling": {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_new_tokens": 8},
        "fairness": {"words": ""},
    }
    rows = [{"base": "a", "adapter": "b"}, {"base": "b", "adapter": "c"}]
    shown = render_compare.summary_html(comparison, rows)
    assert "All 2 answers differ." in shown
    assert "0.5" in shown
    assert "fair" not in shown


def test_tokens_are_learned_masked_ended_or_truncated():
    shown = render_data.example_html(
        {
            "row": 3,
            "tokens": [["Hi", False], [" Ben", True], ["<end>", True], ["\n", False]],
            "cut": 0,
        }
    )
    assert 'class="masked" title="token 1: masked">Hi<' in shown
    assert 'class="trained" title="token 2: trained"> Ben<' in shown
    assert 'class="trained end" title="token 3: trained end">&lt;end&gt;<' in shown
    cut = render_data.example_html({"row": 3, "tokens": [["Hi", True]], "cut": 1200})
    assert "1,200 tokens" in cut
    assert 'title="token 1: trained"' in cut


def test_a_resumed_run_has_each_step_once_in_the_plot(run):
    history = started(
        run,
        step(1),
        step(2, loss=9.0),
        events.Evaluated(attempt=1, step=2, loss=3.0),
        step(2, attempt=2, loss=0.5),
        step(3, attempt=2),
    )
    curves = render_train.losses(history)
    assert curves[curves.rows == "training"][["step", "loss"]].values.tolist() == [
        [1, 1.0],
        [2, 0.5],
        [3, 1.0],
    ]
    assert curves[curves.rows == "held out"][["step", "loss"]].values.tolist() == [[2, 3.0]]


def test_progress_shows_step_loss_speed_memory_and_time_left(run):
    history = started(run, step(1, tokens=100), step(2, tokens=200))
    with run.lock():  # as the trainer does
        shown = render_train.status_markdown(run, history)
    for words in (
        "Step 2 of 4",
        "loss 1.000",
        "200 tokens/s",
        "1.0 GiB peak memory",
        "1 s so far",
        "about 1 s left",
    ):
        assert words in shown, words
    assert 'value="2" max="4"' in render_train.progress_html(history)
    later = render_train.status_markdown(run, history)
    assert "left" not in later, "nobody trains this run"
    assert "so far" not in later


@pytest.mark.parametrize(
    ("is_new", "num_rows", "status", "has_adapter", "marks", "tabs"),
    [
        (False, 0, None, False, "→✓○○○", ["Data"]),
        (True, 0, None, False, "→✓○○○", ["Data"]),
        (True, 300, None, False, "✓✓→○○", ["Train"]),
        (True, 300, "running", False, "✓✓●○○", []),
        (False, 0, "paused", False, "✓✓→○○", ["Train"]),
        (False, 0, "finished", True, "✓✓✓→→", ["Compare", "Publish"]),
        (False, 0, "stopped", True, "✓✓✓→→", ["Compare", "Publish"]),
        (False, 300, "finished", True, "✓✓✓→→", ["Compare", "Publish"]),
        (True, 300, "finished", True, "✓✓→→→", ["Train"]),
        (True, 0, "finished", True, "→✓○→→", ["Data"]),
    ],
)
def test_the_guide_marks_the_steps_and_names_the_next_tabs(
    is_new, num_rows, status, has_adapter, marks, tabs
):
    shown, sentence = render_overview.guide(is_new, num_rows, status, has_adapter)
    assert "".join(shown) == marks
    assert re.findall(r"\*\*(\w+)\*\*", sentence) == tabs


def test_two_recipes_are_compared_setting_by_setting(tmp_path):
    default = Run.create(tmp_path / "one", Recipe(), {})
    changed = Run.create(
        tmp_path / "two", Recipe(lora_rank=8, target_modules=["q_proj", "v_proj"]), {}
    )
    lines = recipe_differences(default, changed).values.tolist()
    assert lines == [["LoRA rank", "16", "8"], ["Target modules", "all-linear", "q_proj, v_proj"]]
    assert recipe_differences(default, default).values.tolist() == [["no difference", "", ""]]


def test_the_snippets_parse_as_commands_and_compile_as_python():
    shell, python = render_overview.commands(
        "/tmp/x/my file's.jsonl", "/tmp/y/test.csv", {"fixes": ["deduplicate"]}, Recipe(lora_rank=8)
    )
    for line in shell.splitlines():
        words = shlex.split(line)[1:]
        arguments = build_parser(words[0]).parse_args(words)
        if "recipe" in arguments:
            assert read_recipe(arguments.recipe) == Recipe(lora_rank=8)
            assert (arguments.data, arguments.held_out, arguments.directory) == (
                ["my file's.jsonl"],
                "test.csv",
                "my-run",
            )
            assert json.loads(arguments.column_mapping) == {"fixes": ["deduplicate"]}
        else:
            assert arguments.run == "my-run"
    assert "held_out='test.csv'" in python
    compile(python, "shown", "exec")


OVERFITTING = [
    *(step(number, loss=1 / number) for number in range(1, 6)),
    *(
        events.Evaluated(attempt=1, step=number, loss=loss)
        for number, loss in enumerate([1.5, 1.0, 1.2, 1.4, 1.8], 1)
    ),
]


def test_overfitting_is_marked_by_a_vertical_line_of_the_plot_s_height(run):
    curves = render_train.losses(started(run, *OVERFITTING))
    assert curves[curves.rows == "overfitting"][["step", "loss"]].values.tolist() == [
        [2, 0.2],
        [2, 1.8],
    ]
    shown = render_train.status_markdown(run, run.history())
    assert "Overfitting since step 2" in shown
    assert "from 1 to 1.8" in shown


def test_the_plot_has_all_its_curves_before_overfitting_starts(run):
    curves = render_train.losses(started(run, *OVERFITTING[:5]))
    assert curves[curves.rows == "overfitting"].loss.isna().all()
    assert set(curves.rows) == {"training", "held out", "overfitting"}
    assert "Overfitting" not in render_train.status_markdown(run, run.history())


def test_a_stopped_run_shows_its_warnings_once_and_its_checkpoint(run):
    warned = events.Warned(step=2, what="The loss stays <b>high</b>.", advice="Stop.")
    kept = events.CheckpointSelected(step=1, why="its held-out loss was the lowest, 1.5.")
    shown = render_train.status_markdown(
        run, started(run, step(1), step(2), warned, warned, kept, events.Stopped(step=2))
    )
    assert shown.count("⚠ Step 2: The loss stays") == 1
    assert "<b>" not in shown
    assert "step 1: its held-out loss was the lowest, 1.5." in shown.replace("\\", "")
