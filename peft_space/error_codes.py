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
    "machine.folder_not_empty": (
        "The folder to create already exists and contains files.",
        "Choose another folder, or empty it.",
    ),
    # data
    "data.file_not_readable": (
        "The file does not exist, is not a file, or cannot be opened.",
        "Check the name and the permissions of the file.",
    ),
    "data.unsupported_file_type": (
        "The ending of the file name is not supported.",
        "Convert the file to JSON, JSON Lines, CSV, TSV, Parquet, .xlsx, .txt or .conll.",
    ),
    "data.wrong_file_type": (
        "The content of the file is of another type than its name says.",
        "Rename, unpack or convert the file as the message says.",
    ),
    "data.file_too_large": (
        "The file, or its uncompressed content, exceeds the size limit.",
        "Use fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
    ),
    "data.damaged_file": (
        "The file is damaged or incomplete.",
        "Download or save it again.",
    ),
    "data.empty_file": (
        "The file contains only white space.",
        "Use a file with at least one row.",
    ),
    "data.no_rows": (
        "The file is valid but contains no rows.",
        "Use a file with at least one row.",
    ),
    "data.not_text": (
        "A text file contains a zero byte.",
        "Remove it, or save the file as UTF-8 text.",
    ),
    "data.unknown_encoding": (
        "Some bytes of the file are not valid in the encoding of the rest.",
        "Correct the line that the message names, or save the file as UTF-8.",
    ),
    "data.lone_surrogate": (
        "A row contains half of a character.",
        "Save the file as UTF-8.",
    ),
    "data.invalid_json": (
        "A part of the file is not valid JSON.",
        "Correct the place that the message names.",
    ),
    "data.row_not_object": (
        "A row is a list, a text or a number.",
        "Write every row as an object with named values.",
    ),
    "data.not_rows": (
        "The file contains a single value.",
        "Write a list of objects.",
    ),
    "data.several_tables": (
        "A JSON file contains more than one list of rows.",
        "Use one file for each list.",
    ),
    "data.unequal_columns": (
        "The columns of a JSON file have different lengths.",
        "Give all columns the same number of values.",
    ),
    "data.invalid_csv": (
        "A quotation mark in a CSV file is not closed or not doubled.",
        "Correct the quotation marks in the line that the message names.",
    ),
    "data.ragged_row": (
        "A row has more or fewer cells than the header.",
        "Check the separators and quotation marks of the row.",
    ),
    "data.duplicate_column": (
        "Two columns have the same name.",
        "Rename one of them.",
    ),
    "data.too_many_columns": (
        "The data have more columns than the limit.",
        "Keep the columns that the model should see.",
    ),
    "data.binary_column": (
        "A Parquet column contains bytes, such as images.",
        "Remove the column.",
    ),
    "data.missing_tag": (
        "A line of a CoNLL file has a token without a tag.",
        "Write TOKEN, a tab and TAG on every line.",
    ),
    "data.row_too_long": (
        "A row or value is too long, often because a quotation mark is missing.",
        "Split it or remove it.",
    ),
    "data.row_too_slow": (
        "Some rows took too long to read.",
        "Check the rows that the message names for a very long value.",
    ),
    "data.invalid_hub_address": (
        "The address of a dataset on the Hub has another form.",
        "Write it as hf://datasets/OWNER/NAME@REVISION?config=CONFIG&split=SPLIT.",
    ),
    "data.hub_dataset_unavailable": (
        "A dataset on the Hub does not exist, is private or gated, or the Hub cannot be reached.",
        "Check the name and your access, or download the files and use them.",
    ),
    "data.unknown_split": (
        "The dataset has no such configuration or split.",
        "Choose one that the message lists.",
    ),
    "data.ambiguous_split": (
        "The dataset has several configurations or splits, and none is the default.",
        "Choose one in the address.",
    ),
    "data.external_files": (
        "A dataset on the Hub refers to files outside its repository.",
        "Download the files and use them.",
    ),
    "data.unknown_columns": (
        "The columns fit no known schema.",
        "Rename the columns, or choose a schema and the column of each role.",
    ),
    "data.ambiguous_columns": (
        "The columns can be used in more than one way.",
        "Choose the schema and the column of each role.",
    ),
    "data.mixed_schemas": (
        "The files have different schemas.",
        "Use one file at a time, or convert the files to one schema.",
    ),
    "data.unknown_schema": (
        "There is no schema with this name.",
        "Choose one that the message lists.",
    ),
    "data.unknown_role": (
        "The schema has no such role.",
        "Choose one that the message lists.",
    ),
    "data.unknown_column": (
        "The dataset has no column with this name.",
        "Choose one that the message lists.",
    ),
    "data.missing_column": (
        "A required role of the schema has no column.",
        "Choose a column for it.",
    ),
    "data.unknown_fix": (
        "There is no fix with this name.",
        "Choose one that the message lists.",
    ),
    "data.no_usable_rows": (
        "No row of the dataset can be used for training.",
        "Correct the problem that the message names.",
    ),
    "data.template_timeout": (
        "The model's chat template took too long or used too much memory.",
        "Choose another base model, or another chat template in the recipe.",
    ),
    "data.template_rejects_row": (
        "The model's chat template raises an error for a row.",
        "Remove the row, or choose another base model or chat template.",
    ),
    "data.template_rewrites_prompt": (
        "The model's chat template writes a prompt differently once it is answered.",
        "Choose another base model or chat template.",
    ),
    "data.template_changes_answer": (
        "The model's chat template changes the text of an answer.",
        "Choose another base model or chat template.",
    ),
    "data.template_omits_tool_calls": (
        "The model's chat template does not write tool calls.",
        "Remove the rows with tool calls, or choose another base model or chat template.",
    ),
    "data.private_use_characters": (
        "A row contains private-use characters that the app needs to escape special tokens.",
        "Remove these characters or the special tokens from the row.",
    ),
    "data.several_turns": (
        "A sequence-to-sequence model cannot learn conversations with tools or several answers.",
        "Remove these rows, or choose a causal language model.",
    ),
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
    # cli
    # web
}
"""Code -> (cause, fix), both complete sentences."""
