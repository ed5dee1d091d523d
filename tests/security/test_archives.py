"""Adapter archives that unpack to gigabytes, or outside their folder, are rejected.

tests/fixtures/malformed_files.py has the archives with data.
"""

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
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def adapter(archive, config=CONFIG, folder=""):
    archive.writestr(f"{folder}{NAMES[0]}", config)
    archive.writestr(f"{folder}{NAMES[1]}", b"\x02" + bytes(7) + b"{}")


def add_zeros(archive, name, megabytes):
    with archive.open(name, "w", force_zip64=True) as file:
        for _ in range(megabytes):
            file.write(ZEROS)


def weights_of_zeros(archive):
    archive.writestr(NAMES[0], CONFIG)
    add_zeros(archive, NAMES[1], 300)


def config_of_zeros(archive):
    add_zeros(archive, NAMES[0], 300)
    archive.writestr(NAMES[1], b"")


def config_nested_deeply(archive):
    adapter(archive, "[" * 1_000_000)


def links(archive):
    archive.writestr(entry(NAMES[0], stat.S_IFLNK | 0o777), "/etc/passwd")
    archive.writestr(entry(NAMES[1], stat.S_IFLNK | 0o777), "/etc/shadow")


def a_device(archive):
    archive.writestr(entry(NAMES[0], stat.S_IFCHR | 0o666), "")
    archive.writestr(NAMES[1], b"")


def names_in_parent_folders(archive):
    adapter(archive, folder="../../../")
    archive.writestr("../../canary", "x")


def absolute_names(archive):
    adapter(archive, folder="/tmp/")
    archive.writestr("/tmp/canary", "x")


def windows_names(archive):
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
        add_zeros(packed, NAMES[1], 50)
    archive.writestr("adapter.zip", inner.getvalue())


def a_pickle(archive):
    archive.writestr(NAMES[0], CONFIG)
    archive.writestr("adapter_model.bin", b"\x80\x04.")


ZIPS = {
    weights_of_zeros: ("training.adapter_too_large", "300 MB"),
    config_of_zeros: ("training.adapter_too_large", "300 MB"),
    config_nested_deeply: ("training.adapter_config_invalid", NAMES[0]),
    links: ("training.adapter_config_invalid", NAMES[0]),
    a_device: ("training.adapter_config_invalid", NAMES[0]),
    names_in_parent_folders: ("models.adapter_mismatch", "mine.zip"),
    absolute_names: ("models.adapter_mismatch", "mine.zip"),
    windows_names: ("training.adapter_incomplete", NAMES[0]),
    twenty_thousand_files: ("training.adapter_ambiguous", "10,000 files"),
    the_same_name_twice: ("training.adapter_ambiguous", "2 adapters"),
    an_archive_in_an_archive: ("training.adapter_incomplete", NAMES[0]),
    a_pickle: ("training.adapter_pickled", NAMES[1]),
}
"""Fills an archive -> the code of the error and a value in its message."""


def with_a_password(content):
    """Set the flag of each entry that says that it is encrypted."""
    for start in (b"PK\x03\x04\x14\x00", b"PK\x01\x02\x14\x03\x14\x00"):
        content = content.replace(start + b"\x00", start + b"\x01")
    return content


def with_a_wrong_size(content):
    """Write a size of four gigabytes for the weights into the directory."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", 0xFFFFFFF0) + content[at + 28 :]


BROKEN = {
    with_a_password: ("training.adapter_zip_damaged", "mine.zip"),
    with_a_wrong_size: ("training.adapter_too_large", "4,295 MB"),
    lambda content: content[:-40]: ("training.adapter_zip_damaged", "mine.zip"),
    lambda content: content.replace(b"LORA", b"AROL"): ("training.adapter_zip_damaged", "mine.zip"),
    lambda content: b"PK\x03\x04" + bytes(1000): ("training.adapter_zip_damaged", "mine.zip"),
}
"""Damages an archive -> the code of the error and a value in its message."""
ROWS = [{"prompt": "a", "completion": "b"}] * 2


def peak_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_rejection(path, tmp_path, write, code, value):
    """Import an archive, and check the error, the memory used and the files written."""
    before = peak_kilobytes()
    with pytest.raises(UserError) as error:
        operations.import_adapter(str(tmp_path / "run"), str(path), str(write("rows.json", ROWS)))
    assert error.value.code == code
    assert value in str(error.value)
    assert len(str(error.value)) < 600
    assert "root:" not in str(error.value)
    assert peak_kilobytes() - before < 150_000
    assert not (tmp_path / "run").exists()
    canaries = (tmp_path / "canary", tmp_path.parent / "canary")
    assert not any(map(os.path.exists, ("/tmp/canary", "/tmp/adapter_config.json", *canaries)))


@pytest.mark.parametrize("fill", ZIPS, ids=lambda fill: fill.__name__)
@pytest.mark.sample(2)
def test_a_hostile_adapter_archive_is_bounded_and_stays_in_its_folder(fill, tmp_path, write):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        fill(archive)
    check_rejection(path, tmp_path, write, *ZIPS[fill])


@pytest.mark.parametrize("damage", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_adapter_archive_is_rejected(damage, tmp_path, write):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        adapter(archive)
    path = tmp_path / "mine.zip"
    path.write_bytes(damage(packed.getvalue()))
    check_rejection(path, tmp_path, write, *BROKEN[damage])


def test_there_are_at_least_twenty_archives():
    assert len(ZIPS) + len(BROKEN) + sum(case.big for case in CASES) >= 20
