"""No request goes to an address that a visitor, a dataset or a model chooses: only to the Hub, and there to the repository that was named."""

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
    laid = Bait(tmp_path)
    yield laid
    assert not laid.taken()
    laid.socket.close()


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_neither_data_nor_a_model_nor_an_adapter(address, bait, tmp_path, write):
    named = address.format(url=bait.url, port=bait.port)
    rows = str(write("rows.json", [{"prompt": "a", "completion": "b"}] * 2))
    for ask in (
        lambda: operations.check(named),
        lambda: operations.check(rows, recipe={"base_model": named}),
        lambda: operations.import_adapter(str(tmp_path / "run"), named, rows),
    ):
        with pytest.raises(UserError):
            ask()


def readme(path):
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {json.dumps(path)}\n---\n".encode()


@pytest.mark.parametrize(
    "path",
    [
        "{url}/rows.jsonl",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in (
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
def test_a_dataset_names_no_files_elsewhere(path, bait, the_hub, ask):
    the_hub.add_repository(
        "datasets/evil/other", {"x.jsonl": b'{"prompt": "a", "completion": "b"}\n'}
    )
    the_hub.add_repository(
        "datasets/maria/rows",
        {
            "README.md": readme(path.format(url=bait.url)),
            "a.jsonl": b'{"prompt": "a", "completion": "b"}\n',
        },
    )
    with pytest.raises(UserError):
        ask("check", data="hf://datasets/maria/rows")
    assert not any("evil" in request.path for request in the_hub.requests)


def test_on_a_space_no_folder_of_the_machine_is_a_model(monkeypatch, tmp_path):
    monkeypatch.setenv("SYSTEM", "spaces")
    for name in (str(tmp_path), ".", "/", "~", "..", "./tests", f"{tmp_path}/../{tmp_path.name}"):
        with pytest.raises(UserError, match=r"There is no base model|cannot be loaded"):
            find_base(name)
    assert settings.on_space()
