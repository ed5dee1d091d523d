"""The internals of TRL that the app replaces still exist and still have their effect."""

import pytest
import torch
from datasets import Dataset

from peft_space.compat.trl import preference_trainer
from peft_space.data.batches import first_rows
from peft_space.models.loading import load_base_model, new_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe, TaskSpec


@pytest.mark.parametrize("task", ["dpo", "kto"])
@pytest.mark.sample(1)
def test_rows_reach_the_collator_unchanged_and_the_base_model_is_the_reference(
    task, tmp_path, tokenizer
):
    base, recipe = find_base("demo"), Recipe(lora_rank=2)
    model = load_base_model(base, recipe, "float32", TaskSpec(task))
    model = new_adapter(model, recipe, base, TaskSpec(task))
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    arguments |= {"bf16": False, "remove_unused_columns": False, "max_length": None}
    arguments["per_device_train_batch_size"] = 8
    if task == "kto":
        arguments["train_sampling_strategy"] = "sequential"
    items = []
    trainer = preference_trainer(
        task,
        model,
        arguments,
        first_rows,
        [3, 1, 0, 2],
        train_dataset=Dataset.from_dict({"example": [1, 2, 3, 4]}),
        processing_class=tokenizer,
        data_collator=lambda batch: items.extend(batch) or {"x": torch.zeros(1)},
    )
    next(iter(trainer.get_train_dataloader()))
    assert [item["example"] for item in items] == [4, 2, 1, 3], "rows come in the given order"
    assert list(model.peft_config) == ["default"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert {parameter.dtype for parameter in trained} == {torch.float32}
