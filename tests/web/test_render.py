"""The text, HTML and tables of the page, made from results alone."""

import dataclasses
import json
import math
import re
import shlex

import pytest

from peft_space import operations
from peft_space.cli.main import build_parser
from peft_space.errors import UserError
from peft_space.evaluation.results import TITLES, Evaluation, Scores
from peft_space.recipe import Recipe, read_recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.web.panels.grid import grid_points
from peft_space.web.render import compare as render_compare
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview
from peft_space.web.render import progress as render_progress
from peft_space.web.render import publish as render_publish
from peft_space.web.render import rows as render_rows
from peft_space.web.render import runs as render_runs
from peft_space.web.render import shell as render_shell
from peft_space.web.render import train as render_train
from peft_space.web.render import verdict as render_verdict


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
    assert "<b>" not in render_rows.example_html({"row": 1, "tokens": [["<b>", True]], "cut": 0})
    assert render_overview.escape("[a](b) <c>") == r"\[a\]\(b\) &lt;c&gt;"


def test_answers_are_marked_against_the_expected_one_and_never_without_it():
    expected = "The new lamp is late."
    assert render_compare.marked_words("The <b>old</b> lamp is late.", expected) == (
        "The <del>&lt;b&gt;old&lt;/b&gt;</del> lamp is late."
    )
    assert render_compare.marked_words("one two", "three") == "one two", (
        "texts without a common word are not marked"
    )
    row = {"prompt": "x", "base": "The old lamp", "adapter": expected, "expected": expected}
    shown = render_compare.answers_html([row], marked=True)
    assert shown.index("Expected") < shown.index("Base") < shown.index("Fine-tuned")
    assert shown.index("✗ differs") < shown.index("✓ matches")
    neutral = render_compare.answers_html([row | {"expected": ""}], marked=True)
    assert not re.search("<del>|✓|✗", neutral), "nothing is right or wrong without an answer"


def test_labels_show_probabilities_and_tags_are_marked():
    chances = {"base": {"<a>": 0.25, "b": 0.75}, "adapter": {"<a>": 0.9, "b": 0.1}}
    row = {"prompt": "x", "base": "", "adapter": "", "chances": chances}
    shown = render_compare.answers_html([row])
    assert shown.count('<section class="side') == 2
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
    assert "base 1/2, fine-tuned 2/2" in shown
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
    shown = render_rows.example_html(
        {
            "row": 3,
            "tokens": [["Hi", False], [" Ben", True], ["<end>", True], ["\n", False]],
            "cut": 0,
        }
    )
    assert 'class="masked" title="token 1: masked">Hi<' in shown
    assert 'class="trained" title="token 2: trained"> Ben<' in shown
    assert 'class="trained end" title="token 3: trained end">&lt;end&gt;<' in shown
    cut = render_rows.example_html({"row": 3, "tokens": [["Hi", True]], "cut": 1200})
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
    curves = render_progress.losses(history)
    assert curves[curves.rows == "training"][["step", "loss"]].values.tolist() == [
        [1, 1.0],
        [2, 0.5],
        [3, 1.0],
    ]
    assert curves[curves.rows == "test"][["step", "loss"]].values.tolist() == [[2, 3.0]]


def test_progress_shows_step_loss_speed_memory_and_time_left(run):
    history = started(run, step(1, tokens=100), step(2, tokens=200))
    shown = render_progress.tiles_html(history, "running")
    for words in ("<b>2 of 4</b>", "1.000", "<b>200</b>", "1.0 GiB", "1 s so far", "<b>1 s</b>"):
        assert words in shown, words
    assert 'value="2" max="4"' in render_progress.progress_html(history)
    paused = render_progress.tiles_html(history, "paused")
    assert "Training time" in paused
    assert "left" not in paused, "nobody trains it"


