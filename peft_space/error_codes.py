"""Every error code, with its cause and its fix. docs/troubleshooting.md is generated from it."""

CODES: dict[str, tuple[str, str]] = {
    # machine
    "machine.disk_full": (
        "The disk is full.",
        "Free some space. Then try again, or resume the run: saved work is kept.",
    ),
    "machine.out_of_memory": (
        "The GPU or the machine ran out of memory.",
        "Choose a smaller batch size, a smaller length limit, nf4 quantization or a smaller base "
        "model.",
    ),
    "machine.folder_not_empty": (
        "The folder to create already exists and contains files.",
        "Choose another folder, or empty it.",
    ),
    "machine.disk_too_small": (
        "The disk does not have enough free space for this operation.",
        "Free some space on the disk, then repeat it.",
    ),
    # data
    # recipe
    # models
    # training
    # evaluation
    # planning
    # export
    # hub
    "hub.no_token": (
        "There is no Hub token.",
        "Sign in, or paste a token with write access. On your own machine, `hf auth "
        "login` stores one.",
    ),
    "hub.invalid_token": (
        "The text is not a Hub token: it contains characters that no token has.",
        "Copy the whole token from the Hub's settings page.",
    ),
    "hub.invalid_name": (
        "The text is not the name of a repository.",
        "Write it as OWNER/NAME.",
    ),
    "hub.offline": (
        "HF_HUB_OFFLINE is set, so the app must not use the network.",
        "Unset HF_HUB_OFFLINE and try again.",
    ),
    "hub.gated": (
        "The authors of the repository require an agreement.",
        "Accept it on the repository's page on the Hub, sign in, and try again.",
    ),
    "hub.no_revision": (
        "The repository has no such branch, tag or commit.",
        "Check the revision.",
    ),
    "hub.not_found": (
        "The repository does not exist, or the token has no access to it.",
        "Check the name and the token.",
    ),
    "hub.unauthorized": (
        "The Hub does not accept the token.",
        "Create a token on the Hub's settings page and try again.",
    ),
    "hub.payment_required": (
        "The Hub requires a payment or credit.",
        "Check the billing page of the Hub's settings.",
    ),
    "hub.forbidden": (
        "The token has no permission for this.",
        "Use a token with the permission that the message names.",
    ),
    "hub.rate_limited": (
        "The Hub received too many requests.",
        "Wait a few minutes and try again.",
    ),
    "hub.server_error": (
        "The Hub reported an internal error.",
        "Try again in a few minutes.",
    ),
    "hub.refused": (
        "The Hub rejected the request.",
        "Follow the reason that the message quotes.",
    ),
    "hub.unreachable": (
        "The Hub cannot be reached.",
        "Check the network and try again.",
    ),
    "hub.not_a_backup": (
        "The dataset does not contain a stored run that can be opened.",
        "Check the name, or save the run again from where it was trained.",
    ),
    "hub.repository_in_use": (
        "The repository exists and contains something else.",
        "Choose another name.",
    ),
    "hub.repository_public": (
        "The dataset is public, and a run contains its data.",
        "Make the dataset private on the Hub, or choose another name.",
    ),
    "hub.invalid_duration": (
        "The text is not a duration.",
        "Write it like 90m or 2h.",
    ),
    "hub.unknown_hardware": (
        "Hugging Face Jobs do not offer this hardware now.",
        "Choose one of the names in the message.",
    ),
    "hub.other_device": (
        "A CPU cannot resume the checkpoints of a GPU, nor a GPU those of a CPU.",
        "Choose hardware of the same kind, or train the recipe again.",
    ),
    "hub.plan_missing": (
        "The run has checkpoints but no plan.json.",
        "Restore plan.json, or train the recipe again.",
    ),
    "hub.local_base_model": (
        "The base model is a folder on this machine, which a job cannot read.",
        "Push the base model to the Hub and use its id.",
    ),
    "hub.run_not_available": (
        "The run is queued, running, finished or already on a job.",
        "Wait for it, or stop it first.",
    ),
    "hub.no_job": (
        "No job trains this run.",
        "Submit the run to a job first.",
    ),
    "hub.invalid_job_events": (
        "The job's dataset contains events that no training writes.",
        "Submit the run again, or resume it on this machine.",
    ),
    "hub.job_timeout": (
        "The job reached its time limit.",
        "Submit the run again with more time, or resume it on this machine.",
    ),
    "hub.job_deleted": (
        "The Hub has deleted the job.",
        "Submit the run again, or resume it on this machine.",
    ),
    "hub.job_failed": (
        "The job ended with an error.",
        "Read job.log in the run's folder. Then submit the run again, or resume it on "
        "this machine.",
    ),
    "hub.not_a_clone": (
        "The app does not run from a git clone, so it cannot tell which files to upload.",
        "Clone the repository and deploy from there.",
    ),
    "hub.tracked_file_missing": (
        "A file that git tracks is missing, or is a link.",
        "Commit the current state and deploy again.",
    ),
    "hub.secret_in_repository": (
        "A tracked file seems to contain a key or a token.",
        "Remove it from the repository. Revoke the key if it was pushed.",
    ),
    "hub.smoke_test_failed": (
        "A page did not work as expected.",
        "Read the log of the page.",
    ),
    # runs
    "runs.not_a_run": (
        "The folder is not a run: it has no run.json.",
        "Give the folder that `train --out` created.",
    ),
    "runs.other_format": (
        "Another version of the app wrote the run, in another format.",
        "Open it with that version, or train its recipe and data again.",
    ),
    "runs.name_length": (
        "The name of a run is empty or too long.",
        "Choose a name with 1 to 100 characters.",
    ),
    "runs.no_adapter": (
        "The run does not have an adapter yet.",
        "Finish the training first.",
    ),
    "runs.locked": (
        "Another process is working on the run.",
        "Wait for it, or stop it first.",
    ),
    "runs.on_job": (
        "A job on Hugging Face trains the run.",
        "Wait for the job, or cancel it. Then resume the run here.",
    ),
    "runs.unknown": (
        "There is no run with this id, or it belongs to somebody else.",
        "Choose one from the list of your runs.",
    ),
    "runs.storage_quota": (
        "Your runs use all the storage that a visitor may use.",
        "Download what you need, then delete a run.",
    ),
    "runs.too_many_open": (
        "You have reached the limit of queued and running trainings.",
        "Wait for one to finish, or stop it.",
    ),
    "runs.archive_damaged": (
        "A file of the stored run is missing or has changed.",
        "Try again, or save the run again from where it was trained.",
    ),
    "runs.archive_foreign_file": (
        "The stored run contains a file that no run has.",
        "Do not use it. Save the run again from where it was trained.",
    ),
    "runs.archive_too_large": (
        "The stored run has more or larger files than the limits allow.",
        "Raise PEFT_SPACE_MAX_RUN_MB if you trust its source.",
    ),
    # runtime
    "runtime.already_started": (
        "The run is already queued or finished.",
        "Wait for it, or start another run.",
    ),
    "runtime.one_at_a_time": (
        "Another run of yours is being trained, and a page trains one at a time.",
        "Wait for it, or pause it first.",
    ),
    "runtime.shorter_rows_do_not_help": (
        "The run did not run out of memory, or its rows cannot be shorter.",
        "Resume it without halving its length limit.",
    ),
    "runtime.slice_too_short": (
        "A ZeroGPU slice is too short for this.",
        "Choose longer slices, or request less at once.",
    ),
    "runtime.slice_failed": (
        "A ZeroGPU slice ended with an unexpected error.",
        "Try again. If it fails again, read the log of the Space.",
    ),
    "runtime.gpu_illegal_duration": (
        "ZeroGPU does not grant a GPU for that long.",
        "Choose shorter slices.",
    ),
    "runtime.gpu_quota_exceeded": (
        "Your ZeroGPU quota is used up.",
        "Sign in, or wait until you have more.",
    ),
    "runtime.no_gpu_available": (
        "No GPU was available within a minute.",
        "Try again later.",
    ),
    "runtime.sign_in_expired": (
        "Your sign-in on the page has expired.",
        "Reload the page and try again.",
    ),
    "runtime.gpu_taken_away": (
        "ZeroGPU took the GPU away before the end of the slice.",
        "Resume. Checkpoints and completed batches are saved.",
    ),
    "runtime.visitor_left": (
        "The page was closed while it waited for a GPU.",
        "Try again. It continues from what was saved.",
    ),
    # operations
    # cli
    # web
}
"""Code -> (cause, fix), both complete sentences."""
