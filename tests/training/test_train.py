"""Training uses the previewed rows, can be stopped, killed and resumed, and records its steps."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from peft_space.data.arrow_store import MASKED
from peft_space.data.batches import collate
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import render
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.export.readiness import describe_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.training import train as training
from peft_space.training.prepare import make_run, prepare
from peft_space.training.train import ModelCache, TrainOptions
from tests.fixtures.task_rows import record_batches, rows_in

TINY = Recipe(max_steps=6, save_steps=2, batch_size=4)


def make(tmp_path, recipe=TINY, name="run"):
    return make_run(tmp_path / name, "demo", recipe)


def go(run, deadline=None):
    with run.lock():
        return training.train(run, TrainOptions(deadline=deadline))


def adapter_bytes(run):
    return (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_batch_contains_exactly_the_rendered_rows(tmp_path, tokenizer, monkeypatch):
    batches = record_batches(monkeypatch)
    run = make(tmp_path, Recipe(num_epochs=1, max_length=40))
    go(run)
    rendered = render(tokenizer, load_run_data(run).train, 40)
    expected = sorted(
        (example.input_ids, example.labels) for example in rendered if example.num_trained
    )
    trained = [row for batch in batches for row in rows_in(batch)]
    assert sorted(trained) == expected


def test_padding_is_neither_attended_to_nor_trained(tokenizer):
    rows = data_rows(tokenizer)
    batch = collate(rows, tokenizer.pad_token_id)
    for row, ids, mask, labels in zip(rows, *batch.values(), strict=True):
        length = len(row.input_ids)
        assert (ids[length:] == tokenizer.pad_token_id).all()
        assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
        assert (labels[length:] == MASKED).all()


def data_rows(tokenizer):
    from peft_space.data.dataset import load_dataset

    return render(tokenizer, load_dataset("demo", 0.1, 0).train[:5], 100)


def test_the_loss_equals_that_of_trls_sft_trainer_on_the_same_batch(tmp_path, tokenizer):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from peft_space.models.loading import load_base_model

    rows = data_rows(tokenizer)
    model = load_base_model(find_base("demo"), Recipe(quantization="none"), "float32")
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    config = SFTConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=5,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trl_loss = trainer.compute_loss(
        model, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    )
    our_loss = model(**collate(rows, tokenizer.pad_token_id)).loss
    assert float(trl_loss) == pytest.approx(float(our_loss), abs=1e-5)


@pytest.mark.slow
def test_an_evaluation_between_steps_does_not_change_gradients(tokenizer):
    """bitsandbytes repacks 4-bit layers in eval mode, and repacked layers have no gradient."""
    from peft_space.models.loading import load_base_model, new_adapter

    base = find_base("demo")
    torch.manual_seed(0)
    model = new_adapter(load_base_model(base, Recipe(), "float32"), Recipe(lora_dropout=0), base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    batch = collate(data_rows(tokenizer), tokenizer.pad_token_id)

    def gradients():
        model.train().zero_grad()
        model(**batch).loss.backward()
        return [
            parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad
        ]

    before = gradients()
    with torch.no_grad():
        model.eval()(**batch)
    assert all(torch.equal(old, new) for old, new in zip(before, gradients(), strict=True))


def test_a_run_records_each_step_once_and_its_plan(short_run):
    happened = short_run.history()
    assert [step.step for step in steps_of(happened)] == list(range(1, 13))
    assert [event.step for event in evaluations_of(happened)] == [6, 12]
    assert isinstance(happened[-1], events.Finished)
    assert steps_of(happened)[-1].loss < steps_of(happened)[0].loss / 2
    plan = read_plan(short_run)
    assert plan.num_wrapped == len(plan.target_modules) * find_base("demo").config.num_hidden_layers
    assert plan.compute_dtype in ("float32", "bfloat16")
    assert plan.versions["peft"]
    assert short_run.status() == "finished"


def test_tokens_are_counted_without_padding(short_run, tokenizer):
    rows = render(tokenizer, load_run_data(short_run).train, 512)
    first = steps_of(short_run.history())[0].tokens
    assert (
        min(len(row.input_ids) for row in rows) * 8
        <= first
        <= max(len(row.input_ids) for row in rows) * 8
    )


@pytest.mark.slow
def test_training_does_not_change_the_recipe(tmp_path):
    run = make(tmp_path, Recipe(max_steps=2))
    go(run)
    assert Run(run.directory).recipe == Recipe(max_steps=2)
    assert read_plan(run).learning_rate == pytest.approx(0.0062), (
        "2.5 times 0.0025, for so few steps"
    )


def test_a_run_stops_within_a_step_and_resumes_to_the_same_adapter(tmp_path, monkeypatch):
    whole, stopped = make(tmp_path, name="whole"), make(tmp_path, name="stopped")
    go(whole)
    shutil.copy(whole.path("plan.json"), stopped.path("plan.json"))
    append = Run.append

    def stop_in_step_3(run, event):
        append(run, event)
        if isinstance(event, events.Step) and event.step == 3 and event.attempt == 1:
            run.request_stop("stop")

    monkeypatch.setattr(Run, "append", stop_in_step_3)
    outcome = go(stopped)
    assert isinstance(outcome, events.Stopped)
    assert outcome.step in (3, 4)
    assert stopped.status() == "stopped"
    assert isinstance(go(stopped), events.Finished)
    assert [(step.step, step.loss) for step in steps_of(stopped.history())] == [
        (step.step, step.loss) for step in steps_of(whole.history())
    ]
    assert adapter_bytes(stopped) == adapter_bytes(whole)


@pytest.mark.slow
def test_the_plan_is_made_once_and_used_on_every_resume(tmp_path, monkeypatch):
    run = make(tmp_path)
    go(run, deadline=time.time())
    plan = read_plan(run)
    monkeypatch.setattr(training, "make_first_plan", None)
    go(run)
    assert read_plan(run) == plan


@pytest.mark.slow
def test_further_training_removes_the_scores(own_run):
    own_run.path("scores.json").write_text("{}")
    shutil.rmtree(own_run.path("checkpoints", "checkpoint-12"))
    with own_run.lock():
        training.train(own_run, TrainOptions(on_adapter_saved=describe_adapter))
    assert not own_run.path("scores.json").exists()
    assert (own_run.adapter / "README.md").is_file(), "the model card does not read these scores"


@pytest.mark.slow
def test_a_base_model_that_has_changed_is_rejected(tmp_path):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    run = make_run(tmp_path / "run", "demo", TINY.model_copy(update={"base_model": str(folder)}))
    go(run, deadline=time.time())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError) as error:
        go(run)
    assert str(folder) in str(error.value)


@pytest.mark.slow
def test_rows_that_the_chat_template_rejects_become_problems(tmp_path, write):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(
        "{%- if 'bad' in messages[0]['content'] %}{{ raise_exception('no bad words') }}{% endif %}"
        + template.read_text()
    )
    rows = [
        {"prompt": f"{'bad' if i % 3 == 0 else 'good'} {i}", "completion": "yes"} for i in range(9)
    ]
    prepared = prepare(write("rows.json", rows), Recipe(base_model=str(folder), eval_split=0))
    assert [problem.row for problem in prepared.data.problems] == [1, 4, 7]
    assert "no bad words" in prepared.data.problems[0].problem
    assert (
        [row.row for row in prepared.data.train]
        == [example.row for example in prepared.train]
        == [2, 3, 5, 6, 8, 9]
    )


def test_a_module_to_save_that_is_not_in_the_model_is_rejected():
    with pytest.raises(UserError) as error:
        prepare("demo", Recipe(modules_to_save=["lm_haed"]))
    assert "lm_haed" in str(error.value)
    assert "lm_head" in str(error.value)


@pytest.mark.slow
def test_a_run_with_deadlines_pauses_and_finishes_in_several_calls(tmp_path):
    run = make(tmp_path)
    outcome = go(run, deadline=time.time())
    assert isinstance(outcome, events.Paused)
    assert run.status() == "paused"
    calls = 1
    while not isinstance(outcome, events.Finished):
        outcome = go(run, deadline=time.time())
        calls += 1
    assert calls == 6
    assert [step.step for step in steps_of(run.history())] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "emptied", "unsealed"])
@pytest.mark.sample(2)
def test_a_damaged_checkpoint_is_skipped(own_run, damage):
    newest = checkpoints.newest_checkpoint(own_run)
    assert checkpoints.step_of(newest) == 12
    victim = newest / "optimizer.pt"
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[:-10])
    elif damage == "flipped":
        victim.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    elif damage == "emptied":
        victim.write_bytes(b"")
    else:
        (newest / checkpoints.MANIFEST).unlink()
    assert checkpoints.step_of(checkpoints.newest_checkpoint(own_run)) == 8


@pytest.mark.slow
def test_a_run_resumed_from_an_older_checkpoint_gets_the_same_adapter(own_run, short_run):
    shutil.rmtree(own_run.path("checkpoints", "checkpoint-12"))
    shutil.rmtree(own_run.path("adapter"))
    own_run.append(events.Started(attempt=1, from_step=0, total_steps=12))
    assert own_run.status() == "interrupted"
    go(own_run)
    assert adapter_bytes(own_run) == adapter_bytes(short_run)
    assert [step.loss for step in steps_of(own_run.history())] == [
        step.loss for step in steps_of(short_run.history())
    ]


@pytest.mark.slow
def test_a_bug_is_recorded_in_the_run_and_raised(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("boom")

    run = make(tmp_path)
    monkeypatch.setattr(training, "make_first_plan", fail)
    with pytest.raises(ValueError, match="boom"):
        go(run)
    assert run.status() == "failed"
    assert (run.history()[-1].code, run.history()[-1].fault) == ("bug", True)
    assert "boom" in run.history()[-1].message


@pytest.mark.slow
def test_accumulated_batches_make_one_step(tmp_path):
    run = make(tmp_path, Recipe(num_epochs=1, batch_size=50, gradient_accumulation_steps=3))
    go(run)
    assert [step.step for step in steps_of(run.history())] == [1, 2]


def test_the_adapter_folder_holds_weights_config_tokenizer_and_readme(short_run):
    names = {path.name for path in short_run.adapter.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    config = json.loads((short_run.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "peft_space/demo/model"
    assert config["revision"].startswith("sha256-")
    weights = load_file(short_run.adapter / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_cached_model_resumes_like_one_that_is_loaded_again(tmp_path, compute_dtype):
    recipe = Recipe(
        max_steps=4, compute_dtype=compute_dtype, quantization="none", batch_size=2, save_steps=2
    )
    losses = []
    for name, cache in (("cached", ModelCache()), ("loaded", None)):
        run = make_run(tmp_path / name, "demo", recipe)
        for pauses in (True, False):
            if pauses:
                run.request_stop("pause")
            with run.lock():
                training.train(run, TrainOptions(model_cache=cache))
        assert run.status() == "finished"
        losses.append([step.loss for step in steps_of(run.history())])
    assert losses[0] == losses[1]
