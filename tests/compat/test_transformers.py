"""The internals of transformers that the app uses behave as it expects."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    TrainingArguments,
    ViTConfig,
)

from peft_space.compat.transformers import (
    EachRowOnce,
    cached_repo_file,
    float32_modules,
    has_auto_model,
    render_chat_template,
    special_tokens_as_text,
    template_variables,
    trainer_with_row_order,
    use_one_gpu,
)
from peft_space.data.batches import first_rows
from peft_space.demo import MODEL_DIR


def test_the_auto_classes_know_which_configs_they_have_models_for():
    assert has_auto_model(AutoModelForCausalLM, LlamaConfig)
    assert not has_auto_model(AutoModelForCausalLM, ViTConfig)


def test_the_variables_of_a_template_are_those_that_it_does_not_set():
    template = "{% set a = 1 %}{% for b in messages %}{{ a }}{{ b.c }}{% endfor %}"
    template += "{% if switch is defined %}x{% endif %}{% generation %}{% endgeneration %}"
    assert template_variables(template) == {"messages", "switch"}


def test_a_missing_or_unreachable_file_is_none():
    assert cached_repo_file(str(MODEL_DIR), "config.json", None) == MODEL_DIR / "config.json"
    assert cached_repo_file(str(MODEL_DIR), "missing.json", None) is None
    assert cached_repo_file("nobody/nothing", "config.json", None) is None


def test_a_trainer_draws_rows_in_the_given_order(tmp_path):
    rows = Dataset.from_dict({"x": [[float(number)] for number in range(5)]})
    trainer = trainer_with_row_order(
        [3, 1, 4, 0, 2],
        first_rows,
        model=torch.nn.Linear(1, 1),
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none",
            per_device_train_batch_size=1, remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=lambda items: {"x": torch.tensor([item["x"] for item in items])},
    )  # fmt: skip
    order = [int(batch["x"]) for batch in trainer.get_train_dataloader()]
    assert order == [3, 1, 4, 0, 2]
    assert trainer.floating_point_ops({}) == 0


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (4, 1), (2, 3)])
@pytest.mark.parametrize("num_rows", [1, 5, 11, 24])
def test_several_processes_train_each_row_of_an_epoch_once(num_rows, size, accumulation, processes):
    """Of the rows that accelerate deals, those that it repeats are left out."""
    batches = BatchSampler(range(num_rows), size, drop_last=False)
    trained, num_steps = [], set()
    for rank in range(processes):
        dealt = iter(BatchSamplerShard(batches, processes, rank))
        trainer = EachRowOnce()
        trainer.train_dataset, trainer._train_batch_size = range(num_rows), size
        trainer.args = SimpleNamespace(
            gradient_accumulation_steps=accumulation, world_size=processes, process_index=rank
        )
        step = 0
        while taken := list(itertools.islice(dealt, accumulation)):
            trainer.state = SimpleNamespace(global_step=step)
            counts = trainer.own_rows(len(taken))
            trained += [row for rows, n in zip(taken, counts, strict=True) for row in rows[:n]]
            step += 1
        num_steps.add(step)
    assert len(num_steps) == 1, "no process waits for another"
    assert sorted(trained) == list(range(num_rows))


def test_the_modules_that_transformers_keeps_in_float32_are_known(tmp_path):
    config = DeepseekV3Config(
        hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, vocab_size=64, n_routed_experts=4, n_group=2,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    assert "e_score_correction_bias" in float32_modules(DeepseekV3ForCausalLM(config))


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}{{ tools | length if tools else '' }}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_a_chat_template_is_rendered_without_a_tokenizer():
    variables = {"eos_token": "</s>"}
    text = render_chat_template(TEMPLATE, MESSAGES, None, False, variables)
    assert text == "Hi Hello</s>"
    tool = {"type": "function", "function": {"name": "f"}}
    prompt = render_chat_template(TEMPLATE, MESSAGES[:1], [tool], True, variables)
    assert prompt == "Hi Answer:1"


def test_special_tokens_are_plain_text_only_inside_the_context(tokenizer):
    backend = tokenizer.backend_tokenizer
    special = tokenizer.eos_token
    assert tokenizer.eos_token_id in backend.encode(special, add_special_tokens=False).ids
    with special_tokens_as_text(tokenizer):
        assert tokenizer.eos_token_id not in backend.encode(special, add_special_tokens=False).ids
    assert tokenizer.eos_token_id in backend.encode(special, add_special_tokens=False).ids


def test_a_process_that_sees_several_gpus_uses_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4)
    assert use_one_gpu(arguments).n_gpu <= 1
    assert (arguments.train_batch_size, arguments.eval_batch_size) == (4, 8)
