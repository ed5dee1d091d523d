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
    "recipe.invalid_value": (
        "A value in the recipe is outside its range or of the wrong type.",
        "Change it as the message says, or remove the key to use its default.",
    ),
    "recipe.not_an_object": (
        "The recipe is not a JSON object.",
        'Write it like {"lora_rank": 16}.',
    ),
    "recipe.not_json": (
        "The recipe is not valid JSON.",
        'Correct the line that the message names. Write it like {"lora_rank": 16}.',
    ),
    "recipe.red_line": (
        "The recipe combines settings that cannot work, or a rank over 64 without a reason.",
        "Change the settings that the message names, or apply the recommended recipe.",
    ),
    "recipe.unknown_key": (
        "The recipe has a key that does not exist.",
        "Correct its spelling. `peft-space train --help` lists all keys.",
    ),
    "recipe.unreadable": (
        "The recipe file does not exist or cannot be read.",
        "Give the path of a JSON file, or {} for the defaults.",
    ),
    # models
    # training
    "training.adapter_ambiguous": (
        "The .zip file contains more than one adapter, or too many files.",
        "Pack the folder of one adapter only.",
    ),
    "training.adapter_config_invalid": (
        "The adapter_config.json is damaged, or a required value is missing or has the wrong type.",
        "Save the adapter again with PEFT's `save_pretrained`, or correct the value.",
    ),
    "training.adapter_incomplete": (
        "The adapter has no adapter_config.json or no adapter_model.safetensors.",
        "Give a folder, .zip file or Hub repository written by PEFT's `save_pretrained`.",
    ),
    "training.adapter_not_found": (
        "There is no such adapter, or the Hub cannot be reached.",
        "Give a Hub id like OWNER/NAME, a .zip file, or a folder on your own machine.",
    ),
    "training.adapter_too_large": (
        "A file in the .zip unpacks to far more than an adapter needs.",
        "Pack the adapter's folder again.",
    ),
    "training.adapter_unsupported": (
        "The adapter is not a LoRA, or it uses a setting that cannot be imported.",
        "Merge the adapter into its base model and use the merged model instead.",
    ),
    "training.adapter_zip_damaged": (
        "The file is not a .zip file, is encrypted, or is damaged.",
        "Pack the adapter's folder again, without a password.",
    ),
    "training.all_answers_truncated": (
        "The length limit truncates every row before its answer begins.",
        "Raise `max_length` in the recipe.",
    ),
    "training.all_rows_rejected": (
        "The base model's chat template rejects every row.",
        "Change the rows as the message says, or choose another chat template.",
    ),
    "training.all_rows_too_long": (
        "Every row is longer than the limit, and you chose to drop such rows.",
        "Raise `max_length` in the recipe.",
    ),
    "training.checkpoint_incompatible": (
        "A setting that a checkpoint depends on has changed.",
        "Restore the setting, or start a new run.",
    ),
    "training.checkpoint_mismatch": (
        "The rows, the recipe, the base model or a library has changed since the checkpoint.",
        "Restore the original, start a new run, or resume with `--ignore-mismatch`.",
    ),
    "training.compute_dtype_unsupported": (
        "The base model cannot compute in the chosen `compute_dtype`.",
        "Set `compute_dtype` to automatic or float32.",
    ),
    "training.kto_batch_too_small": (
        "KTO compares the rows of a batch with each other, and the batch has one row.",
        "Set `batch_size` to 2 or more.",
    ),
    "training.label_count": (
        "The label column has a single label, or more labels than a classifier can learn.",
        "Choose another label column on the Data tab.",
    ),
    "training.no_held_out_rows": (
        "The recipe or the operation needs held-out rows, and there are none.",
        "Raise `eval_split`, or add a second file with held-out rows.",
    ),
    "training.not_finite": (
        "The loss or the gradient is not a finite number, so training cannot continue.",
        "Start a new run with a lower learning rate. If that fails, check the rows for errors.",
    ),
    "training.out_of_memory": (
        "Training needs more memory than there is, even after the app reduced its use.",
        "Resume with shorter rows, use 4-bit quantization, or choose a smaller base model.",
    ),
    "training.plan_missing": (
        "The run has checkpoints, but its plan.json is missing.",
        "Restore plan.json, or start a new run.",
    ),
    "training.tokenizer_mismatch": (
        "The tokenizer produces tokens for which the base model has no embedding.",
        "Use the model's own tokenizer, or the base model that the tokenizer was made for.",
    ),
    "training.tracker_not_installed": (
        "The package of the tracker is not installed.",
        "Install it with pip.",
    ),
    "training.tracker_not_signed_in": (
        "Weights & Biases cannot be reached, or you are not signed in.",
        "Run `wandb login`, or set WANDB_MODE=offline.",
    ),
    "training.tracker_unknown": (
        "The tracker does not exist.",
        "Choose tensorboard, trackio or wandb.",
    ),
    # evaluation
    # planning
    "planning.does_not_fit": (
        "Training needs more memory than is free.",
        "Change the recipe as the message says, choose a smaller base model or a larger machine.",
    ),
    "planning.loss_not_finite": (
        "The loss of a rank sweep is not a finite number.",
        "Lower the learning rate and try again.",
    ),
    "planning.process_killed": (
        "The system killed the process of the dry run, probably because memory ran out.",
        "Choose a smaller batch size, a smaller length limit or a smaller base model.",
    ),
    "planning.rank_out_of_range": (
        "A rank is not between 1 and 256, or no rank was given.",
        "Choose ranks from 1 to 256, such as 2, 8 and 32.",
    ),
    # export
    # hub
    # runs
    # runtime
    # operations
    # cli
    # web
}
"""Code -> (cause, fix), both complete sentences."""
