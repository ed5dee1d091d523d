"""Archives of adapters that unpack without end, or to places elsewhere, are refused in a sentence. Those of data are in awkward.py."""

import io
import json
import os
import resource
import stat
import struct
import zipfile

import pytest

from peft_space import operations
from peft_space.errors import UserError
from tests.fixtures.malformed_files import CASES

CONFIG = json.dumps(
    {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "peft_space/demo/model",
    }
)
NAMES = ("adapter_config.json", "adapter_model.safetensors")
ZEROS = bytes(1_000_000)


def entry(name, mode=0):
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    return made


def adapter(archive, config=CONFIG, folder=""):
    archive.writestr(f"{folder}{NAMES[0]}", config)
    archive.writestr(f"{folder}{NAMES[1]}", b"\x02" + bytes(7) + b"{}")


def filled(archive, name, megabytes):
    with archive.open(name, "w", force_zip64=True) as file:
        for _ in range(megabytes):
            file.write(ZEROS)


def weights_of_zeros(archive):
    archive.writestr(NAMES[0], CONFIG)
    filled(archive, NAMES[1], 300)


def config_of_zeros(archive):
    filled(archive, NAMES[0], 300)
    archive.writestr(NAMES[1], b"")


def config_nested_deeply(archive):
    adapter(archive, "[" * 1_000_000)


def links(archive):
    archive.writestr(entry(NAMES[0], stat.S_IFLNK | 0o777), "/etc/passwd")
    archive.writestr(entry(NAMES[1], stat.S_IFLNK | 0o777), "/etc/shadow")


def a_device(archive):
    archive.writestr(entry(NAMES[0], stat.S_IFCHR | 0o666), "")
    archive.writestr(NAMES[1], b"")


def names_upwards(archive):
    adapter(archive, folder="../../../")
    archive.writestr("../../canary", "x")


def absolute_names(archive):
    adapter(archive, folder="/tmp/")
    archive.writestr("/tmp/canary", "x")


def names_of_windows(archive):
    archive.writestr("..\\..\\adapter_config.json", CONFIG)
    archive.writestr("C:\\adapter_model.safetensors", b"")


def twenty_thousand_files(archive):
    adapter(archive)
    for number in range(20_000):
        archive.writestr(f"{number}", b"")


def the_same_name_twice(archive):
    adapter(archive)
    adapter(archive, folder="other/")


def an_archive_in_an_archive(archive):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as packed:
        filled(packed, NAMES[1], 50)
    archive.writestr("adapter.zip", inner.getvalue())


def a_pickle_beside(archive):
    archive.writestr(NAMES[0], CONFIG)
    archive.writestr("adapter_model.bin", b"\x80\x04.")


ZIPS = {
    weights_of_zeros: "unpacks to 300 MB",
    config_of_zeros: "unpacks to 300 MB",
    config_nested_deeply: "is damaged",
    links: "is damaged",
    a_device: "is damaged",
    names_upwards: "cannot be loaded|does not fit",
    absolute_names: "cannot be loaded|does not fit",
    names_of_windows: "has no adapter_config.json",
    twenty_thousand_files: "more than 10,000 files",
    the_same_name_twice: "has 2 files named",
    an_archive_in_an_archive: "has no adapter_config.json",
    a_pickle_beside: "has no adapter_model.safetensors",
}


def with_a_password(content):
    """The first flag of each entry says that it is encrypted."""
    return content.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    )


def with_a_size_that_is_not_so(content):
    """The directory says of the weights that they have four gigabytes."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", 0xFFFFFFF0) + content[at + 28 :]


BROKEN = {
    with_a_password: "that can be opened",
    with_a_size_that_is_not_so: "unpacks to 4,295 MB",
    lambda content: content[:-40]: "that can be opened",
    lambda content: content.replace(b"LORA", b"AROL"): "that can be opened",
    lambda content: b"PK\x03\x04" + bytes(1000): "that can be opened",
}
ROWS = [{"prompt": "a", "completion": "b"}] * 2


def refused(path, tmp_path, write, said):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said) as refusal:
        operations.import_adapter(str(tmp_path / "run"), str(path), str(write("rows.json", ROWS)))
    assert len(str(refusal.value)) < 600
    assert "root:" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kilobytes"
    assert not (tmp_path / "run").exists()
    assert not any(
        os.path.exists(place)
        for place in (
            "/tmp/canary",
            "/tmp/adapter_config.json",
            tmp_path / "canary",
            tmp_path.parent / "canary",
        )
    )


@pytest.mark.parametrize("fill", ZIPS, ids=lambda fill: fill.__name__)
def test_a_hostile_adapter_archive_is_bounded_and_stays_in_its_folder(fill, tmp_path, write):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        fill(archive)
    refused(path, tmp_path, write, ZIPS[fill])


@pytest.mark.parametrize("break_it", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_archive_of_an_adapter_is_reported(break_it, tmp_path, write):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        adapter(archive)
    path = tmp_path / "mine.zip"
    path.write_bytes(break_it(packed.getvalue()))
    refused(path, tmp_path, write, BROKEN[break_it])


def test_there_are_more_than_twenty_archives_and_sizes():
    assert len(ZIPS) + len(BROKEN) + sum(case.big for case in CASES) >= 20
