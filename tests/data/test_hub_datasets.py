"""Datasets on the Hub: the real clients against a Hub of our own, from the page's worker process and from the command line."""

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
    """A dataset with two configurations, one of them in two shards."""
    files = {
        "README.md": CARD.encode(),
        "data/small-train.jsonl": lines("small", 20),
        "data/small-test.jsonl": lines("held out", 5),
    }
    files |= {f"data/large-{n}.parquet": parquet(f"shard {n}", 30) for n in range(2)}
    return the_hub.add_repository("datasets/maria/rows", files)


@pytest.mark.parametrize(
    "wanted",
    [
        HubDataset("a/b"),
        HubDataset("a/b", "v1.0", "c d", "train[x]"),
        HubDataset("a.b/c-d", "refs/pr/1", None, "é"),
    ],
)
def test_an_address_is_read_back(wanted):
    assert is_address(wanted.address)
    assert parse_address(wanted.address) == wanted


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
def test_what_is_no_address_is_refused_with_an_example(address):
    with pytest.raises(
        UserError,
        match=r"is no address of a dataset on the Hub\. Write it like hf://datasets/OWNER/NAME",
    ):
        parse_address(address)


def test_a_split_is_read_as_its_files_are_written(ask, dataset):
    found = ask("check", data="hf://datasets/maria/rows?config=large", recipe={})
    assert found["source"] == f"maria/rows@{dataset.commits[-1].oid[:7]} (large, train)"
    assert (found["rows"], found["schema"], found["to_train"], found["held_out"]) == (
        60,
        "prompt_completion",
        54,
        6,
    )
    shown = ask(
        "show_rows",
        data="hf://datasets/maria/rows?config=large",
        recipe={"base_model": "demo"},
        numbers=[3],
    )
    assert "".join(text for text, _ in shown["examples"][0]["tokens"]).count("NA") == 1


def test_another_split_can_be_held_out_and_an_older_commit_be_read(ask, dataset):
    first = dataset.commits[-1]
    dataset.commits.append(
        type(first)("smaller", first.files | {"data/small-train.jsonl": lines("now", 3)})
    )
    address = "hf://datasets/maria/rows{}?config=small&split={}"
    found = ask("check", data=address.format("", "train"), held_out=address.format("", "test"))
    assert (found["to_train"], found["held_out"]) == (3, 5)
    found = ask("check", data=address.format(f"@{first.oid}", "train"))
    assert found["rows"] == 20


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "maria/rows",
            "The dataset maria/rows has several configurations, and it is not said which. Choose one of small, large.",
        ),
        ("maria/rows?config=tiny", "has no configuration 'tiny'. Choose one of small, large."),
        ("maria/rows?config=small&split=dev", "has no split 'dev'. Choose one of test, train."),
        ("maria/rows@v9?config=small", "it has no revision 'v9'. Check the branch, tag or commit."),
        (
            "maria/nothing",
            "cannot be loaded: the Hub knows no dataset of this name, or it is private. Check the spelling, or sign in.",
        ),
        ("maria/images", "is in files like a.png, which are not read. Bring one in .json"),
        ("maria/empty", "there are no data files in it"),
        ("maria/huge", "has 2.0 MB, the limit is 1 MB. Choose a smaller split"),
        ("maria/broken", "broken.jsonl: line 2 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence_with_what_to_do(
    ask, the_hub, dataset, address, said
):
    the_hub.add_repository("datasets/maria/images", {"a.png": b"\x89PNG\r\n"})
    the_hub.add_repository("datasets/maria/empty", {"README.md": b"# nothing here\n"})
    the_hub.add_repository(
        "datasets/maria/huge", {"rows.jsonl": b'{"text": "a"}\n' + b"\n" * 2_000_000}
    )
    the_hub.add_repository("datasets/maria/broken", {"broken.jsonl": b'{"text": "a"}\n{"text": \n'})
    with pytest.raises(UserError) as refusal:
        ask("check", data=f"hf://datasets/{address}", recipe={})
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_nothing_of_a_dataset_that_is_too_large_is_downloaded(ask, the_hub):
    the_hub.add_repository("datasets/maria/huge", {"rows.jsonl": b"\n" * 2_000_000})
    with pytest.raises(UserError):
        ask("check", data="hf://datasets/maria/huge")
    assert not [request for request in the_hub.requests if request.path.endswith("rows.jsonl")]


@pytest.mark.slow
def test_the_command_line_trains_on_a_dataset_and_keeps_which(
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


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(hub_environment):
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
    assert "the Hub cannot be reached. Check the network, or bring the files." in done.stderr
    assert "Traceback" not in done.stderr
