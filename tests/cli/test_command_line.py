"""Commands print text or one JSON object, and end a mistake with one message and status 2."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from peft_space import settings
from peft_space.cli.main import flag_of, main, progress_printer
from peft_space.errors import UserError, user_message
from peft_space.operations import REGISTRY, Json
from peft_space.operations.registry import DataSource, fields_of, operations_on
from peft_space.runs.run import Run


def test_check_reports_what_is_in_a_file(run_command, write):
    path = write("rows.json", [{"prompt": "a", "completion": "b"}, {"prompt": "c"}])
    status, out, _ = run_command("check", path, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["rows"], found["schema"], found["columns"]) == (
        2,
        "prompt_completion",
        ["prompt", "completion"],
    )
    assert found["problems"] == [{"row": 2, "problem": "the answer is empty"}]


@pytest.mark.slow
def test_check_shows_rows_with_the_trained_tokens_marked(run_command, write):
    rows = [
        {"prompt": f"Red {n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(12)
    ]
    path = write("pairs.jsonl", rows)
    _, out, _ = run_command("check", path, "--model", "demo", "--show", "2", "--json")
    examples = json.loads(out)["examples"]
    assert len(examples) == 2
    for example in examples:
        number = example["row"] - 1
        for side, word in (("tokens", "Yes"), ("rejected", "No")):
            trained = "".join(text for text, is_trained in example[side] if is_trained)
            assert f"{word} {number}." in trained
            assert "Red" not in trained
    _, out, _ = run_command("check", path, "--model", "demo", "--show", "2")
    assert out.count("⟦") == out.count("⟧") == 5  # the heading explains the marks
    _, out, _ = run_command("check", path, "--model", "demo")
    assert "⟦" not in out


@pytest.mark.slow
def test_check_counts_tokens_for_a_model(run_command):
    status, out, _ = run_command("check", "demo", "--base-model", "demo", "--json")
    assert status == 0
    assert json.loads(out)["lengths"]["num_cut"] == 0


@pytest.mark.slow
def test_a_run_is_trained_resumed_evaluated_compared_and_exported(run_command, tmp_path):
    run_dir, recipe = tmp_path / "run", tmp_path / "recipe.json"
    recipe.write_text('{"max_steps": 2}')
    status, out, err = run_command("train", "demo", "--recipe", recipe, "--out", run_dir, "--json")
    assert (status, json.loads(out)["outcome"]) == (0, "Finished")
    assert "step 2: loss" in err
    assert run_command("resume", run_dir)[0] == 0
    status, out, _ = run_command(
        "compare", run_dir, "--prompt", "Hi.", "--max-new-tokens", "5", "--json"
    )
    assert set(json.loads(out)["answers"][0]) == {
        "prompt",
        "pictures",
        "rendered",
        "cut",
        "base",
        "adapter",
        "chances",
        "tags",
        "others",
    }
    assert json.loads(out)["fairness"]["fair"]
    (tmp_path / "prompts.txt").write_text("One.\nTwo.\n")
    status, out, _ = run_command(
        "compare",
        run_dir,
        "--prompts",
        tmp_path / "prompts.txt",
        "--max-new-tokens",
        "2",
        "--compare-with",
        "checkpoint-2",
    )
    assert (
        status,
        out.count("Adapter:"),
        out.count("Step 2:"),
        "Checked: with the adapter off" in out,
    ) == (0, 2, 2, True)
    assert run_command("compare", run_dir)[0] == 2
    status, out, err = run_command("evaluate", run_dir, "--json")
    assert "Scoring the adapter's answers" in err
    found = json.loads(out)
    assert {"exact_match", "loss"} <= set(found["base"]) & set(found["adapter"])
    status, out, _ = run_command(
        "export", run_dir, "--target", "adapter", "--out", tmp_path / "adapter", "--json"
    )
    assert (status, json.loads(out)["path"]) == (0, str(tmp_path / "adapter"))


MISTAKES = [
    ("an empty file", "rows.json", "", "{}"),
    ("wrong columns", "rows.json", '[{"prompt": "a"}]', "{}"),
    ("not JSON", "rows.json", "{[", "{}"),
    (
        "an unknown model",
        "rows.json",
        '[{"prompt": "a", "completion": "b"}]',
        '{"base_model": "nobody/nothing"}',
    ),
    ("rank 0", "rows.json", '[{"prompt": "a", "completion": "b"}]', '{"lora_rank": 0}'),
    ("an unknown key", "rows.json", '[{"prompt": "a", "completion": "b"}]', '{"rank": 4}'),
    (
        "an unknown layer",
        "rows.json",
        '[{"prompt": "a", "completion": "b"}]',
        '{"target_modules": ["query"]}',
    ),
    (
        "every answer cut off",
        "rows.json",
        json.dumps([{"prompt": "word " * 50, "completion": "b"}]),
        '{"max_length": 8}',
    ),
    ("no usable row", "rows.json", '[{"prompt": "a", "completion": ""}]', "{}"),
    ("a large file", "rows.json", json.dumps([{"prompt": "a" * 3000, "completion": "b"}]), "{}"),
]


LONG = " and the rest of a long sentence" * 30


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"prompt": f"{n}?", "completion": f"{n}" + LONG * (n % 2)} for n in range(20)]
            + [{"prompt": "no answer", "completion": ""}],
            {"Rows that cannot be used": 1, "Rows that are cut off": 10},
        ),
        (
            [{"prompt": f"{n}?", "chosen": LONG + "a", "rejected": LONG + "b"} for n in range(20)],
            {"Rows that are cut off": 20, "Preference pairs with equal answers": 20},
        ),
    ],
    ids=["answers", "preferences"],
)
def test_train_says_how_many_rows_are_left_out_cut_or_equal(
    rows, expected, run_command, tmp_path, write
):
    flags = ("--max-length", "64", "--eval-split", "0", "--out", tmp_path / "run")
    _, out, _ = run_command("train", write("rows.json", rows), *flags, "--no-train", "--json")
    notes = json.loads(out)["notes"]
    assert all(
        any(note.startswith(f"{title}: {count}.") for note in notes)
        for title, count in expected.items()
    )


@pytest.mark.slow
def test_a_training_in_the_foreground_begins_with_what_is_left_out(run_command, tmp_path, write):
    rows = [{"prompt": f"{n}?", "completion": f"{n}"} for n in range(20)]
    path = write("rows.json", [*rows, {"prompt": "no answer", "completion": ""}])
    flags = ("--max-steps", "1", "--out", tmp_path / "run")
    _, _, err = run_command("train", path, *flags)
    lines = err.splitlines()
    [note] = [n for n, line in enumerate(lines) if line.startswith("Rows that cannot be used: 1.")]
    assert note < next(n for n, line in enumerate(lines) if line.startswith("step 1"))


@pytest.mark.parametrize(
    ("name", "content", "recipe"),
    [case[1:] for case in MISTAKES],
    ids=[case[0] for case in MISTAKES],
)
@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_mistake_is_one_message_as_on_the_page_and_leaves_no_run(
    run_command, write, tmp_path, monkeypatch, name, content, recipe, workers
):
    monkeypatch.setenv("PEFT_SPACE_MAX_FILE_MB", "0.002")
    path = write(name, content)
    status, out, err = run_command("train", path, "--recipe", recipe, "--out", tmp_path / "run")
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not any(entry.is_dir() and "run" in entry.name for entry in tmp_path.iterdir())
    assert what_the_page_says(workers, path, recipe, tmp_path) == err.strip()


@pytest.fixture(scope="module")
def workers():
    """The page's worker processes, started with the size limit of these tests."""
    from peft_space.runtime.worker_pool import Workers

    made = Workers(max_workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_SPACE_MAX_FILE_MB", "0.002")
        made.call("layers", recipe={})
    yield made
    made.close()


def what_the_page_says(workers, path, recipe, tmp_path):
    from peft_space.recipe import make_recipe

    def start():  # as the page's Start does
        values = make_recipe(json.loads(recipe)).model_dump(exclude_defaults=True)
        workers.call("make_run", directory=str(tmp_path / "run"), data=str(path), recipe=values)

    with pytest.raises(UserError) as refusal:
        start()
    assert not (tmp_path / "run").exists()
    return user_message(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["resume", "/nowhere"], "/nowhere"),
        (["compare", "/nowhere", "--prompt", "a"], "/nowhere"),
        (["check", "/nowhere.csv"], "nowhere.csv"),
        (["train", "demo", "--recipe", "nowhere.json", "--out", "x"], "nowhere.json"),
        (["train", "demo", "--column-mapping", "[", "--out", "x"], "[cli.invalid_argument]"),
        (["rank-sweep", "demo", "--ranks", "2;8"], "[cli.invalid_argument]"),
    ],
)
def test_a_missing_file_or_wrong_flag_exits_with_2(run_command, arguments, named):
    status, out, err = run_command(*arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


def test_a_bug_prints_its_traceback_and_exits_with_1(run_command, tmp_path, monkeypatch):
    def check(data: DataSource) -> Json:
        """Fail."""
        return {"rows": 1 / 0}

    monkeypatch.setitem(REGISTRY, "check", dataclasses.replace(REGISTRY["check"], function=check))
    status, out, err = run_command("check", "demo")
    assert (status, out) == (1, "")
    assert "ZeroDivisionError" in err
    assert "Traceback" in err


@pytest.mark.slow
def test_two_processes_do_not_train_one_run(run_command, own_run):
    with Run(own_run.directory).lock():
        status, _, err = run_command("resume", own_run.directory)
    assert status == 2
    assert "[runs.locked]" in err


def test_ambiguous_columns_list_every_mapping_and_exit_with_2(run_command, write):
    status, out, err = run_command(
        "check", write("rows.csv", "Anfrage,Reaktion\nWie geht es?,Gut.\nUnd dir?,Auch gut.\n")
    )
    assert status == 2
    assert out.count("--column-mapping") == 3
    assert "[cli.ambiguous_columns]" in err


def test_the_help_starts_without_heavy_libraries():
    code = """
import contextlib, io, sys
from peft_space.cli.main import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
heavy = ("torch", "transformers", "gradio", "datasets", "pyarrow", "huggingface_hub")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("operation", operations_on("cli"), ids=lambda one: one.name)
@pytest.mark.sample(31)
def test_every_command_prints_help_for_each_of_its_arguments(operation, capsys):
    with pytest.raises(SystemExit) as ended:
        main([operation.command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert operation.help in printed
    for parameter in operation.parameters_on("cli"):
        for field in fields_of(parameter.kind.model) if parameter.kind.model else ():
            assert flag_of(field) in printed
            assert field.help.split()[0] in printed


def test_flags_of_the_recipe_override_its_file(run_command, tmp_path):
    (tmp_path / "recipe.json").write_text('{"lora_rank": 4, "max_length": 64}')
    status, out, err = run_command(
        *("train", "demo", "--recipe", tmp_path / "recipe.json", "--lora-rank", "8"),
        *("--modules-to-save", "lm_head,norm", "--no-double-quantization", "--no-train"),
        *("--out", tmp_path / "run", "--json"),
    )
    assert (status, json.loads(out)["outcome"]) == (0, None), err
    recipe = Run(tmp_path / "run").recipe
    assert (recipe.lora_rank, recipe.max_length, recipe.double_quantization) == (8, 64, False)
    assert recipe.modules_to_save == ["lm_head", "norm"]


def test_runs_are_listed_renamed_and_deleted(run_command, own_run):
    assert run_command("rename", own_run.directory, "Best")[0] == 0
    _, out, _ = run_command("status", own_run.directory, "--json")
    assert (json.loads(out)["name"], json.loads(out)["status"]) == ("Best", "finished")
    home = settings.home() / "runs" / "local"
    home.mkdir(parents=True)
    shutil.copytree(own_run.directory, home / ("0" * 24))
    _, out, _ = run_command("list", "--json")
    assert [line["name"] for line in json.loads(out)] == ["Best"]
    assert run_command("delete", own_run.directory)[0] == 0
    assert not own_run.directory.exists()


def test_a_line_of_progress_is_printed_once(capsys):
    report = progress_printer()
    for share in (0.0, 0.0, 0.5, 0.5):
        report({"what": "Measuring", "share": share})
    assert capsys.readouterr().err.splitlines() == ["  0% Measuring", " 50% Measuring"]


@pytest.mark.parametrize(
    ("program", "command"),
    [("/bin/peft-space", "peft-space"), ("/a/peft_space/__main__.py", "python -m peft_space")],
)
def test_hints_name_the_command_as_it_was_started(
    program, command, monkeypatch, run_command, tmp_path, write
):
    monkeypatch.setattr(sys, "argv", [program])
    rows = write("rows.json", [{"prompt": f"{n}?", "completion": f"{n}"} for n in range(20)])
    out = tmp_path / "run"
    assert f"{command} resume {out}" in run_command("train", rows, "--no-train", "--out", out)[1]
