"""Uses of internals of TRL."""

import importlib.util
from pathlib import Path


def training_chat_template(template: str) -> str | None:
    """Return a chat template with TRL's `{% generation %}` blocks, or None if TRL does not have it.

    TRL stores each pair as chat_templates/NAME.jinja and chat_templates/NAME_training.jinja.
    Only the files are read, because importing TRL takes seconds.
    """
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        return None
    for path in sorted(Path(spec.origin).with_name("chat_templates").glob("*.jinja")):
        training = path.with_name(f"{path.stem}_training.jinja")
        if training.is_file() and path.read_text(encoding="utf-8") == template:
            return training.read_text(encoding="utf-8")
    return None
