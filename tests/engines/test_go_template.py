"""Go itself renders the templates for Ollama to the text of the chat template."""

import json
import subprocess
from pathlib import Path

import pytest

from peft_space.data.tokenization.render import render_prompt
from peft_space.export.ollama import go_template
from tests.engines.engines import environment, program
from tests.fixtures.go_template import (
    TOKENIZERS,
    conversations,
    ollama_data,
    takes_system,
    tokenizer_for,
)

pytestmark = pytest.mark.slow


def test_go_writes_what_the_chat_templates_write(tmp_path, record):
    go = program("go", "go")
    cases, expected = [], []
    for name in TOKENIZERS:
        tokenizer = tokenizer_for(name)
        template = go_template(tokenizer)
        for messages in conversations(takes_system(name)):
            cases.append({"Template": template, **ollama_data(messages)})
            text = render_prompt(tokenizer, messages)
            expected.append(text.removeprefix(tokenizer.bos_token or ""))
    settings = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
    folders = {"GOCACHE": str(tmp_path), "HOME": str(tmp_path)}
    options = {"capture_output": True, "text": True, "env": environment() | settings | folders}
    command = [go, "run", Path(__file__).with_name("main.go")]
    done = subprocess.run(command, input=json.dumps(cases), timeout=600, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == expected
    version = subprocess.run([go, "version"], **options).stdout.split()[2]
    record(
        f"Go's text/template ({version})",
        f"{len(TOKENIZERS)} chat templates, {len(cases)} conversations",
        "every text equals that of the chat template",
    )