def test_before_the_first_step_the_preparation_is_a_list(run):
    history = started(run, events.Preparing(what="Loading <b>x</b>"), events.Preparing(what="Two"))
    shown = render_progress.tiles_html(history, "running")
    assert "✓ Loading &lt;b&gt;x&lt;/b&gt;" in shown
    assert '<li class="now">Two…</li>' in shown
    assert render_progress.tiles_html(history, "failed") == ""


def test_losses_are_shown_on_a_log_scale_and_smoothed(run):
    history = started(run, step(1, loss=100.0), step(2, loss=0.0), step(3, loss=1.0))
    logs = render_progress.losses(history, log=True)
    training = logs[logs.rows == "training"].loss.tolist()
    assert (training[0], training[2]) == (2.0, 0.0)
    assert math.isnan(training[1]), "a loss of zero has no logarithm"
    smooth = render_progress.losses(history, smooth=True)
    assert 0 < smooth[smooth.rows == "training"].loss.tolist()[1] < 100


def test_recipes_are_compared_setting_by_setting(tmp_path):
    default = Run.create(tmp_path / "one", Recipe(), {})
    changed = Run.create(
        tmp_path / "two", Recipe(lora_rank=8, target_modules=["q_proj", "v_proj"]), {}
    )
    third = Run.create(tmp_path / "three", Recipe(lora_rank=8), {})
    table = render_runs.differences([default, changed, third])
    assert table["LoRA rank"].tolist() == ["16", "8", "8"]
    assert table["Target modules"].tolist() == ["all-linear", "q_proj, v_proj", "all-linear"]
    assert set(table["Score"]) == {"–"}
    assert len(set(table["Run"])) == 3
    assert "LoRA rank" not in render_runs.differences([default, default])


def test_curves_of_runs_are_of_tests_only_if_all_runs_have_them(tmp_path):
    runs = [Run.create(tmp_path / name, Recipe(), {}) for name in ("one", "two")]
    for run in runs:
        for number in (1, 2):
            run.append(step(number, loss=1.0))
            run.append(events.Evaluated(attempt=1, step=number, loss=2.0))
    title, table = render_runs.curves_table(runs)
    assert (title, set(table["loss"]), len(set(table["run"]))) == ("Test loss", {2.0}, 2)
    runs.append(Run.create(tmp_path / "three", Recipe(), {}))
    runs[-1].append(step(1, loss=3.0))
    title, table = render_runs.curves_table(runs)
    assert (title, set(table["loss"])) == ("Training loss", {1.0, 3.0})


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
    curves = render_progress.losses(started(run, *OVERFITTING))
    assert curves[curves.rows == "overfitting"][["step", "loss"]].values.tolist() == [
        [2, 0.2],
        [2, 1.8],
    ]
    shown = render_train.status_markdown(run, run.history())
    assert "Overfitting since step 2" in shown
    assert "from 1 to 1.8" in shown


def test_the_plot_has_all_its_curves_before_overfitting_starts(run):
    curves = render_progress.losses(started(run, *OVERFITTING[:5]))
    assert curves[curves.rows == "overfitting"].loss.isna().all()
    assert set(curves.rows) == {"training", "test", "overfitting"}
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


SCORES = Evaluation(
    num_rows=60,
    base=Scores(loss=2.0, exact_match=0.0),
    adapter=Scores(loss=0.5, exact_match=1.0),
    intervals={"difference": {"exact_match": [0.9, 1.0]}},
    samples=[
        {"prompt": "a", "expected": "yes", "base": "no", "adapter": "yes"},
        {"prompt": "b", "expected": "yes", "base": "yes", "adapter": "nope"},
        {"prompt": "c", "expected": "yes", "base": "yes", "adapter": "yes"},
    ],
)


def test_a_note_on_the_base_stands_among_the_findings():
    check = {"problems": [], "findings": [], "column_mapping": {"fixes": []}}
    assert "card" not in render_data.findings_html(check)
    shown = render_data.findings_html(check | {"base_notes": ["It has no <end>."]})
    assert "It has no &lt;end&gt;." in shown
    assert "card" in shown


