"""Go itself renders our templates for Ollama: the same text as the tokenizer's own template, for every family."""

import json
import subprocess
from pathlib import Path

import pytest

from peft_space.data.tokenization.render import render_prompt
from peft_space.export.go_template import go_template
from tests.engines.engines import environment, program
from tests.export.test_ollama import TOKENIZERS, conversations, takes_system, tokenizer_for

pytestmark = pytest.mark.slow


def test_go_writes_what_the_tokenizers_write(tmp_path, record):
    go = program("go", "go")
    cases, expected = [], []
    for name in TOKENIZERS:
        tokenizer = tokenizer_for(name)
        template = go_template(tokenizer)
        for messages in conversations(takes_system(name)):
            system = "\n\n".join(
                message["content"] for message in messages if message["role"] == "system"
            )
            text = render_prompt(tokenizer, messages)
            bos = (
                tokenizer.bos_token
                if tokenizer.bos_token and text.startswith(tokenizer.bos_token)
                else ""
            )
            told = [
                {"Role": message["role"], "Content": message["content"]} for message in messages
            ]
            cases.append({"Template": template, "System": system, "Messages": told})
            expected.append(text.removeprefix(bos))
    more = {
        "GOCACHE": str(tmp_path),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod",
        "HOME": str(tmp_path),
    }
    command = [go, "run", Path(__file__).with_name("main.go")]
    done = subprocess.run(
        command,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=environment() | more,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == expected
    version = subprocess.run(
        [go, "version"], capture_output=True, text=True, env=environment() | more
    ).stdout.split()[2]
    record(
        f"Go's text/template ({version})",
        f"{len(TOKENIZERS)} chat templates, {len(cases)} conversations",
        "every text equal to the tokenizer's own",
    )
