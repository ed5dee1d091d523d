"""The repository is a valid Space: front matter, requirements, and settings of its host."""

import re
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from packaging.requirements import Requirement

from peft_space import settings
from tests.fixtures import space_metadata

ROOT = Path(__file__).parents[2]


def front_matter():
    return RepoCard.load(ROOT / "README.md", repo_type="space").data.to_dict()


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    return {requirement.name: requirement.specifier for requirement in found}


def pinned(package):
    return re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[
        1
    ]


def test_the_front_matter_is_valid_for_the_hub():
    assert list(space_metadata.faults(front_matter())) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("short_description", "x" * 61),
        ("colorFrom", "teal"),
        ("sdk", "flask"),
        ("suggested_hardware", "h100"),
        ("hf_oauth_scopes", ["write-everything"]),
        ("python_version", 3.12),
        ("emoji", "A"),
        ("startup_duration_timeout", 30),
        ("storage", "large"),
    ],
)
def test_an_invalid_front_matter_field_is_found(field, value):
    [fault] = space_metadata.faults(front_matter() | {field: value})
    assert field in fault


def test_the_space_uses_the_gradio_of_the_tests():
    fields = front_matter()
    assert (ROOT / fields["app_file"]).is_file()
    assert fields["sdk_version"] == pinned("gradio")
    assert fields["sdk_version"] in requirements()["gradio"]


def test_sign_in_requests_only_repositories_pull_requests_and_jobs():
    scopes = set(front_matter()["hf_oauth_scopes"])
    assert scopes == {"contribute-repos", "write-discussions", "jobs"}


@pytest.mark.parametrize("torch", ["2.10.0", "2.11.0", pinned("torch")])
def test_the_torch_of_zerogpu_is_new_enough(torch):
    assert torch in requirements()["torch"]


def test_gradio_chooses_the_address_to_listen_on():
    sources = [ROOT / "app.py", *(ROOT / "peft_space").rglob("*.py")]
    assert not [path for path in sources if "server_name" in path.read_text()]


def test_spaces_has_no_lower_bound_because_a_space_brings_its_own():
    assert str(requirements()["spaces"]) == "<1"


@pytest.mark.parametrize(
    ("home", "kept"),
    [
        ("/data/peft_space", True),
        ("/data", True),
        ("/home/user/.local/share/peft_space", False),
        ("/tmp/runs", False),
        ("/database", False),
    ],
)
def test_on_a_space_only_a_mounted_volume_is_persistent(home, kept, tmp_path, monkeypatch):
    (tmp_path / "mounts").write_text(
        "overlay / overlay rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nbucket /data fuse.hf rw 0 0\n"
    )
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("PEFT_SPACE_HOME", home)
    assert settings.disk_is_kept(tmp_path / "mounts") == kept


def test_on_your_own_machine_the_disk_is_persistent():
    assert settings.disk_is_kept()


@pytest.mark.parametrize(
    ("missing", "offered"),
    [(None, True), ("SYSTEM", False), ("SPACE_ID", False), ("OAUTH_CLIENT_ID", False)],
)
def test_sign_in_is_offered_only_where_the_hub_provides_it(missing, offered, monkeypatch):
    for name, value in {
        "SYSTEM": "spaces",
        "SPACE_ID": "maria/lora",
        "OAUTH_CLIENT_ID": "x",
    }.items():
        monkeypatch.delenv(name, raising=False) if name == missing else monkeypatch.setenv(
            name, value
        )
    assert settings.signs_in() == offered