def test_a_prompt_that_is_cut_is_told_in_answers_and_scores():
    answer = {"prompt": "p", "base": "b", "adapter": "a", "cut": 1234}
    assert "1,234 tokens" in render_compare.answers_html([answer])
    assert 'class="cut"' not in render_compare.answers_html([answer | {"cut": 0}])
    assert "2 prompts" in render_compare.more_scores_html(dataclasses.replace(SCORES, num_cut=2))
    assert "positions" not in render_compare.more_scores_html(SCORES)


def test_the_table_of_scores_says_how_many_answers_ended_by_themselves():
    sides = {"base": Scores(loss=2.0, ended=0.0), "adapter": Scores(loss=0.5, ended=0.975)}
    lines = render_compare.scores_table(dataclasses.replace(SCORES, **sides)).values.tolist()
    [line] = [line for line in lines if line[0] == TITLES["ended"]]
    assert line[1:] == ["0.0%", "97.5%", "+97.5"]


def test_the_verdict_says_better_worse_or_unclear_from_the_interval():
    kind, words = render_verdict.headline(SCORES)
    assert kind == "good"
    assert "0 % → 100 % on 60 test rows" in words
    unclear = dataclasses.replace(
        SCORES, intervals={"difference": {"exact_match": [-0.1, 0.4]}}, num_rows=4
    )
    assert render_verdict.headline(unclear)[0] == ""
    assert "few rows" in render_verdict.verdict_html(unclear)
    worse = dataclasses.replace(SCORES, base=SCORES.adapter, adapter=SCORES.base, intervals={})
    assert render_verdict.headline(worse)[0] == "bad"


def test_answers_are_filtered_by_what_the_adapter_did_to_them():
    outcomes = [render_verdict.outcome_of(row) for row in SCORES.samples]
    assert outcomes == ["improved", "worse", "unchanged"]
    assert render_verdict.filtered(SCORES.samples, "worse") == [SCORES.samples[1]]
    assert render_verdict.filtered(SCORES.samples, "all") == SCORES.samples
    counted = render_verdict.counted_outcomes(SCORES.samples)
    assert [value for _, value in counted] == ["all", "improved", "worse", "unchanged"]


def test_readiness_ticks_nothing_that_was_not_measured():
    assert [check.done for check in render_publish.quality_checks(None)] == [False] * 3
    useless = dataclasses.replace(SCORES, adapter=SCORES.base, intervals={}, num_rows=4)
    assert [check.done for check in render_publish.quality_checks(useless)] == [False, False, None]
    assert [check.done for check in render_publish.quality_checks(SCORES)] == [True, True, None]


def test_an_export_shows_the_commands_of_its_target_alone_with_the_name_of_its_file():
    result = {
        "path": "/x/mine-adapter.zip",
        "words": "4/4 answers identical.",
        "proof": {"passed": True},
        "commands": {"vLLM": "vllm serve path/of/the/unpacked/adapter", "TGI": "tgi"},
    }
    shown = render_publish.exported_markdown(result, "vLLM")
    assert "unzip mine-adapter.zip\nvllm serve adapter" in shown
    assert "tgi" not in shown
    assert "✓ Verified" in shown
    assert "AutoPeftModelForCausalLM" in render_publish.exported_markdown(result, "PEFT")


def test_the_sidebar_and_the_header_escape_names_and_tell_the_status(run):
    run.rename("<b>mine</b>")
    shown = render_shell.runs_html([run], run.directory.name, "")
    shown += render_shell.run_header_html(run, None)
    assert "<b>mine" not in shown
    assert 'aria-current="true"' in shown
    assert "Ready" in shown
    history = started(run, step(1), step(2))
    assert render_progress.coarse_progress(history, "running") == [0.5, 1]
    assert render_progress.coarse_progress(history, "finished") is None


