"""No request goes to an address that a visitor, a dataset or a model chooses.

The app contacts only the Hub, and there only the repository that the user named.
"""

import json

import pytest

from peft_space import operations, settings
from peft_space.errors import UserError
from peft_space.models.resolve import find_base
from tests.fixtures.malicious_models import Bait

ADDRESSES = [
    "{url}",
    "{url}/model.zip",
    "http://169.254.169.254/latest/meta-data",
    "https://huggingface.co/maria/rows",
    "//127.0.0.1:{port}/x",
    "ftp://127.0.0.1:{port}/x",
    "file:///etc/passwd",
    "s3://bucket/rows.json",
    "hf://models/a/b",
    "hf://datasets/../../etc/passwd",
    "hf://datasets/127.0.0.1:{port}/x",
    "127.0.0.1:{port}/x",
    "hf://datasets/a/b@../../x",
    "hf:{url}",
    "\\\\127.0.0.1\\x",
    "zip://a::{url}",
    "simplecache::{url}",
    "hub://a/b",
    "git+{url}",
]


@pytest.fixture
def bait(tmp_path):
    bait = Bait(tmp_path)
    yield bait
    assert not bait.taken()
    bait.socket.close()


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_rejected_as_data_model_and_adapter(address, bait, tmp_path, write):
    source = address.format(url=bait.url, port=bait.port)
    rows = str(write("rows.json", [{"prompt": "a", "completion": "b"}] * 2))
    for operation in (
        lambda: operations.check(source),
        lambda: operations.check(rows, recipe={"base_model": source}),
        lambda: operations.import_adapter(str(tmp_path / "run"), source, rows),
    ):
        with pytest.raises(UserError):
            operation()


def readme(path):
    config = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "
    return f"---\n{config}{json.dumps(path)}\n---\n".encode()


@pytest.mark.parametrize(
    "path",
    [
        "{url}/rows.jsonl",
        *(
            pytest.param(path, marks=pytest.mark.slow)
            for path in (
                "{url}/*.jsonl",
                "zip://x::{url}/a.zip",
                "/etc/passwd",
                "../../../etc/passwd",
                "file:///etc/passwd",
                "hf://datasets/evil/other/x.jsonl",
            )
        ),
    ],
)
def test_a_dataset_cannot_name_files_elsewhere(path, bait, the_hub, ask):
    row = b'{"prompt": "a", "completion": "b"}\n'
    files = {"README.md": readme(path.format(url=bait.url)), "a.jsonl": row}
    the_hub.add_repository("datasets/evil/other", {"x.jsonl": row})
    the_hub.add_repository("datasets/maria/rows", files)
    with pytest.raises(UserError):
        ask("check", data="hf://datasets/maria/rows")
    assert not any("evil" in request.path for request in the_hub.requests)


def test_a_space_accepts_no_local_folder_as_a_model(monkeypatch, tmp_path):
    monkeypatch.setenv("SYSTEM", "spaces")
    for name in (str(tmp_path), ".", "/", "~", "..", "./tests", f"{tmp_path}/../{tmp_path.name}"):
        with pytest.raises(UserError) as error:
            find_base(name)
        assert error.value.code == "models.not_found", name
    assert settings.on_space()
