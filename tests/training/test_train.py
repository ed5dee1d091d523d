"""Training: what reaches the model is what was rendered; it can be stopped, killed and resumed; it writes what it did."""

import functools
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
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, steps_of
from peft_space.training import train as training
from peft_space.training.model_cache import ModelCache
from peft_space.training.prepare import make_run, prepare

TINY = Recipe(max_steps=6, save_steps=2, batch_size=4)


def make(tmp_path, recipe=TINY, name="run"):
    return make_run(tmp_path / name, "demo", recipe)


def go(run, deadline=None):
    with run.lock():
        return training.train(run, deadline)


def adapter_bytes(run):
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def see_batches(monkeypatch, seen):
    """Let every batch that a trainer takes a step on be kept in `seen`."""
    from transformers import Trainer

    step = Trainer.training_step

    def spying(self, model, inputs, *args, **kwargs):
        seen.append({key: value.clone() for key, value in inputs.items()})
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", spying)


def test_the_batch_that_reaches_the_model_is_what_was_rendered(tmp_path, tokenizer, monkeypatch):
    seen = []

    see_batches(monkeypatch, seen)
    run = make(tmp_path, Recipe(num_epochs=1, max_length=40))
    go(run)
    rendered = render(tokenizer, load_run_data(run).train, 40)
    wanted = sorted(
        (example.input_ids, example.labels) for example in rendered if example.num_trained
    )
    got = []
    for batch in seen:
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            length = int(mask.sum())
            assert (labels[length:] == MASKED).all()
            got.append((ids[:length].tolist(), labels[:length].tolist()))
    assert sorted(got) == wanted


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
    theirs = trainer.compute_loss(
        model, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    )
    ours = model(**collate(rows, tokenizer.pad_token_id)).loss
    assert float(theirs) == pytest.approx(float(ours), abs=1e-5)


def test_an_evaluation_between_steps_leaves_the_gradients_as_they_are(tokenizer):
    """Held against bitsandbytes' repacking of 4-bit layers in eval mode, which has no gradient."""
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


def test_a_run_tells_each_step_once_and_what_was_used(short_run):
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


def test_the_recipe_stays_as_it_was_asked(tmp_path):
    run = make(tmp_path, Recipe(max_steps=2))
    go(run)
    assert Run(run.directory).recipe == Recipe(max_steps=2)
    assert read_plan(run).learning_rate == pytest.approx(0.0037), (
        "half more than 0.0025, for so few steps"
    )


def test_a_request_to_stop_is_followed_within_a_step_and_the_run_goes_on_from_there(
    tmp_path, monkeypatch
):
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


def test_the_plan_is_made_once_and_used_on_every_resume(tmp_path, monkeypatch):
    run = make(tmp_path)
    go(run, deadline=time.time())
    plan = read_plan(run)
    monkeypatch.setattr(training, "make_plan", None)
    go(run)
    assert read_plan(run) == plan


def test_scores_of_an_adapter_that_was_trained_further_are_forgotten(own_run):
    own_run.path("scores.json").write_text("{}")
    shutil.rmtree(own_run.path("checkpoints", "checkpoint-12"))
    go(own_run)
    assert not own_run.path("scores.json").exists()
    assert "Not measured yet" in (own_run.adapter / "README.md").read_text()


def test_a_base_that_has_changed_since_is_not_trained_on(tmp_path):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    run = make_run(tmp_path / "run", "demo", TINY.model_copy(update={"base_model": str(folder)}))
    go(run, deadline=time.time())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="are not those that this run was trained on"):
        go(run)


def test_rows_that_the_chat_template_refuses_are_problems_and_the_others_are_trained(
    tmp_path, write
):
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


def test_a_module_to_save_that_is_not_in_the_model_is_refused():
    with pytest.raises(UserError, match=r"no module .lm_haed. to save\. Did you mean lm_head"):
        prepare("demo", Recipe(modules_to_save=["lm_haed"]))


def test_a_deadline_pauses_and_the_run_finishes_in_as_many_calls_as_it_takes(tmp_path):
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
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_complete_one(own_run, damage):
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


def test_a_run_continued_from_an_older_checkpoint_ends_with_the_same_adapter(own_run, short_run):
    shutil.rmtree(own_run.path("checkpoints", "checkpoint-12"))
    shutil.rmtree(own_run.path("adapter"))
    own_run.append(events.Started(attempt=1, from_step=0, total_steps=12))
    assert own_run.status() == "interrupted"
    go(own_run)
    assert adapter_bytes(own_run) == adapter_bytes(short_run)
    assert [step.loss for step in steps_of(own_run.history())] == [
        step.loss for step in steps_of(short_run.history())
    ]


def test_a_failure_is_told_in_the_run_and_raised(tmp_path, monkeypatch):
    run = make(tmp_path)
    monkeypatch.setattr(training, "make_plan", functools.partial(exec, "raise ValueError('boom')"))
    with pytest.raises(TypeError):
        go(run)
    assert run.status() == "failed"
    assert "fault of the app" in run.history()[-1].message


@pytest.mark.slow
def test_accumulated_batches_are_one_step(tmp_path):
    run = make(tmp_path, Recipe(num_epochs=1, batch_size=50, gradient_accumulation_steps=3))
    go(run)
    assert [step.step for step in steps_of(run.history())] == [1, 2]


def test_the_adapter_folder_holds_what_peft_the_tokenizer_and_a_reader_need(short_run):
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
def test_a_model_that_stayed_in_memory_goes_on_as_one_that_is_loaded_again(tmp_path, compute_dtype):
    recipe = Recipe(
        max_steps=4, compute_dtype=compute_dtype, quantization="none", batch_size=2, save_steps=2
    )
    losses = []
    for name, warm in (("warm", ModelCache()), ("cold", None)):
        run = make_run(tmp_path / name, "demo", recipe)
        for leaves in (True, False):
            if leaves:
                run.request_stop("pause")
            with run.lock():
                training.train(run, warm=warm)
        assert run.status() == "finished"
        losses.append([step.loss for step in steps_of(run.history())])
    assert losses[0] == losses[1]