def test_a_text_that_is_trained_in_pieces_says_how_many():
    example = {"row": 1, "tokens": [["a", True]], "cut": 0}
    assert "of 3 pieces" in render_rows.example_html(example | {"pieces": 3})
    assert "pieces" not in render_rows.example_html(example)


def test_the_filter_says_if_not_every_test_row_is_shown():
    samples = [{"prompt": "p", "expected": "e", "base": "b", "adapter": "e"}] * 50
    for num_rows, is_said in ((50, False), (60, True)):
        scores = dataclasses.replace(SCORES, num_rows=num_rows, samples=samples)
        assert ("of 60" in render_verdict.filter_title(scores)) == is_said


@pytest.mark.parametrize(
    ("ranks", "rates", "points"),
    [
        ("8, 16", "", [{"lora_rank": 8}, {"lora_rank": 16}]),
        ("8;8", "1e-4", [{"lora_rank": 8, "learning_rate": 1e-4}]),
        ("", "", [{}]),
    ],
)
def test_a_grid_has_a_point_for_each_pair_of_values(ranks, rates, points):
    assert grid_points(ranks, rates) == points


@pytest.mark.parametrize(
    ("ranks", "rates", "code"),
    [("8, many", "", "web.not_numbers"), ("1,2,3,4,5", "1,2,3,4", "web.grid_too_large")],
)
def test_a_grid_of_other_values_is_refused(ranks, rates, code):
    with pytest.raises(UserError) as error:
        grid_points(ranks, rates)
    assert error.value.code == code


def test_a_row_is_shown_as_it_is_read_thoughts_and_calls_included(write):
    call = {"type": "function", "function": {"name": "price", "arguments": '{"room": 0}'}}
    answer = {"role": "assistant", "content": "I look.", "reasoning_content": "Hmm.",
              "tool_calls": [call | {"id": "call00001"}]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "call00001", "name": "price", "content": "40"}
    chat = [{"role": "user", "content": "Price?"}, answer, result,
            {"role": "assistant", "content": "It is 40."}]  # fmt: skip
    [row] = operations.browse(str(write("rows.json", [{"messages": chat}])))["rows"]
    shown = render_rows.chat_html(row)
    for text in ("Price?", "Hmm.", "thinking", "price", "tool calls", "It is 40."):
        assert text in shown, text


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["user", "preferred", "rejected"]),
        ({"prompt": "a", "completion": "b", "label": False}, ["user", "rejected"]),
        ({"text": "a", "label": "x"}, ["text", "label"]),
        ({"tokens": ["a", "b"], "tags": ["O", "B-X"]}, ["text", "tags"]),
        ({"text": "a"}, ["text"]),
    ],
)
def test_every_kind_of_row_is_shown_as_it_is_read(row, roles, write):
    rows = [row | {"when": "today"}] * 4
    mapping = operations.check(str(write("rows.json", rows)))
    asked = {} if "column_mapping" in mapping else {"column_mapping": mapping["question"][0]}
    [first, *_] = operations.browse(str(write("rows.json", rows)), **asked)["rows"]
    assert [message["role"] for message in first["messages"]] == roles
    assert "today" not in render_rows.chat_html(first), "what is not used is not shown"


def test_an_answer_that_is_rated_bad_is_marked_as_one_to_avoid():
    example = {"row": 1, "tokens": [["No.", True]], "cut": 0}
    assert "avoid" in render_rows.example_html(example | {"label": "not good"})
    assert "avoid" not in render_rows.example_html(example | {"label": "good"})
    pair = example | {"rejected": [["No.", True]], "rejected_cut": 0}
    assert 'class="avoided"' in render_rows.example_html(pair)


def test_the_columns_that_are_read_come_first():
    browsed = {"columns": ["id", "question"], "rows": [{"row": 1, "cells": ["7", "Who?"]}]}
    table = render_data.rows_table(browsed, ["question"])
    assert list(table.columns) == ["Row", "Check", "question", "id"]
    assert list(table.iloc[0]) == ["1", "✓", "Who?", "7"]
