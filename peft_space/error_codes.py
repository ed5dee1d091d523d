"""Every error code, with its cause and its fix. docs/troubleshooting.md is generated from it."""

CODES: dict[str, tuple[str, str]] = {
    # machine
    "machine.disk_full": (
        "The disk is full.",
        "Free some space. Then try again, or resume the run: saved work is kept.",
    ),
    "machine.out_of_memory": (
        "The GPU or the machine ran out of memory.",
        "Choose a smaller batch size, a smaller length limit, nf4 quantization or a smaller base model.",
    ),
    # data
    # recipe
    # models
    "models.adapter_damaged": (
        "The adapter's config or weights are missing or cannot be read.",
        "Restore the adapter of the run, or train again.",
    ),
    "models.adapter_mismatch": (
        "The adapter was trained on another base model, or its tensors do not fit this one.",
        "Restore the adapter of the run, or train again.",
    ),
    "models.base_changed": (
        "The files of the base model changed after the run was trained.",
        "Restore the files, or train again.",
    ),
    "models.dora_impossible": (
        "DoRA cannot be used on this base model.",
        "Choose lora as the method, or other target modules.",
    ),
    "models.gated": (
        "The authors of the model ask you to accept their conditions.",
        "Accept them on the model's page on the Hub, and sign in.",
    ),
    "models.invalid_config": (
        "The model's config cannot be read, or does not describe a model.",
        "Download the model again, or choose another base model.",
    ),
    "models.invalid_tokenizer": (
        "The tokenizer's files cannot be read.",
        "Download the tokenizer again, or choose another base model.",
    ),
    "models.missing_packages": (
        "A model quantized with GPTQ or AWQ requires packages that are not installed.",
        "Install requirements-gptq.txt, or choose the model in full precision.",
    ),
    "models.needs_code": (
        "The model needs its own code to run, which is never allowed.",
        "Choose a model that transformers supports.",
    ),
    "models.no_tokenizer": (
        "The base model has no tokenizer.",
        "Save the tokenizer in the same folder, or choose another base model.",
    ),
    "models.not_a_base_model": (
        "The folder or repository is not a base model.",
        "Choose the base of the adapter, or a folder that save_pretrained wrote.",
    ),
    "models.not_found": (
        "There is no base model of this name, or it is private.",
        "Check the spelling, or sign in to the Hub.",
    ),
    "models.quantization_unsupported": (
        "The model is published with a quantization that cannot be trained.",
        "Choose the model in full precision.",
    ),
    "models.task_mismatch": (
        "The rows cannot train the chosen task.",
        "Choose another task, or map the columns differently.",
    ),
    "models.task_unsupported": (
        "Models of this type cannot learn the task.",
        "Choose another base model or another task.",
    ),
    "models.tokenizer_unsupported": (
        "The tokenizer has no fast version, or no end-of-text token.",
        "Choose another base model.",
    ),
    "models.unknown_module": (
        "The recipe names a layer or block that is not in the model.",
        "Choose one of the names in the message.",
    ),
    "models.unknown_revision": (
        "The model has no such revision.",
        "Check the branch, tag or commit.",
    ),
    "models.unreachable": (
        "The model is not on this machine, and the Hub cannot be reached.",
        "Check the spelling and the network.",
    ),
    "models.unsafe_config": (
        "A file of the model asks for something unsafe.",
        "Choose another base model.",
    ),
    "models.weights_damaged": (
        "The weights are incomplete or damaged.",
        "Download the model again, or choose another base model.",
    ),
    "models.weights_unsupported": (
        "The weights are in a format that cannot be trained.",
        "Choose a model that is stored as safetensors in bfloat16, float16 or float32.",
    ),
    # training
    # evaluation
    "evaluation.adapter_with_biases": (
        "An adapter that trains biases cannot be compared with other adapters.",
        "Compare it alone.",
    ),
    "evaluation.already_voted": (
        "The pair of answers has a vote already.",
        "Create new pairs to vote again.",
    ),
    "evaluation.answers_truncated": (
        "At the run's length limit every held-out answer is truncated.",
        "Train again with a larger max_length.",
    ),
    "evaluation.checkpoint_of_changed_base": (
        "PiSSA and LoftQ change the base while they train, so their checkpoints do not fit it.",
        "Compare the run's final adapter.",
    ),
    "evaluation.invalid_sampling": (
        "A sampling setting is out of range.",
        "Choose a value in the range that the message gives.",
    ),
    "evaluation.invalid_vote": (
        "The vote is not one of the choices.",
        "Choose left, right or same.",
    ),
    "evaluation.no_held_out_rows": (
        "The run has no held-out rows to score.",
        "Train it again with eval_split above 0.",
    ),
    "evaluation.no_prompt_column": (
        "The file has several columns, and none is named like a column of prompts.",
        "Rename one of them to prompt.",
    ),
    "evaluation.no_prompts": (
        "There are no prompts in the file, or none in the held-out rows.",
        "Write one on each line, or in a column named prompt.",
    ),
    "evaluation.no_such_checkpoint": (
        "The run has no complete checkpoint of this name.",
        "Choose one of the complete checkpoints in the message.",
    ),
    "evaluation.no_vote": ("The run has no blind vote yet.", "Create pairs of answers first."),
    "evaluation.too_many_prompts": (
        "The file has too many prompts.",
        "Remove some, or split the file.",
    ),
    "evaluation.unknown_pair": (
        "There is no such pair of answers to vote on.",
        "Create new pairs first.",
    ),
    # planning
    # export
    # hub
    # runs
    # runtime
    # operations
    # cli
    # web
}
"""Code -> (cause, fix), both complete sentences."""
