"""What components show, from results alone."""

import json

import pytest

from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.web.render import compare as render_compare
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview
from peft_space.web.render import runs as render_runs
from peft_space.web.render import train as render_train


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


def test_text_of_users_and_models_is_shown_as_it_is(run):
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


def test_words_that_differ_are_marked_and_are_no_markup():
    base, adapter = render_compare.marked_words(
        "The <b>old</b> lamp is late.", "The new lamp\nis late."
    )
    assert base == "The <del>&lt;b&gt;old&lt;/b&gt;</del> lamp is late."
    assert adapter == "The <ins>new</ins> lamp\nis late."
    assert render_compare.marked_words("one two", "three") == ("one two", "three"), (
        "where nothing is common nothing is marked"
    )


def test_labels_have_their_probabilities_tags_their_marks_and_the_base_an_untrained_head():
    chances = {"base": {"<a>": 0.25, "b": 0.75}, "adapter": {"<a>": 0.9, "b": 0.1}}
    row = {"prompt": "x", "base": "", "adapter": "", "chances": chances}
    shown = render_compare.answers_html([row])
    assert "Base, with an untrained head" in shown
    assert (
        shown.index("b: 75.0%") < shown.index("&lt;a&gt;: 25.0%") < shown.index("&lt;a&gt;: 90.0%")
    )
    tagged = {"base": [("Oslo", "O")], "adapter": [("<Oslo>", "B-PLACE")]}
    shown = render_compare.answers_html([row | {"chances": None, "tags": tagged}])
    assert "<p>Oslo</p>" in shown
    assert "<mark>&lt;Oslo&gt;<sub>B-PLACE</sub></mark>" in shown


def test_a_comparison_that_is_not_fair_is_shown_as_such():
    found = {
        "sampling": {"temperature": 0, "top_p": 1, "seed": 3, "max_new_tokens": 8},
        "fairness": {"words": "NOT FAIR: <x>"},
    }
    rows = [
        {"base": "a", "adapter": "a", "expected": "a"},
        {"base": "b", "adapter": "c", "expected": "c"},
    ]
    shown = render_compare.summary_html(found, rows)
    assert '<p class="unfair">NOT FAIR: &lt;x&gt;</p>' in shown
    assert (
        "1 of 2 answers are the same. The row&#x27;s own answer, word for word: base 1 of 2, adapter 2 of 2."
        in shown
    )
    assert "the likeliest token always, seed 3, 8 tokens at most" in shown


def test_tokens_are_trained_masked_ended_or_cut(run):
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
    assert "1,200 tokens are cut off" in cut
    assert 'title="token 1: trained"' in cut


def test_the_plot_has_each_step_once_after_a_resume(run):
    happened = started(
        run,
        step(1),
        step(2, loss=9.0),
        events.Evaluated(attempt=1, step=2, loss=3.0),
        step(2, attempt=2, loss=0.5),
        step(3, attempt=2),
    )
    curves = render_train.losses(happened)
    assert curves[curves.rows == "training"][["step", "loss"]].values.tolist() == [
        [1, 1.0],
        [2, 0.5],
        [3, 1.0],
    ]
    assert curves[curves.rows == "held out"][["step", "loss"]].values.tolist() == [[2, 3.0]]


def test_progress_tells_step_speed_memory_and_what_is_left(run):
    happened = started(run, step(1, tokens=100), step(2, tokens=200))
    with run.lock():  # as whoever trains it holds it
        shown = render_train.status_markdown(run, happened)
    for words in (
        "Step 2 of 4",
        "loss 1.000",
        "200 tokens a second",
        "1.0 GiB at most",
        "1 s so far",
        "about 1 s left",
    ):
        assert words in shown, words
    assert 'value="2" max="4"' in render_train.progress_html(happened)
    later = render_train.status_markdown(run, happened)
    assert "left" not in later, "nothing is left of a run that nobody trains"
    assert "so far" not in later


