"""`deploy` and `smoke`: the real client makes a Space on a Hub of our own, of what belongs there alone; a running page is checked from outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peft_space.errors import UserError
from peft_space.hub.space import ROOT, files_to_upload
from tests.conftest import READER, WRITER

SPACE = "spaces/maria/lora"


def deploy(hub_environment, *arguments, token: str = WRITER):
    command = [
        sys.executable,
        "-m",
        "peft_space",
        "deploy-space",
        "maria/lora",
        "--json",
        *arguments,
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=hub_environment | {"HF_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=120,
    )


def tracked() -> set[str]:
    return set(
        subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with one file, to which a test may add others."""
    (tmp_path / "app.py").write_text("")
    for command in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_new_space_is_private_and_holds_what_git_tracks_and_the_app_needs(
    the_hub, hub_environment
):
    done = deploy(hub_environment, "--hardware", "t4-small")
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        {"url": f"{the_hub.url}/spaces/maria/lora"},
    ), done.stderr
    space = the_hub.repositories[SPACE]
    assert (space.private, space.hardware, len(space.commits)) == (True, "t4-small", 2)
    arrived = set(space.files) - {".gitattributes"}
    assert {
        "app.py",
        "README.md",
        "requirements.txt",
        "peft_space/web/app.py",
        "peft_space/web/style.css",
    } <= arrived
    assert arrived <= tracked()
    left = {name.split("/")[0] for name in tracked() - arrived}
    assert left == {
        "tests",
        "benchmarks",
        ".ci",
        ".gitignore",
        "Makefile",
        "constraints.txt",
        "requirements-dev.txt",
        "pyproject.toml",
    }
    assert all(space.files[name] == (ROOT / name).read_bytes() for name in arrived)
    assert not any(WRITER.encode() in request.body for request in the_hub.requests)
    assert WRITER not in done.stdout + done.stderr


@pytest.mark.slow
def test_what_was_deployed_starts(the_hub, hub_environment, tmp_path):
    deploy(hub_environment)
    for name, content in the_hub.repositories[SPACE].files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", "import app; from peft_space.ui.app import build; build()"],
        cwd=tmp_path,
        text=True,
    )
    assert done.returncode == 0


def test_an_update_is_one_commit_that_also_removes_what_is_not_tracked_any_more(
    the_hub, hub_environment
):
    deploy(hub_environment)
    space = the_hub.repositories[SPACE]
    the_hub.repositories[SPACE].commits[-1].files["peft_space/old.py"] = b"gone since"
    done = deploy(hub_environment, "--hardware", "zero-a10g")
    assert done.returncode == 0, done.stderr
    assert (len(space.commits), space.hardware) == (3, "zero-a10g")
    assert "peft_space/old.py" not in space.files


def test_the_same_again_changes_nothing(the_hub, hub_environment):
    deploy(hub_environment, "--hardware", "t4-small")
    deploy(hub_environment)
    space = the_hub.repositories[SPACE]
    assert (len(space.commits), space.hardware) == (2, "t4-small")


def test_another_app_is_left_alone(the_hub, hub_environment):
    theirs = the_hub.add_repository(SPACE, {"app.py": b"theirs", "README.md": b"theirs"})
    done = deploy(hub_environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is another app" in done.stderr
    assert len(theirs.commits) == 2


@pytest.mark.parametrize(
    ("fault", "token", "words"),
    [
        (None, READER, "may not write to 'maria/lora'"),
        (None, "hf_wrong", "does not accept the token"),
        (("create", 402), WRITER, "asks for payment"),
        (("commit", 500), WRITER, r"an error of its own (500)"),
    ],
)
def test_a_refusal_is_one_sentence(the_hub, hub_environment, fault, token, words):
    if fault:
        the_hub.fail_next(*fault)
    done = deploy(hub_environment, token=token)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr.splitlines()[-1]


def test_hardware_that_the_hub_does_not_know_is_told(the_hub, hub_environment):
    done = deploy(hub_environment, "--hardware", "abacus")
    assert done.returncode == 2
    assert "Invalid hardware flavor: abacus" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("settings.py", 'TOKEN = "hf_' + "a1B2" * 9 + '"'),
        ("notes.md", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        (".env", "A=1"),
        (".env.local", "A=1"),
        ("id_ed25519", "x"),
        ("server.pem", "x"),
    ],
)
def test_nothing_is_uploaded_where_a_tracked_file_looks_like_a_secret(clone, name, text):
    (clone / name).write_text(text)
    subprocess.run(["git", "add", "-f", name], cwd=clone, check=True)
    with pytest.raises(UserError, match=f"{name} looks as if it held a key"):
        files_to_upload(clone)


def test_what_git_does_not_track_is_not_uploaded(clone):
    (clone / ".env").write_text("HF_TOKEN=x")
    assert files_to_upload(clone) == ["app.py"]


def test_a_link_out_of_the_clone_is_refused(clone, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("x")
    (clone / "link").symlink_to(secret)
    subprocess.run(["git", "add", "link"], cwd=clone, check=True)
    with pytest.raises(UserError, match="git tracks link"):
        files_to_upload(clone)


def test_a_folder_that_is_no_clone_is_told(tmp_path):
    with pytest.raises(UserError, match="is not a git clone"):
        files_to_upload(tmp_path)


@pytest.mark.slow
def test_a_page_that_runs_is_checked_from_outside(app, run_command):
    status, out, err = run_command("smoke-test", app.url, "--json")
    assert status == 0, err
    checks = json.loads(out)["checks"]
    assert len(checks) == 4
    assert checks[2]["found"].startswith("4 steps")


def test_a_page_that_is_not_there_is_told_in_one_sentence(run_command):
    status, out, err = run_command("smoke-test", "http://127.0.0.1:9")
    assert (status, out) == (2, "")
    assert "Opening the page did not go well" in err.splitlines()[-1]
