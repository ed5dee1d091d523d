"""Tokens that enter the app anywhere are stored and shown nowhere.

The tests search files, logs, tracebacks, messages, model cards, and the environments and command
lines of child processes.
"""

import base64
import functools
import itertools
import json
import logging
import os
import secrets
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import psutil
import pytest
from gradio_client import Client, handle_file
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peft_space.data.dataset import load_dataset
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError, user_message
from peft_space.export.model_card import write_card
from peft_space.recipe import Recipe
from peft_space.redaction import has_secret, redact, redact_logs
from peft_space.runs import events
from peft_space.runs.plan import write_plan
from peft_space.runs.run import Run
from tests.fixtures.app_process import App
from tests.fixtures.fake_hub import User
from tests.fixtures.plans import PLAN
from tests.fixtures.waiting import wait_for

ROWS = [{"prompt": "a", "completion": "b"}] * 4
WRITES = ("whoami", "create", "preupload", "commit", "lfs", "storage")
STATUSES = (401, 403, 404, 409, 429, 500, 503)


def new_token():
    return f"hf_{secrets.token_hex(17)}"


def forms(token):
    """Each way to write a token."""
    body = token.removeprefix("hf_").encode()
    yield from (
        body,
        body.hex().encode(),
        body[::-1],
        body.decode().encode("utf-16-le"),
        "".join(f"%{byte:02x}" for byte in body).encode(),
    )
    for shift in range(3):  # at any offset in a text
        yield base64.b64encode(b"\0" * shift + body)[4:-4]
    yield urllib.parse.quote(token, safe="").encode()[4:]


def test_the_scan_finds_every_form_of_a_token(tmp_path):
    token = new_token()
    encoded = base64.b64encode(f"ab{token}".encode()).decode()
    for text in (token, f"x{token}y", encoded, token[::-1], token.encode().hex()):
        (tmp_path / "file").write_text(text)
        assert found_in_files([tmp_path / "file"], [token])


def found_in_files(roots, tokens):
    """Return the files that contain one of the tokens, in their name or their content."""
    patterns = [form for token in tokens for form in forms(token)]
    paths = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))]
    matches = []
    for path in filter(Path.is_file, paths):
        content = path.read_bytes() + b"\0" + str(path).encode()
        if any(form in content for form in patterns):
            matches.append(path)
    return matches


def found_in_processes(tokens, but=()):
    """Return the descendants of this process whose environment or title has one of the tokens."""
    patterns = [form for token in tokens for form in forms(token)]
    matches = []
    for process in psutil.Process().children(recursive=True):
        for name in ("environ", "cmdline"):
            try:
                content = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:
                continue
            if process.pid not in but and any(form in content for form in patterns):
                matches.append((process.pid, name))
    return matches


