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
