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
    # training
    # evaluation
    # planning
    # export
    "export.adapter_without_base": (
        "The adapter's config does not name its base model.",
        "Train the run again.",
    ),
    "export.cannot_merge": (
        "The base model is quantized with GPTQ or AWQ, which an adapter cannot be merged into.",
        "Export the adapter and serve base model and adapter separately.",
    ),
    "export.card_without_base": (
        "The edited model card no longer names the base model.",
        "Put the base_model line back into its front matter.",
    ),
    "export.file_exists": (
        "The file to write already exists.",
        "Choose another name, or delete the file.",
    ),
    "export.gguf_adapter": (
        "llama.cpp cannot use this adapter separately from its base model.",
        "Export the adapter merged into its base model.",
    ),
    "export.gguf_model": (
        "llama.cpp does not compute this model as transformers does.",
        "Export the merged model and serve it with vLLM, or choose another base model.",
    ),
    "export.gguf_of_quantized_base": (
        "The base model was published quantized, so it cannot be a separate GGUF file.",
        "Export the merged model.",
    ),
    "export.gguf_task": (
        "llama.cpp runs only models that write text.",
        "Export the adapter or the merged model.",
    ),
    "export.gguf_tokenizer": (
        "llama.cpp does not support this tokenizer.",
        "Export the merged model, which keeps its tokenizer, and serve it with vLLM.",
    ),
    "export.gguf_unknown_weight": (
        "The model has a weight that llama.cpp does not know.",
        "Export the merged model and serve it with vLLM.",
    ),
    "export.invalid_card": (
        "The front matter of the edited model card is not valid YAML.",
        "Correct the text between the two --- lines.",
    ),
    "export.invalid_choice": (
        "An export option has a value that does not exist.",
        "Choose one of the values in the message.",
    ),
    "export.mismatch": (
        "The exported model does not give the same outputs as the adapter.",
        "Follow the advice in the message, or keep the export with --force.",
    ),
    "export.modelfile_file_name": (
        "The name of a GGUF file contains characters that a Modelfile cannot quote.",
        "Use only letters, digits, dots and dashes.",
    ),
    "export.no_disk_space": (
        "The disk has too little free space for the export.",
        "Free some space, export to another disk, or choose a 16-bit dtype.",
    ),
    "export.no_rows_to_verify": (
        "The length limit cuts off every answer, so there is nothing to compare.",
        "Raise max_length in the recipe and train again.",
    ),
    "export.no_such_weights": (
        "The base model does not have the weights that the adapter should be merged into.",
        "Choose the other value of merge_into.",
    ),
    "export.no_system_message": (
        "The model's chat template takes no system message.",
        "Put its text into the first question instead.",
    ),
    "export.not_a_script": (
        "The name of the script does not end in .py.",
        "Choose a name such as train.py.",
    ),
    "export.quotes_in_system_message": (
        "A system message in a Modelfile cannot contain three quotation marks in a row.",
        "Rephrase the system message.",
    ),
    "export.rank_not_smaller": (
        "The new rank is not smaller than the adapter's rank.",
        "Choose a rank in the range in the message.",
    ),
    "export.rank_of_dora": (
        "The rank of a DoRA adapter cannot be reduced, because DoRA also rescales the weights.",
        "Train with a lower lora_rank instead.",
    ),
    "export.script_too_large": (
        "The run's data is too large for one script.",
        "Copy the run's folder instead and continue there with `train --resume`.",
    ),
    "export.untranslatable_template": (
        "The chat template cannot be translated to Ollama's template language.",
        "Export GGUF and run it with llama.cpp, which uses the original template.",
    ),
    "export.weight_too_large": (
        "A weight exceeds the largest number of the chosen 16-bit format.",
        "Choose bfloat16 or float32; for GGUF, f32.",
    ),
    # hub
    # runs
    # runtime
    # operations
    # cli
    # web
}
"""Code -> (cause, fix), both complete sentences."""
