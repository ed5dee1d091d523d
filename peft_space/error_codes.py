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
    # cli
    # web
    "web.demo_not_finished": (
        "The demo's training was paused or stopped, or it failed.",
        "Press Resume on the Train tab, or run the demo again.",
    ),
    "web.no_adapter_named": (
        "An adapter was to be imported, but none was named or uploaded.",
        "Enter the adapter's name on the Hub, or upload a .zip of it.",
    ),
    "web.no_data": (
        "The page has no data.",
        "Upload a file, choose a dataset on the Hub, or use the sample data on the Data tab.",
    ),
    "web.no_message": ("The chat message is empty.", "Type a message, then press Send."),
    "web.no_prompt": ("There is no prompt to answer.", "Type a prompt, or use test examples."),
    "web.no_run": ("No run is selected.", "Start a training, or select a run at the top."),
    "web.not_a_rank": (
        "The rank of the smaller adapter is not a whole number.",
        "Enter a whole number, or leave the field empty.",
    ),
    "web.not_a_user_token": (
        "The Hub token belongs to an organization or app, not to a user.",
        "Use a user's token, or the owner secret that you got when you started the run.",
    ),
    "web.unknown_owner": (
        "The request has no owner secret and no signed-in account, or the secret is too short.",
        "Reload the page. A program passes the owner secret that it got when it started the run.",
    ),
    "web.zip_not_uploaded": (
        "On a Space, a .zip was named but not uploaded.",
        "Upload the file, or enter the adapter's name on the Hub.",
    ),
}
"""Code -> (cause, fix), both complete sentences."""
