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
    # hub
    # runs
    # runtime
    # operations
    "operations.invalid_argument": (
        "A setting is unknown, or its value is not allowed.",
        "Correct the setting. docs/api.md and `peft-space COMMAND --help` list the allowed values.",
    ),
    "operations.model_without_task": (
        "The base model's architecture supports none of the tasks of this app.",
        "Choose another base model.",
    ),
    "operations.no_conversation": (
        "Earlier turns were sent to a model or adapter that answers single texts.",
        "Ask without a history.",
    ),
    "operations.no_vote_on_labels": (
        "A blind vote was started on a classification model.",
        "Evaluate the run instead: a label is right or wrong.",
    ),
    "operations.unfair_comparison": (
        "With the adapter switched off, the model did not answer exactly as the base model.",
        "Read the message for the cause. Votes need a fair comparison.",
    ),
    # cli
    "cli.ambiguous_columns": (
        "The columns of the file can be read in several ways.",
        "Run `check` and pass one of the mappings it prints with --column-mapping.",
    ),
    "cli.invalid_argument": (
        "The value of a flag has the wrong type or range, or is not the JSON that it should be.",
        "Run the command with --help. Write lists like 2,8,32, and JSON in single quotes.",
    ),
    "cli.missing_prompt": (
        "The command `compare` has no prompt.",
        "Pass --prompt TEXT, or --prompts FILE.",
    ),
    "cli.unreadable_file": (
        "A text file given on the command line cannot be read.",
        "Check the path, and that the file is UTF-8 text.",
    ),
    # web
    "web.file_not_uploaded": (
        "A program passed a path that it did not upload.",
        "Upload the file with handle_file of gradio_client, or its text with /upload_text.",
    ),
    "web.invalid_argument": (
        "An argument of an endpoint has the wrong type or value.",
        "Compare the call with the table of endpoints in docs/api.md.",
    ),
    "web.invalid_file_name": (
        "The name of an uploaded text is not allowed.",
        "Use letters and digits, and end it in .jsonl, .json, .csv, .tsv, .txt or .conll.",
    ),
    "web.nothing_to_resume": (
        "The run is queued, training or finished.",
        "Call /status to see how far it is.",
    ),
    "web.text_too_large": (
        "An uploaded text exceeds the size limit of data files.",
        "Upload less text, or raise PEFT_SPACE_MAX_FILE_MB on your own machine.",
    ),
}
"""Code -> (cause, fix), both complete sentences."""
