"""Datasets on the Hub, read by the real clients from a local stand-in for the Hub."""

import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_space.data.readers.hub import HubDataset, is_address, parse_address
from peft_space.errors import UserError

CARD = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: data/small-train.jsonl
  - split: test
    path: data/small-test.jsonl
- config_name: large
  data_files:
  - split: train
    path: data/large-*.parquet
---
"""


def lines(name, count):
    return "".join(
        json.dumps({"prompt": f"{name} {i}", "completion": "007"}) + "\n" for i in range(count)
    ).encode()


def parquet(name, count):
    file = io.BytesIO()
    pq.write_table(
        pa.table({"prompt": [f"{name} {i}" for i in range(count)], "completion": ["NA"] * count}),
        file,
    )
    return file.getvalue()


@pytest.fixture
def dataset(the_hub):
    """A dataset with two configurations, one of which has two shards."""
    files = {
        "README.md": CARD.encode(),
        "data/small-train.jsonl": lines("small", 20),
        "data/small-test.jsonl": lines("held out", 5),
    }
    files |= {f"data/large-{n}.parquet": parquet(f"shard {n}", 30) for n in range(2)}
    return the_hub.add_repository("datasets/maria/rows", files)


@pytest.mark.parametrize(
    "dataset",
    [
        HubDataset("a/b"),
        HubDataset("a/b", "v1.0", "c d", "train[x]"),
        HubDataset("a.b/c-d", "refs/pr/1", None, "é"),
    ],
)
def test_an_address_is_read_back(dataset):
    assert is_address(dataset.address)
    assert parse_address(dataset.address) == dataset


@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/json",
        "hf://datasets/../x",
        "hf://datasets/a/../b",
        "hf://spaces/a/b",
        "hf://datasets/a/b?x=1",
        "hf:",
    ],
)
def test_another_address_is_rejected_with_an_example(address):
    with pytest.raises(UserError) as error:
        parse_address(address)
    assert error.value.code == "data.invalid_hub_address"
    assert repr(address) in str(error.value)
    assert "hf://datasets/OWNER/NAME" in str(error.value)


@pytest.mark.slow
def test_a_split_is_read_verbatim(ask, dataset):
    result = ask("check", data="hf://datasets/maria/rows?config=large", recipe={})
    assert result["source"] == f"maria/rows@{dataset.commits[-1].oid[:7]} (large, train)"
    assert (result["rows"], result["schema"], result["to_train"], result["held_out"]) == (
        60,
        "prompt_completion",
        54,
        6,
    )
    preview = ask(
        "show_rows",
        data="hf://datasets/maria/rows?config=large",
        recipe={"base_model": "demo"},
        numbers=[3],
    )
    assert "".join(text for text, _ in preview["examples"][0]["tokens"]).count("NA") == 1


def test_configurations_and_splits_are_listed_and_each_is_read(ask, dataset):
    [configs] = ask("parts", data="hf://datasets/maria/rows")["menus"]
    assert (configs["kind"], configs["chosen"]) == ("configuration", None)
    assert list(configs["data"]) == ["small", "large"]
    configs, splits = ask("parts", data=configs["data"]["small"])["menus"]
    assert (configs["chosen"], splits["chosen"]) == ("small", "train")
    rows = {name: ask("check", data=data)["rows"] for name, data in splits["data"].items()}
    assert rows == {"train": 20, "test": 5}
    [menu] = ask("parts", data=configs["data"]["large"])["menus"]  # it has one split
    assert menu["chosen"] == "large"
    with pytest.raises(UserError) as error:
        ask("parts", data="hf://datasets/maria/nothing")
    assert error.value.code == "data.hub_dataset_unavailable"


def test_another_split_is_held_out_and_an_older_commit_is_read(ask, dataset):
    first = dataset.commits[-1]
    dataset.commits.append(
        type(first)("smaller", first.files | {"data/small-train.jsonl": lines("now", 3)})
    )
    address = "hf://datasets/maria/rows{}?config=small&split={}"
    result = ask("check", data=address.format("", "train"), held_out=address.format("", "test"))
    assert (result["to_train"], result["held_out"]) == (3, 5)
    result = ask("check", data=address.format(f"@{first.oid}", "train"))
    assert result["rows"] == 20


@pytest.mark.parametrize(
    ("address", "code", "value"),
    [
        ("maria/rows", "data.ambiguous_split", "small, large"),
        ("maria/rows?config=tiny", "data.unknown_split", "'tiny'. Choose one of small, large."),
        ("maria/rows?config=small&split=dev", "data.unknown_split", "'dev'"),
        ("maria/rows@v9?config=small", "data.hub_dataset_unavailable", "'v9'"),
        ("maria/nothing", "data.hub_dataset_unavailable", "maria/nothing"),
        ("maria/images", "data.unsupported_file_type", "a.png"),
        ("maria/empty", "data.hub_dataset_unavailable", "maria/empty"),
        ("maria/huge", "data.file_too_large", "2.0 MB"),
        ("maria/broken", "data.invalid_json", "broken.jsonl: line 2"),
        ("maria/elsewhere", "data.external_files", "maria/elsewhere"),
    ],
)
@pytest.mark.sample(7)
def test_a_dataset_that_cannot_be_read_is_rejected(ask, the_hub, dataset, address, code, value):
    the_hub.add_repository("datasets/maria/images", {"a.png": b"\x89PNG\r\n"})
    the_hub.add_repository("datasets/maria/empty", {"README.md": b"# nothing here\n"})
    the_hub.add_repository(
        "datasets/maria/huge", {"rows.jsonl": b'{"text": "a"}\n' + b"\n" * 2_000_000}
    )
    the_hub.add_repository("datasets/maria/broken", {"broken.jsonl": b'{"text": "a"}\n{"text": \n'})
    card = b"---\nconfigs:\n- config_name: a\n  data_files: https://example.org/a.jsonl\n---\n"
    the_hub.add_repository("datasets/maria/elsewhere", {"README.md": card})
    with pytest.raises(UserError) as error:
        ask("check", data=f"hf://datasets/{address}", recipe={})
    assert error.value.code == code
    assert value in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dataset_that_is_too_large_is_not_downloaded(ask, the_hub):
    the_hub.add_repository("datasets/maria/huge", {"rows.jsonl": b"\n" * 2_000_000})
    with pytest.raises(UserError):
        ask("check", data="hf://datasets/maria/huge")
    assert not [request for request in the_hub.requests if request.path.endswith("rows.jsonl")]


@pytest.mark.slow
def test_the_command_line_trains_on_a_dataset_and_stores_its_name(
    hub_environment, the_hub, dataset, tmp_path
):
    arguments = [
        "train",
        "hf://datasets/maria/rows?config=small",
        "--recipe",
        '{"max_steps": 1}',
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "peft_space", *arguments],
        env=hub_environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "run" / "data" / "about.json").read_text())
    assert about["source"] == f"maria/rows@{dataset.commits[-1].oid[:7]} (small, train)"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["name"] == "maria/rows on demo"


@pytest.mark.slow
def test_an_unreachable_hub_is_reported(hub_environment):
    arguments = ["check", "hf://datasets/maria/rows"]
    environment = hub_environment | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "peft_space", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "data.hub_dataset_unavailable" in done.stderr
    assert "Traceback" not in done.stderr
