"""Parts of a file or dataset from which one is read: sheets, tables, configurations, splits."""

import zipfile
from dataclasses import dataclass, replace
from typing import Literal

from peft_space.data.readers.archives import choose_files, find_tables
from peft_space.data.readers.excel import find_sheets
from peft_space.data.readers.file_type_and_encoding import check_file
from peft_space.data.readers.hub import find_splits, is_address, parse_address
from peft_space.data.table import kind_of_zip, split_part
from peft_space.errors import UserError


@dataclass(frozen=True)
class Menu:
    """Parts of one kind."""

    kind: Literal["sheet", "table", "configuration", "split"]
    chosen: str | None
    """The part that is read; None if the user has to choose."""
    data: dict[str, str]
    """Part -> what names it as data."""


def may_have_parts(data: object) -> bool:
    """Return True if `data` is the address of a dataset, or a file that is a zip archive.

    Workbooks are zip archives too.
    """
    if is_address(data):
        return True
    path, _ = split_part(str(data))
    return path.is_file() and zipfile.is_zipfile(path)


def find_parts(data: str) -> list[Menu]:
    """Return the menus of a file or a dataset on the Hub from which one part is read.

    Raises:
        UserError: the file or dataset cannot be read.
    """
    if is_address(data):
        return _of_dataset(data)
    path, part = split_part(data)
    check_file(path)
    if not zipfile.is_zipfile(path):
        return []
    if kind_of_zip(path.name, path) == ".xlsx":
        titles, first = find_sheets(path.name, path)
        return _menu("sheet", str(path), titles, part or first)
    with zipfile.ZipFile(path) as archive:
        tables = find_tables(archive)
        chosen = _table_of(path.name, archive, part, tables)
    return _menu("table", str(path), list(tables), chosen)


def _table_of(
    name: str, archive: zipfile.ZipFile, part: str, tables: dict[str, list[str]]
) -> str | None:
    """Return the table that is read, or None if it is not certain."""
    try:
        files = choose_files(name, archive, part, lambda note: None)
    except UserError:
        return None
    return next((title for title, own in tables.items() if set(files) == set(own)), None)


def _menu(
    kind: Literal["sheet", "table"], path: str, names: list[str], chosen: str | None
) -> list[Menu]:
    if len(names) < 2:
        return []
    return [Menu(kind, chosen, {name: f"{path}#{name}" for name in names})]


def _of_dataset(address: str) -> list[Menu]:
    dataset = parse_address(address)
    configs, config, splits = find_splits(address)
    chosen = dataset.split if dataset.split or "train" not in splits else "train"
    whole = replace(dataset, split=None)
    of_config = {name: replace(whole, config=name).address for name in configs}
    of_split = {name: replace(dataset, split=name).address for name in splits}
    menus = [Menu("configuration", config, of_config), Menu("split", chosen, of_split)]
    return [menu for menu in menus if len(menu.data) > 1]