class Worker:
    """A worker process of the page. Its output and the tokens that it gets are recorded."""

    def __init__(self, environment, folder):
        self.folder, self.output, self.tokens = folder, [], []
        own = {
            "HF_HOME": str(folder / "hf"),
            "PEFT_SPACE_HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir()
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": open(folder / "stderr", "wb"),  # noqa: SIM115
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peft_space.operations.worker"],
            env=environment | own,
            text=True,
            **pipes,
        )

    def token(self):
        """Return a new token, and record it."""
        self.tokens.append(new_token())
        return self.tokens[-1]

    def ask(self, verb, **arguments):
        self.process.stdin.write(json.dumps({"verb": verb, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            assert line, (self.folder / "stderr").read_text()[-2000:]
            self.output.append(line)
            message = json.loads(line)
            if "report" not in message:
                return message

    def check_no_token_is_stored(self, run):
        (self.folder / "output").write_text("".join(self.output))
        assert found_in_files([self.folder, run.directory], self.tokens) == []
        assert found_in_processes(self.tokens) == []


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run with an untrained adapter and the files that a training writes."""
    data = load_dataset("demo", 0.1, 0)
    run = Run.create(tmp_path / "trained", Recipe(), data.files(), name="colors")
    write_plan(run, PLAN)
    run.append(events.Finished(step=2, seconds=0.2))
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL_DIR),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    model.peft_config["default"].base_model_name_or_path = PLAN.base_name
    model.save_pretrained(run.path("adapter"), save_embedding_layers=False)
    tokenizer.save_pretrained(run.path("adapter"))
    write_card(run, run.path("adapter"), data, PLAN)
    return run


@pytest.fixture
def worker(hub_environment, tmp_path):
    (tmp_path / "worker").mkdir()
    worker = Worker(hub_environment, tmp_path / "worker")
    yield worker
    worker.process.stdin.close()
    worker.process.wait()


def misplaced(token, other, run, rows, folder):
    """Return (operation, arguments) with the token in each field where it does not belong."""
    recipes = (
        {"base_model": token},
        {"base_model": f"maria/{token}"},
        {"base_model": f"https://user:{token}@huggingface.co/a/b"},
        {"base_model": "maria/none", "revision": token},
        {token: 1},
        {"learning_rate": token},
        {"target_modules": [token], "base_model": "demo"},
    )
    sources = (
        f"hf://datasets/maria/{token}",
        f"hf://datasets/maria/rows?token={token}",
        f"/nowhere/{token}.json",
    )
    imported = {"directory": str(folder / "run"), "data": rows}
    pushed = {"run": run, "repo": "maria/a", "token": token}
    return [
        *(("check", {"data": rows, "recipe": recipe}) for recipe in recipes),
        *(("check", {"data": source}) for source in sources),
        ("import_adapter", imported | {"adapter": token}),
        ("import_adapter", imported | {"adapter": f"maria/{token}"}),
        ("push", pushed | {"repo": token, "token": None}),
        ("push", pushed | {"repo": f"maria/{token}", "token": other}),
        ("push", pushed | {"token": f"{token}\n"}),
        ("push", pushed | {"token": f"Bearer {token}"}),
        ("push", pushed | {"token": f"{token}é"}),
        ("push", pushed | {"card": f"---\nbase_model: {token}\n---\n"}),
        ("push", pushed | {"run": f"/nowhere/{token}"}),
        ("push", pushed | {token: 1}),
        ("no verb", {"token": token}),
    ]


def send_tokens(worker, the_hub, run, write, count):
    """Send tokens in pushes that fail at every step, and in fields where they do not belong."""
    rows = str(write("rows.json", ROWS))
    pushes = itertools.product(WRITES, STATUSES, ("known", "unknown", "reads"))
    for number in range(count):
        token = worker.token()
        if number % 3 == 2:
            calls = misplaced(token, worker.token(), str(run.directory), rows, worker.folder)
            verb, arguments = calls[number // 3 % len(calls)]
        else:
            place, status, kind = next(pushes, ("whoami", 500, "known"))
            if kind != "unknown":
                the_hub.tokens[token] = User("maria", may_write=kind == "known")
            the_hub.fail_next(place, status, times=9, message=f"no {token} here")
            verb = "push"
            arguments = {"run": str(run.directory), "repo": "maria/a", "token": token}
        answer = worker.ask(verb, **arguments)
        assert "error" in answer or verb == "push", (verb, answer)
        the_hub._faults.clear()


@pytest.mark.slow
def test_tokens_of_thirty_flows_are_stored_nowhere(worker, the_hub, run, write):
    send_tokens(worker, the_hub, run, write, 30)
    assert len(worker.output) >= 30
    worker.check_no_token_is_stored(run)


@pytest.mark.slow
def test_tokens_of_three_hundred_flows_are_stored_nowhere(worker, the_hub, run, write):
    send_tokens(worker, the_hub, run, write, 300)
    assert len(worker.tokens) >= 300
    worker.check_no_token_is_stored(run)


@pytest.mark.slow
def test_the_environment_token_reaches_no_output_and_no_child_on_a_space(
    hub_environment, the_hub, run, tmp_path, write
):
    token = new_token()
    the_hub.tokens[token] = User("maria")
    own = {
        "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "hf"),
        "PEFT_SPACE_HOME": str(tmp_path / "home"),
    }
    printed = []
    for status, verb in ((401, "push"), (500, "push"), (None, "push"), (404, "check")):
        if status:
            the_hub.fail_next("/api", status, times=9)
        arguments = [run.directory, "--repo", "maria/a"]
        if verb == "check":
            arguments = [write("rows.json", ROWS), "--base-model", f"maria/{token}"]
        command = [sys.executable, "-m", "peft_space", verb, *map(str, arguments)]
        result = subprocess.run(command, env=hub_environment | own, capture_output=True)
        printed.append(result.stdout + result.stderr)
        the_hub._faults.clear()
    (tmp_path / "printed").write_bytes(b"".join(printed))
    assert found_in_files([tmp_path], [token]) == []
    code = (
        "import subprocess, peft_space.settings as settings; settings.prepare_libraries(); "
        "print(subprocess.run(['env'], capture_output=True).stdout)"
    )
    environment = hub_environment | own | {"SYSTEM": "spaces"}
    command = [sys.executable, "-c", code]
    on_a_space = subprocess.run(command, env=environment, capture_output=True)
    assert b"SYSTEM=spaces" in on_a_space.stdout
    assert token.encode() not in on_a_space.stdout


HUB_ENDPOINTS = {
    "backup": {"repo": "maria/a"},
    "restore": {"repo": "maria/a"},
    "job_hardware": {},
    "submit_job": {"flavor": "cpu-basic", "timeout": "1h"},
    "follow_job": {},
    "cancel_job": {},
}
"""Endpoints other than /push that take a token, with their arguments. Only restore has no run."""
SUBMITTED_JOB = {
    "job": "1",
    "owner": "maria",
    "repo": "maria/a",
    "address": "",
    "flavor": "cpu-basic",
    "timeout": 60.0,
    "num_events": 1,
}


def processes_of(run):
    """Return the processes with the run's directory on their command line."""
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if str(run) in (process.info["cmdline"] or ())]


def end_following(run, the_hub):
    """Wait until the process that follows a run's job gets an error, check it, and kill it."""
    following = wait_for(lambda: processes_of(run))
    before = len(the_hub.requests)
    wait_for(lambda: len(the_hub.requests) > before)
    assert found_in_processes(list(the_hub.tokens)) == []
    time.sleep(1)  # it logs the error
    for process in following:
        process.kill()


class TokenCaller:
    """Calls the running app's API with a new token each time, while the Hub fails."""

    def __init__(self, client, the_hub):
        self.client, self.the_hub = client, the_hub
        self.tokens, self.answers = [], []

    def call(self, endpoint, fault, arguments, after=lambda: None):
        """Replace `{token}` in the arguments, and record the answer or the error."""
        token = new_token()
        self.tokens.append(token)
        self.the_hub.tokens[token] = User("maria")
        self.the_hub.fail_next(*fault, times=30, message=f"no {token} here")
        arguments = {name: value.format(token=token) for name, value in arguments.items()}
        try:
            answer = self.client.predict(**arguments, token=token, api_name=f"/{endpoint}")
            self.answers.append(str(answer))
        except Exception as error:  # noqa: BLE001 - the test searches the client's errors too
            self.answers.append(f"{error!r}")
        after()
        self.the_hub._faults.clear()


@pytest.mark.slow
def test_tokens_sent_to_the_running_app_are_found_nowhere(
    hub_environment, the_hub, tmp_path, write
):
    """The test searches answers, messages, the log, Gradio's cache, the run and all processes."""
    hub_variables = {name: hub_environment[name] for name in hub_environment if name[:3] == "HF_"}
    app = App(tmp_path / "home", **hub_variables)
    app.log = tmp_path / "log"
    app.start()
    try:
        client = Client(app.url, verbose=False)
        data = handle_file(str(write("rows.json", ROWS)))
        started = client.predict(data, {"max_steps": 1, "quantization": "none"}, api_name="/train")
        mine = {"run": started["run"], "owner": started["owner"]}
        while client.predict(**mine, api_name="/status")["status"] != "finished":
            time.sleep(1)
        caller = TokenCaller(client, the_hub)
        for status, place in itertools.product((401, 403, 500), ("whoami", "create", "commit")):
            for repo in ("maria/a", "{token}", "maria/{token}"):
                caller.call("push", (place, status), mine | {"repo": repo})
        [run] = app.home.glob(f"runs/*/{mine['run']}")
        for endpoint, more in HUB_ENDPOINTS.items():
            arguments = mine | more
            if endpoint == "restore":
                del arguments["run"]
            for status in (401, 403, 404, 500):
                if endpoint == "follow_job":
                    Run(run).append(events.SubmittedToJob(**SUBMITTED_JOB))
                    end = functools.partial(end_following, run, the_hub)
                    caller.call(endpoint, ("/api", status), arguments, after=end)
                else:
                    caller.call(endpoint, ("/api", status), arguments)
        assert found_in_processes(caller.tokens) == []
    finally:
        app.kill()
    (tmp_path / "answers").write_text("\n".join(caller.answers))
    assert len(caller.answers) == 27 + 4 * len(HUB_ENDPOINTS)
    log = run.joinpath("worker.log").read_text()
    assert "could not be checked" in log, "the process that follows a job reported no error"
    assert found_in_files([tmp_path], caller.tokens) == []


def test_messages_logs_and_tracebacks_are_redacted(capsys, caplog):
    token = new_token()
    redact_logs()
    error = UserError("models.not_found", f"There is no model {token}.")
    assert user_message(error) == "There is no model hf_…. [models.not_found]"
    assert token not in user_message(ValueError(token))
    try:
        raise ValueError(f"Authorization: Bearer {token}")
    except ValueError:
        logging.getLogger("test").exception("at %s", f"https://x/?token={token}")
    assert "Bearer hf_…" in caplog.text
    assert token not in caplog.text
    code = (
        "import sys, peft_space.settings as settings; settings.prepare_libraries(); "
        "raise ValueError(sys.argv[1])"
    )
    crashed = subprocess.run([sys.executable, "-c", code, token], capture_output=True, text=True)
    assert "hf_…" in crashed.stderr
    assert token not in crashed.stderr


def test_no_part_of_a_sign_in_token_remains():
    parts = [base64.urlsafe_b64encode(secrets.token_bytes(30)).decode() for _ in range(3)]
    for token in ("hf_oauth_" + ".".join(parts), "hf_jwt_" + ".".join(parts)):
        redacted = redact(f"the Hub rejects it (400: no {token} here), {token}.")
        remains = [part for part in parts if part[:8] in redacted or part[-8:] in redacted]
        assert not remains, redacted
        assert redacted.startswith("the Hub rejects it (400: no hf_")
        assert " here)" in redacted
        assert has_secret(f"maria/{token}")


def test_text_that_is_not_a_token_is_unchanged():
    for text in (
        "hf-internal-testing/tiny",
        "maria/hf_oauth_demo",
        "https://hf.co/a",
        "a hf_ b",
        "maria/hf_model",
        "sk-learn",
    ):
        assert redact(text) == text
        assert not has_secret(text)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