@pytest.mark.parametrize(
    ("fresh", "num_rows", "status", "has_adapter", "marks", "said"),
    [
        (False, 0, None, False, "→✓○○○", "Bring your data"),
        (True, 0, None, False, "→✓○○○", "not ready yet: **Data** says"),
        (True, 300, None, False, "✓✓→○○", "Start training"),
        (True, 300, "running", False, "✓✓●○○", "The training runs"),
        (False, 0, "paused", False, "✓✓→○○", "Resume"),
        (False, 0, "finished", True, "✓✓✓→→", "Compare"),
        (False, 0, "stopped", True, "✓✓✓→→", "Compare"),
        (False, 300, "finished", True, "✓✓✓→→", "Compare"),
        (True, 300, "finished", True, "✓✓→→→", "Start training"),
        (True, 0, "finished", True, "→✓○→→", "not ready yet"),
    ],
)
def test_the_steps_show_what_is_done_next_or_blocked_and_why(
    fresh, num_rows, status, has_adapter, marks, said
):
    shown, sentence = render_overview.guide(fresh, num_rows, status, has_adapter)
    assert "".join(shown) == marks
    assert said in sentence


def test_recipes_are_compared_line_by_line(tmp_path):
    one = Run.create(tmp_path / "one", Recipe(), {})
    two = Run.create(tmp_path / "two", Recipe(lora_rank=8, target_modules=["q_proj", "v_proj"]), {})
    lines = render_runs.recipe_differences(one, two).values.tolist()
    assert lines == [["LoRA rank", "16", "8"], ["Target modules", "all-linear", "q_proj, v_proj"]]
    assert render_runs.recipe_differences(one, one).values.tolist()[0][0] == "no difference"


def test_the_commands_shown_are_the_ones_that_the_command_line_takes():
    import shlex

    from peft_space.cli.parser import parser
    from peft_space.recipe import read_recipe

    shell, python = render_overview.commands(
        "/tmp/x/my file's.jsonl", "/tmp/y/test.csv", {"fixes": ["deduplicate"]}, Recipe(lora_rank=8)
    )
    for line in shell.splitlines():
        given = parser().parse_args(shlex.split(line)[3:])
        if "recipe" in given:
            assert read_recipe(given.recipe) == Recipe(lora_rank=8)
            assert (given.data, given.held_out, given.out) == (
                ["my file's.jsonl"],
                "test.csv",
                "my-run",
            )
            assert json.loads(given.column_mapping) == {"fixes": ["deduplicate"]}
        else:
            assert given.run == "my-run"
    assert "held_out='test.csv'" in python
    compile(python, "shown", "exec")


OVERFITTED = [
    *(step(number, loss=1 / number) for number in range(1, 6)),
    *(
        events.Evaluated(attempt=1, step=number, loss=loss)
        for number, loss in enumerate([1.5, 1.0, 1.2, 1.4, 1.8], 1)
    ),
]


def test_over_fitting_is_marked_where_it_begins_by_an_upright_line_as_high_as_the_plot(run):
    curves = render_train.losses(started(run, *OVERFITTED))
    assert curves[curves.rows == "over-fitting"][["step", "loss"]].values.tolist() == [
        [2, 0.2],
        [2, 1.8],
    ]
    assert "Over-fitting from step 2 on" in render_train.status_markdown(run, run.history())
    assert "from 1 to 1.8" in render_train.status_markdown(run, run.history())


def test_the_mark_is_known_to_the_plot_before_it_is_needed(run):
    curves = render_train.losses(started(run, *OVERFITTED[:5]))
    assert curves[curves.rows == "over-fitting"].loss.isna().all()
    assert set(curves.rows) == {"training", "held out", "over-fitting"}
    assert "Over-fitting" not in render_train.status_markdown(run, run.history())


def test_a_run_tells_what_went_wrong_and_which_adapter_it_keeps(run):
    warned = events.Warned(step=2, what="The loss stays <b>high</b>.", advice="Stop.")
    kept = events.CheckpointSelected(step=1, why="its held-out loss was the lowest, 1.5.")
    shown = render_train.status_markdown(
        run, started(run, step(1), step(2), warned, warned, kept, events.Stopped(step=2))
    )
    assert shown.count("⚠ Step 2: The loss stays") == 1
    assert "<b>" not in shown
    assert (
        "The adapter of step 1 is kept: its held-out loss was the lowest, 1.5. Compare it, or *Resume* to go on."
        in shown.replace("\\", "")
    )
