"""Every error code, with its cause and its fix. docs/troubleshooting.md is generated from it."""

CODES: dict[str, tuple[str, str]] = {
    # machine
    "machine.disk_full": (
        "The disk is full.",
        "Free some space. Then try again, or resume the run: saved work is kept.",
    ),
    "machine.disk_too_small": (
        "The disk does not have enough free space for this operation.",
        "Free some space on the disk, then repeat it.",
    ),
    "machine.folder_not_empty": (
        "The folder to create already exists and contains files.",
        "Choose another folder, or empty it.",
    ),
    "machine.out_of_memory": (
        "The GPU or the machine ran out of memory.",
        "Choose a smaller batch size, a smaller length limit, nf4 quantization or a smaller "
        "base model.",
    ),
    # data
    "data.ambiguous_columns": (
        "The columns can be used in more than one way.",
        "Choose the schema and the column of each role.",
    ),
    "data.ambiguous_split": (
        "The dataset has several configurations or splits, and none is the default.",
        "Choose one in the address.",
    ),
    "data.binary_column": (
        "A Parquet column contains bytes that are neither text nor pictures.",
        "Remove the column. A column of pictures is named image, or has the Image feature.",
    ),
    "data.damaged_file": (
        "The file is damaged or incomplete.",
        "Download or save it again.",
    ),
    "data.duplicate_column": (
        "Two columns have the same name.",
        "Rename one of them.",
    ),
    "data.empty_file": (
        "The file contains only white space.",
        "Use a file with at least one row.",
    ),
    "data.external_files": (
        "A dataset on the Hub refers to files outside its repository.",
        "Download the files and use them.",
    ),
    "data.file_not_readable": (
        "The file does not exist, is not a file, or cannot be opened.",
        "Check the name and the permissions of the file.",
    ),
    "data.file_too_large": (
        "The file, or its uncompressed content, exceeds the size limit.",
        "Use fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
    ),
    "data.hub_dataset_unavailable": (
        "A dataset on the Hub does not exist, is private or gated, or the Hub cannot be reached.",
        "Check the name and your access, or download the files and use them.",
    ),
    "data.invalid_assistant": (
        "The assistant in a column mapping is not a name, or the schema has no messages.",
        "Give the name of a speaker as it is in the messages, with the schema `messages`.",
    ),
    "data.invalid_csv": (
        "A quotation mark in a CSV file is not closed or not doubled.",
        "Correct the quotation marks in the line that the message names.",
    ),
    "data.invalid_hub_address": (
        "The address of a dataset on the Hub has another form.",
        "Write it as hf://datasets/OWNER/NAME@REVISION?config=CONFIG&split=SPLIT.",
    ),
    "data.invalid_json": (
        "A part of the file is not valid JSON.",
        "Correct the place that the message names.",
    ),
    "data.lone_surrogate": (
        "A row contains half of a character.",
        "Save the file as UTF-8.",
    ),
    "data.missing_column": (
        "A required role of the schema has no column.",
        "Choose a column for it.",
    ),
    "data.missing_tag": (
        "A line of a CoNLL file has a token without a tag.",
        "Write TOKEN, a tab and TAG on every line.",
    ),
    "data.wrong_file_weights": (
        "The number of `file_weights` is not that of the files, or no row is left to train.",
        "Give one number for each file in their order, or leave the field empty.",
    ),
    "data.mixed_schemas": (
        "The files have different schemas.",
        "Use one file at a time, or convert the files to one schema.",
    ),
    "data.multi_label": (
        "A row has several labels, in a list or in a column of 0 and 1 for each label.",
        "Keep one label for each row, or choose another schema.",
    ),
    "data.no_rows": (
        "The file is valid but contains no rows.",
        "Use a file with at least one row.",
    ),
    "data.no_usable_rows": (
        "No row of the dataset can be used for training.",
        "Correct the problem that the message names.",
    ),
    "data.not_rows": (
        "The file contains a single value.",
        "Write a list of objects.",
    ),
    "data.not_text": (
        "A text file contains a zero byte.",
        "Remove it, or save the file as UTF-8 text.",
    ),
    "data.part_of_target": (
        "A sequence-to-sequence model would have to learn a part of an answer.",
        "Remove train_detail, set reasoning to train or leave_out, or use a causal model.",
    ),
    "data.picture_too_long": (
        "The tokens of a row's pictures exceed the length limit.",
        "Raise max_length in the recipe, or use fewer pictures in a row.",
    ),
    "data.pictures_without_table": (
        "Pictures come without a table that says what they show.",
        "Add a .csv file with the columns file_name and text, or a folder for each label.",
    ),
    "data.private_use_characters": (
        "A row contains private-use characters that the app needs to escape special tokens.",
        "Remove these characters or the special tokens from the row.",
    ),
    "data.ragged_row": (
        "A row has more or fewer cells than the header.",
        "Check the separators and quotation marks of the row.",
    ),
    "data.row_not_object": (
        "A row is a list, a text or a number.",
        "Write every row as an object with named values.",
    ),
    "data.row_too_long": (
        "A row or value is too long, often because a quotation mark is missing.",
        "Split it or remove it.",
    ),
    "data.row_too_slow": (
        "Some rows took too long to read.",
        "Check the rows that the message names for a very long value.",
    ),
    "data.several_tables": (
        "A JSON file contains more than one list of rows, or an archive more than one table.",
        "Use one file for each table, or write #NAME after the name of the archive.",
    ),
    "data.several_turns": (
        "A sequence-to-sequence model cannot learn conversations with tools or several answers.",
        "Remove these rows, or choose a causal language model.",
    ),
    "data.template_changes_answer": (
        "The model's chat template changes the text of an answer.",
        "Choose another base model or chat template.",
    ),
    "data.template_omits_tool_calls": (
        "The model's chat template does not write tool calls.",
        "Remove the rows with tool calls, or choose another base model or chat template.",
    ),
    "data.template_omits_pictures": (
        "The chat template writes no place for the pictures of a row.",
        "Use the model's own chat template, or another base model.",
    ),
    "data.template_rejects_row": (
        "The model's chat template raises an error for a row.",
        "Remove the row, or choose another base model or chat template.",
    ),
    "data.template_rewrites_prompt": (
        "The model's chat template writes a prompt differently once it is answered.",
        "Choose another base model or chat template.",
    ),
    "data.template_timeout": (
        "The model's chat template took too long or used too much memory.",
        "Choose another base model, or another chat template in the recipe.",
    ),
    "data.shortened_list": (
        "NumPy left out the elements in the middle of a long list.",
        "Save the rows again as JSON Lines or Parquet.",
    ),
    "data.too_many_columns": (
        "The dataset has more columns than the limit.",
        "Keep the columns that the model should see.",
    ),
    "data.too_many_pictures": (
        "An archive contains too many pictures.",
        "Use fewer pictures.",
    ),
    "data.unequal_columns": (
        "The columns of a JSON file have different lengths.",
        "Give all columns the same number of values.",
    ),
    "data.unknown_column": (
        "The dataset has no column with this name.",
        "Choose one that the message lists.",
    ),
    "data.unknown_columns": (
        "The columns fit no known schema.",
        "Rename the columns, or choose a schema and the column of each role.",
    ),
    "data.unknown_encoding": (
        "Some bytes of the file are not valid in the encoding of the rest.",
        "Correct the line that the message names, or save the file as UTF-8.",
    ),
    "data.unknown_fix": (
        "There is no fix with this name.",
        "Choose one that the message lists.",
    ),
    "data.unknown_part": (
        "The sheet of a file, or the file or split of an archive, does not exist.",
        "Choose one that the message lists, or remove #NAME after the name of the file.",
    ),
    "data.unknown_role": (
        "The schema has no such role.",
        "Choose one that the message lists.",
    ),
    "data.unknown_schema": (
        "There is no schema with this name.",
        "Choose one that the message lists.",
    ),
    "data.unknown_split": (
        "The dataset has no such configuration or split.",
        "Choose one that the message lists.",
    ),
    "data.unsupported_file_type": (
        "Neither the content of the file nor the ending of its name is supported.",
        "Convert the file to JSON, JSON Lines, CSV, TSV, Parquet, Arrow, .xlsx, .txt or .conll.",
    ),
    "data.wrong_file_type": (
        "The content of the file does not match the type in its name.",
        "Rename, unpack or convert the file as the message says.",
    ),
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
    "models.adapter_damaged": (
        "The adapter's config or weights are missing or cannot be read.",
        "Restore the adapter of the run, or train again.",
    ),
    "models.adapter_layers_lost": (
        "PEFT does not load some layers of the adapter, because it translates their names.",
        "Train a new adapter without these layers in target_modules.",
    ),
    "models.adapter_mismatch": (
        "The adapter was trained on another base model, or its tensors do not fit this one.",
        "Restore the adapter of the run, or train again.",
    ),
    "models.base_changed": (
        "The files of the base model changed after the run was trained.",
        "Restore the files, or train again.",
    ),
    "models.layer_left_out": (
        "The recipe names a layer of the model that cannot get an adapter.",
        "Choose one of the names in the message.",
    ),
    "models.no_checkpointing": (
        "The recipe wants gradient checkpointing, which this architecture does not have.",
        "Set gradient_checkpointing to off or automatic. If memory is short, lower batch_size.",
    ),
    "models.dora_impossible": (
        "DoRA cannot be used on this base model.",
        "Choose lora as the method, or other target modules.",
    ),
    "models.known_token": (
        "A word in `new_tokens` is a token of the base model already.",
        "Remove it from new_tokens.",
    ),
    "models.new_tokens_impossible": (
        "The base model or the method cannot learn new tokens.",
        "Leave new_tokens empty, or choose lora as the method.",
    ),
    "models.experts_impossible": (
        "The recipe adapts experts, which this model or the other settings do not allow.",
        "Change what the message names, or set adapt_experts to false.",
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
    "models.needs_other_inputs": (
        "The model wants more than text, or texts of another form.",
        "Choose another base model.",
    ),
    "models.no_layers": (
        "The model has no layer that can get an adapter, or the recipe chooses none.",
        "Choose other target modules, or another base model.",
    ),
    "models.no_projector": (
        "The recipe trains a projector, and the base model has none, or the rows no pictures.",
        "Set train_projector to false.",
    ),
    "models.no_tokenizer": (
        "The base model has no tokenizer.",
        "Save the tokenizer in the same folder, or choose another base model.",
    ),
    "models.reads_no_pictures": (
        "The rows have pictures, and the base model reads only text.",
        "Choose a base model that reads pictures.",
    ),
    "models.no_picture_processor": (
        "The base model's files lack the processor that prepares pictures, or it cannot be used.",
        "Choose the model as its authors published it.",
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
    "models.no_thinking_switch": (
        "The chat template has no variable that turns reasoning on and off.",
        "Set `thinking` to `own`, or choose another base model.",
    ),
    "models.language_missing": (
        "The tokenizer marks texts with their language, and the recipe names none.",
        "Set `src_lang` and `tgt_lang` in the recipe.",
    ),
    "models.no_languages": (
        "The recipe names languages, and the tokenizer does not mark any.",
        "Leave `src_lang` and `tgt_lang` empty.",
    ),
    "models.unknown_language": (
        "The tokenizer does not have the language that the recipe names.",
        "Set `src_lang` and `tgt_lang` to names that the message lists.",
    ),
    "models.tokenizer_unsupported": (
        "The tokenizer has no fast version, or no end-of-text token.",
        "Choose another base model.",
    ),
    "models.unknown_module": (
        "The recipe names a layer or block that is not in the model.",
        "Choose one of the names in the message.",
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
    "training.adapters_not_joined": (
        "The adapters cannot be joined: one is not a plain LoRA, or their number, weights or rank "
        "do not fit.",
        "Choose LoRA adapters of one base without other trained parts, with a weight for each.",
    ),
    "training.adapter_not_found": (
        "There is no such adapter, or the Hub cannot be reached.",
        "Give a Hub id like OWNER/NAME, a .zip file, or a folder on your own machine.",
    ),
    "training.adapter_pickled": (
        "The adapter's weights are in a pickle file, `adapter_model.bin`, which can run code.",
        "If you trust its author, load it in PEFT and call `save_pretrained`.",
    ),
    "training.adapter_too_large": (
        "A file in the .zip unpacks to far more than an adapter needs.",
        "Pack the adapter's folder again.",
    ),
    "training.adapter_unsupported": (
        "The adapter is not a LoRA and cannot be converted, or it uses a setting that cannot be "
        "imported.",
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
    "training.regression": (
        "The labels are many different numbers, which would be a regression.",
        "Round the numbers to a few classes, or choose another label column.",
    ),
    "training.all_weights_zero": (
        "The rows have their own weights, and no answer has weight 1.",
        "Set weight 1 for the answers to learn, or `train_on` to `all_assistant`.",
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
        "KTO compares the rows of a step with each other, and the step has one row.",
        "Set `batch_size` or `gradient_accumulation_steps` to 2 or more.",
    ),
    "training.labels_differ": (
        "The recipe lists other labels than the rows have, or one of them twice.",
        "List every label once, in the order of the outputs, or leave `labels` empty.",
    ),
    "training.one_sided_ratings": (
        "All answers of the rows for KTO have the same rating.",
        "Add answers with the other rating, or train the good ones as answers.",
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
        "Training needs more memory than the machine has, even after the app reduced its use.",
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
    "training.unavailable_here": (
        "The recipe asks for an optimizer, kernels or compilation that this machine does not have.",
        "Set the named field to its default, or train on a machine with a GPU.",
    ),
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
    "evaluation.memory_in_use": (
        "A training uses the machine's memory, and the rest is not enough to load a model.",
        "Pause the training, or try again when it has ended.",
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
    "evaluation.no_vote": (
        "The run has no blind vote yet.",
        "Create pairs of answers first.",
    ),
    "evaluation.too_many_prompts": (
        "The file has too many prompts.",
        "Remove some, or split the file.",
    ),
    "evaluation.unusable_picture": (
        "A picture of a prompt cannot be opened, or the prompt has no place for it.",
        "Use a PNG or JPEG file, and as many pictures as places.",
    ),
    "evaluation.unknown_pair": (
        "There is no such pair of answers to vote on.",
        "Create new pairs first.",
    ),
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
    "export.gptqmodel_missing": (
        "Models in GPTQ and AWQ are written by gptqmodel, which is not installed.",
        "Run `pip install --no-deps -r requirements-gptq.txt`, or choose `bfloat16`.",
    ),
    "export.llama_cpp_missing": (
        "GGUF in 4 or 5 bits is written by llama.cpp's library, which is not installed.",
        "Run `pip install llama-cpp-python` or `make engines`, or name the folder of an "
        "environment that has it in `PEFT_SPACE_LLAMA_CPP`. Or export as `q8_0`.",
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
    "export.not_quantized": (
        "llama.cpp or gptqmodel cannot quantize the model.",
        "Export GGUF as `q8_0`, and a merged model as `bfloat16`.",
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
    "export.rank_of_experts": (
        "The rank of an adapter of experts cannot be measured or reduced.",
        "Train with a lower rank.",
    ),
    "export.rank_of_dora": (
        "The rank of a DoRA adapter cannot be reduced, because DoRA also rescales the weights.",
        "Train with a lower lora_rank instead.",
    ),
    "export.script_too_large": (
        "The run's data is too large for one script.",
        "Copy the run's folder instead and continue there with `peft-space resume`.",
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
    "hub.forbidden": (
        "The token has no permission for this.",
        "Use a token with the permission that the message names.",
    ),
    "hub.gated": (
        "The authors of the repository require an agreement.",
        "Accept it on the repository's page on the Hub, sign in, and try again.",
    ),
    "hub.invalid_duration": (
        "The text is not a duration.",
        "Write it like 90m or 2h.",
    ),
    "hub.invalid_job_events": (
        "The job's dataset contains events that no training writes.",
        "Submit the run again, or resume it on this machine.",
    ),
    "hub.invalid_name": (
        "The text is not the name of a repository.",
        "Write it as OWNER/NAME.",
    ),
    "hub.invalid_token": (
        "The text is not a Hub token: it contains characters that no token has.",
        "Copy the whole token from the Hub's settings page.",
    ),
    "hub.job_deleted": (
        "The Hub has deleted the job.",
        "Submit the run again, or resume it on this machine.",
    ),
    "hub.job_failed": (
        "The job ended with an error.",
        "Read job.log in the run's folder. Then submit the run again, or resume it on this "
        "machine.",
    ),
    "hub.job_timeout": (
        "The job reached its time limit.",
        "Submit the run again with more time, or resume it on this machine.",
    ),
    "hub.local_base_model": (
        "The base model is a folder on this machine, which a job cannot read.",
        "Push the base model to the Hub and use its id.",
    ),
    "hub.no_job": (
        "No job trains this run.",
        "Submit the run to a job first.",
    ),
    "hub.no_revision": (
        "The repository has no such branch, tag or commit.",
        "Check the revision.",
    ),
    "hub.no_token": (
        "There is no Hub token.",
        "Sign in, or paste a token with write access. On your own machine, `hf auth login` "
        "stores one.",
    ),
    "hub.not_a_backup": (
        "The dataset does not contain a stored run that can be opened.",
        "Check the name, or back up the run again where you trained it.",
    ),
    "hub.not_a_clone": (
        "The app does not run from a git clone, so it cannot tell which files to upload.",
        "Clone the repository and deploy from there.",
    ),
    "hub.not_found": (
        "The repository does not exist, or the token has no access to it.",
        "Check the name and the token.",
    ),
    "hub.offline": (
        "HF_HUB_OFFLINE is set, so the app must not use the network.",
        "Unset HF_HUB_OFFLINE and try again.",
    ),
    "hub.other_device": (
        "A CPU cannot resume a GPU's checkpoints, and a GPU cannot resume a CPU's.",
        "Choose hardware of the same kind, or train the recipe again.",
    ),
    "hub.payment_required": (
        "The Hub requires a payment or credit.",
        "Check the billing page of the Hub's settings.",
    ),
    "hub.plan_missing": (
        "The run has checkpoints but no plan.json.",
        "Restore plan.json, or train the recipe again.",
    ),
    "hub.rate_limited": (
        "The Hub received too many requests.",
        "Wait a few minutes and try again.",
    ),
    "hub.refused": (
        "The Hub rejected the request.",
        "Follow the reason that the message quotes.",
    ),
    "hub.repository_in_use": (
        "The repository exists and contains something else.",
        "Choose another name.",
    ),
    "hub.repository_public": (
        "The dataset is public, and a run contains its data.",
        "Make the dataset private on the Hub, or choose another name.",
    ),
    "hub.run_not_available": (
        "The run is queued, running, finished or already on a job.",
        "Wait for it, or stop it first.",
    ),
    "hub.secret_in_repository": (
        "A tracked file seems to contain a key or a token.",
        "Remove it from the repository. Revoke the key if it was pushed.",
    ),
    "hub.server_error": (
        "The Hub reported an internal error.",
        "Try again in a few minutes.",
    ),
    "hub.smoke_test_failed": (
        "A page did not behave as expected.",
        "Read the log of the page.",
    ),
    "hub.tracked_file_missing": (
        "A file that git tracks is missing, or is a link.",
        "Commit the current state and deploy again.",
    ),
    "hub.unauthorized": (
        "The Hub does not accept the token.",
        "Create a token on the Hub's settings page and try again.",
    ),
    "hub.unknown_hardware": (
        "Hugging Face Jobs do not offer this hardware now.",
        "Choose one of the names in the message.",
    ),
    "hub.unreachable": (
        "The Hub cannot be reached.",
        "Check the network and try again.",
    ),
    # runs
    "runs.archive_damaged": (
        "A file of the stored run is missing or has changed.",
        "Try again, or save the run again where you trained it.",
    ),
    "runs.archive_foreign_file": (
        "The stored run contains a file that no run has.",
        "Do not use it. Save the run again where you trained it.",
    ),
    "runs.archive_too_large": (
        "The stored run has more or larger files than the limits allow.",
        "Raise PEFT_SPACE_MAX_RUN_MB if you trust its source.",
    ),
    "runs.locked": (
        "Another process is working on the run.",
        "Wait for it, or stop it first.",
    ),
    "runs.name_length": (
        "The name of a run is empty or too long.",
        "Choose a name with 1 to 100 characters.",
    ),
    "runs.no_adapter": (
        "The run does not have an adapter yet.",
        "Finish the training first.",
    ),
    "runs.not_a_run": (
        "The folder is not a run: it has no run.json.",
        "Give the folder that `train --out` created.",
    ),
    "runs.on_job": (
        "A job on Hugging Face trains the run.",
        "Wait for the job, or cancel it. Then resume the run here.",
    ),
    "runs.other_format": (
        "Another version of the app wrote the run, in another format.",
        "Open it with that version, or train its recipe and data again.",
    ),
    "runs.storage_quota": (
        "Your runs use all the storage that a visitor may use.",
        "Download the files that you need, then delete a run.",
    ),
    "runs.too_many_open": (
        "You have reached the limit of queued and running trainings.",
        "Wait for one to finish, or stop it.",
    ),
    "runs.unknown": (
        "There is no run with this id, or it belongs to somebody else.",
        "Choose one from the list of your runs.",
    ),
    # runtime
    "runtime.already_started": (
        "The run is already queued or finished.",
        "Wait for it, or start another run.",
    ),
    "runtime.gpu_illegal_duration": (
        "ZeroGPU does not grant a GPU for that long.",
        "Choose shorter slices.",
    ),
    "runtime.gpu_quota_exceeded": (
        "Your ZeroGPU quota is used up.",
        "Sign in, or wait until you have more.",
    ),
    "runtime.gpu_taken_away": (
        "ZeroGPU took the GPU away before the end of the slice.",
        "Resume. Checkpoints and completed batches are saved.",
    ),
    "runtime.no_gpu_available": (
        "No GPU was available within a minute.",
        "Try again later.",
    ),
    "runtime.one_at_a_time": (
        "Another of your runs is training, and a page trains one at a time.",
        "Wait for it, or pause it first.",
    ),
    "runtime.shorter_rows_do_not_help": (
        "The run did not run out of memory, or the app cannot shorten its rows.",
        "Resume it without halving its length limit.",
    ),
    "runtime.sign_in_expired": (
        "Your sign-in on the page has expired.",
        "Reload the page and try again.",
    ),
    "runtime.slice_failed": (
        "A ZeroGPU slice ended with an unexpected error.",
        "Try again. If it fails again, read the log of the Space.",
    ),
    "runtime.slice_too_short": (
        "A ZeroGPU slice is too short for this.",
        "Choose longer slices, or request less at once.",
    ),
    "runtime.visitor_left": (
        "The page was closed while it waited for a GPU.",
        "Try again. The app continues from the saved work.",
    ),
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
    "web.demo_not_finished": (
        "The demo's training was paused or stopped, or it failed.",
        "Press Resume on the Train tab, or run the demo again.",
    ),
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
    "web.no_adapter_named": (
        "You asked to import an adapter, but did not name or upload one.",
        "Enter the adapter's name on the Hub, or upload a .zip of it.",
    ),
    "web.no_data": (
        "The page has no data.",
        "Upload a file, choose a dataset on the Hub, or pick an example on the Data tab.",
    ),
    "web.no_model": (
        "No base model is chosen for the data.",
        "Choose a base model on the Recipe tab.",
    ),
    "web.grid_too_large": (
        "A grid of recipes has too many trainings.",
        "Remove ranks or learning rates.",
    ),
    "web.not_numbers": (
        "The ranks or learning rates of a grid are not numbers.",
        "Write numbers with commas between them, such as 8, 16, 32.",
    ),
    "web.no_message": (
        "The chat message is empty.",
        "Type a message, then press Send.",
    ),
    "web.no_prompt": (
        "There is no prompt to answer.",
        "Type a prompt, or use test examples.",
    ),
    "web.no_run": (
        "No run is selected.",
        "Start a training, or select a run at the top.",
    ),
    "web.not_a_rank": (
        "The rank of the smaller adapter is not a whole number.",
        "Enter a whole number, or leave the field empty.",
    ),
    "web.not_a_user_token": (
        "The Hub token belongs to an organization or app, not to a user.",
        "Use a user's token, or the owner secret that you got when you started the run.",
    ),
    "web.nothing_to_resume": (
        "The run is queued, training or finished.",
        "Call /status to see its progress.",
    ),
    "web.text_too_large": (
        "An uploaded text exceeds the size limit of data files.",
        "Upload less text, or raise PEFT_SPACE_MAX_FILE_MB on your own machine.",
    ),
    "web.unknown_owner": (
        "The request has no owner secret and no signed-in account, or the secret is too short.",
        "Reload the page. A program passes the owner secret that it got when it started the run.",
    ),
    "web.zip_not_uploaded": (
        "On a Space, the request names a .zip file that you did not upload.",
        "Upload the file, or enter the adapter's name on the Hub.",
    ),
}
"""Code -> (cause, fix), both complete sentences."""
