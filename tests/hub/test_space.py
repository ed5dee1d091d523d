"""Deploys to a fake Hub with the real client, and runs the smoke test against a real page."""

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
    """A clone with one file; tests add others."""
    (tmp_path / "app.py").write_text("")
    for command in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_new_space_is_private_and_has_the_tracked_files_of_the_app(the_hub, hub_environment):
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
        "tools",
        ".ci",
        ".github",
        ".pre-commit-config.yaml",
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
def test_a_deployed_space_starts(the_hub, hub_environment, tmp_path):
    deploy(hub_environment)
    for name, content in the_hub.repositories[SPACE].files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", "import app; from peft_space.web.app import build; build()"],
        cwd=tmp_path,
        text=True,
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_an_update_is_one_commit_that_removes_untracked_files(the_hub, hub_environment):
    deploy(hub_environment)
    space = the_hub.repositories[SPACE]
    the_hub.repositories[SPACE].commits[-1].files["peft_space/old.py"] = b"gone since"
    done = deploy(hub_environment, "--hardware", "zero-a10g")
    assert done.returncode == 0, done.stderr
    assert (len(space.commits), space.hardware) == (3, "zero-a10g")
    assert "peft_space/old.py" not in space.files


@pytest.mark.slow
def test_deploying_the_same_files_again_changes_nothing(the_hub, hub_environment):
    deploy(hub_environment, "--hardware", "t4-small")
    deploy(hub_environment)
    space = the_hub.repositories[SPACE]
    assert (len(space.commits), space.hardware) == (2, "t4-small")


def test_another_app_is_left_alone(the_hub, hub_environment):
    theirs = the_hub.add_repository(SPACE, {"app.py": b"theirs", "README.md": b"theirs"})
    done = deploy(hub_environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "[hub.repository_in_use]" in done.stderr
    assert len(theirs.commits) == 2


@pytest.mark.parametrize(
    ("fault", "token", "code"),
    [
        (None, READER, "hub.forbidden"),
        (None, "hf_wrong", "hub.unauthorized"),
        (("create", 402), WRITER, "hub.payment_required"),
        (("commit", 500), WRITER, "hub.server_error"),
    ],
)
@pytest.mark.sample(1)
def test_an_error_of_the_hub_is_one_line(the_hub, hub_environment, fault, token, code):
    if fault:
        the_hub.fail_next(*fault)
    done = deploy(hub_environment, token=token)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"[{code}]" in done.stderr.splitlines()[-1]


def test_the_reason_of_the_hub_for_unknown_hardware_is_shown(the_hub, hub_environment):
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
def test_a_tracked_file_that_looks_like_a_secret_prevents_the_upload(clone, name, text):
    (clone / name).write_text(text)
    subprocess.run(["git", "add", "-f", name], cwd=clone, check=True)
    with pytest.raises(UserError, match=name) as error:
        files_to_upload(clone)
    assert error.value.code == "hub.secret_in_repository"


def test_untracked_files_are_not_uploaded(clone):
    (clone / ".env").write_text("HF_TOKEN=x")
    assert files_to_upload(clone) == ["app.py"]


def test_a_link_out_of_the_clone_is_rejected(clone, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("x")
    (clone / "link").symlink_to(secret)
    subprocess.run(["git", "add", "link"], cwd=clone, check=True)
    with pytest.raises(UserError, match="link") as error:
        files_to_upload(clone)
    assert error.value.code == "hub.tracked_file_missing"


def test_a_folder_that_is_not_a_clone_is_rejected(tmp_path):
    with pytest.raises(UserError) as error:
        files_to_upload(tmp_path)
    assert error.value.code == "hub.not_a_clone"


@pytest.mark.slow
def test_the_smoke_test_passes_on_a_running_page(app, run_command):
    status, out, err = run_command("smoke-test", app.url, "--json")
    assert status == 0, err
    checks = json.loads(out)["checks"]
    assert len(checks) == 4
    assert checks[2]["found"].startswith("4 steps")


def test_the_smoke_test_reports_a_missing_page_on_one_line(run_command):
    status, out, err = run_command("smoke-test", "http://127.0.0.1:9")
    assert (status, out) == (2, "")
    assert "[hub.smoke_test_failed]" in err.splitlines()[-1]
