"""TRL stores chat templates in pairs, one of them with generation blocks."""

from pathlib import Path

import pytest
import trl

from peft_space.compat.trl import training_chat_template

FOLDER = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3", "gemma", "phi3"])
def test_trl_marks_the_answers_of_a_known_chat_template(name):
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    marked = training_chat_template(template)
    assert marked == (FOLDER / f"{name}_training.jinja").read_text(encoding="utf-8")
    assert "generation" in marked
    assert "endgeneration" in marked


def test_an_unknown_chat_template_has_no_marked_form():
    assert training_chat_template("{{ messages }}") is None
