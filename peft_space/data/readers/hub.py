"""A dataset on the Hugging Face Hub: from its address to the files of one split, on this machine.

The datasets library says which files those are; they are downloaded as they are and read as any other file is. Runs no code of theirs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import yaml

from peft_space import settings
from peft_space.errors import UserError
from peft_space.redaction import has_secret
from peft_space.runs.events import OnProgress

SCHEME = "hf://datasets/"
_ADDRESS = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?(?:\?(.*))?")
_EXAMPLE = f"Write it like {SCHEME}OWNER/NAME@REVISION?config=CONFIG&split=SPLIT, where all after NAME may be left out."


@dataclass(frozen=True)
class HubDataset:
    """Which rows of which dataset; None leaves the choice to the dataset."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @property
    def address(self) -> str:
        """How it is written wherever data can be named; `parse_address` reads it back."""
        chosen = {
            key: value for key, value in (("config", self.config), ("split", self.split)) if value
        }
        return (
            SCHEME
            + self.name
            + (f"@{self.revision}" if self.revision else "")
            + (f"?{urlencode(chosen)}" if chosen else "")
        )


def is_address(data: Any) -> bool:
    """Whether `data` names a dataset on the Hub."""
    return isinstance(data, str) and data.startswith("hf:")


def parse_address(address: str) -> HubDataset:
    """The dataset that an address names. Raises UserError where it is none."""
    match = _ADDRESS.fullmatch(address.removeprefix(SCHEME)) if address.startswith(SCHEME) else None
    chosen = dict(parse_qsl(match[3] or "")) if match else {}
    if (
        match is None
        or ".." in match[0]
        or has_secret(address)
        or set(chosen) - {"config", "split"}
    ):
        raise UserError("todo", f"{address!r} is no address of a dataset on the Hub. {_EXAMPLE}")
    return HubDataset(match[1], match[2], chosen.get("config"), chosen.get("split"))


def download(
    address: str, suffixes: tuple[str, ...], on_progress: OnProgress
) -> tuple[str, list[Path]]:
    """What the rows are called, with the commit they are of, and the files they are in.

    Args:
        suffixes: how the names of files end that can be read.

    Raises UserError where there is no such dataset, configuration or split, or its files are of another kind or too large.
    """
    import httpx2
    from huggingface_hub import errors

    wanted = parse_address(address)
    try:
        return _download(wanted, suffixes, on_progress)
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise UserError(
            "todo", f"The dataset {wanted.name} cannot be loaded: {_reason(wanted, error)}."
        ) from error


def _download(
    wanted: HubDataset, suffixes: tuple[str, ...], on_progress: OnProgress
) -> tuple[str, list[Path]]:
    from datasets import get_dataset_config_names, load_dataset_builder
    from huggingface_hub import HfApi, hf_hub_download

    on_progress(0.0, f"Asking the Hub for {wanted.name}")
    pinned = (
        HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
    )  # so that what is looked at is what is loaded
    _refuse_files_elsewhere(wanted.name, pinned)
    configs = get_dataset_config_names(wanted.name, revision=pinned)
    config = _one_of(configs, wanted.config, "default", wanted, "configuration")
    found = load_dataset_builder(wanted.name, config, revision=pinned).config.data_files or {}
    split = _one_of(sorted(map(str, found)), wanted.split, "train", wanted, "split")
    places = [
        re.fullmatch(rf"{re.escape(SCHEME + wanted.name)}@([0-9a-f]+)/(.+)", place)
        for place in found[split]
    ]
    if not all(places):  # such as a folder on this machine that happens to have the dataset's name
        raise UserError(
            "todo",
            f"The dataset {wanted.name} keeps its rows elsewhere than in its own files. Download them and bring the files.",
        )
    commit, paths = places[0][1], [place[2] for place in places]
    if others := [
        path for path in paths if not path.lower().removesuffix(".gz").endswith(suffixes)
    ]:
        raise UserError(
            "todo",
            f"The dataset {wanted.name} is in files like {others[0]}, which are not read. Bring one in {', '.join(suffixes)}.",
        )
    sizes = HfApi().get_paths_info(wanted.name, paths, revision=commit, repo_type="dataset")
    total = sum(file.size for file in sizes) / 1e6
    if total > settings.max_file_megabytes():
        raise UserError(
            "todo",
            f"The split {split} of {wanted.name} has {total:,.1f} MB, the limit is {settings.max_file_megabytes():g} MB. "
            "Choose a smaller split, or raise PEFT_SPACE_MAX_FILE_MB.",
        )
    files = []
    for number, path in enumerate(paths):
        on_progress(number / len(paths), f"Downloading {total:,.1f} MB of {wanted.name}")
        files.append(Path(hf_hub_download(wanted.name, path, revision=commit, repo_type="dataset")))
    return (
        f"{wanted.name}@{commit[:7]} ({split if config == 'default' else f'{config}, {split}'})",
        files,
    )


def _refuse_files_elsewhere(name: str, commit: str | None) -> None:
    """Raise UserError where a dataset says that its files are elsewhere: the datasets library would ask whatever address stands there."""
    from huggingface_hub import HfApi, hf_hub_download

    for file in HfApi().get_paths_info(
        name, [_CARD, _CONFIG], revision=commit, repo_type="dataset"
    ):
        text = Path(
            hf_hub_download(name, file.path, revision=commit, repo_type="dataset")
        ).read_text(encoding="utf-8", errors="replace")
        header = (
            re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
            if file.path == _CARD
            else re.match(r"(.*)", text, re.DOTALL)
        )
        try:
            told = yaml.safe_load(header[1]) if header else None
        except (yaml.YAMLError, RecursionError):
            continue  # the library says so
        if any(
            _ELSEWHERE.search(path)
            for path in _texts(told.get("configs") if isinstance(told, dict) else None)
        ):
            raise UserError(
                "todo",
                f"The dataset {name} keeps its rows elsewhere than in its own files. Download them and bring the files.",
            )


_CARD, _CONFIG = "README.md", ".huggingface.yaml"
_ELSEWHERE = re.compile(r"://|::|^[/\\~]|(^|/)\.\.(/|$)")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _one_of(
    there_are: list[str], wanted: str | None, usual: str, dataset: HubDataset, what: str
) -> str:
    """The configuration or split that is wanted; else the only one, or the usual one."""
    if wanted in there_are:
        return str(wanted)
    known = ", ".join(there_are[:20]) + (" …" if len(there_are) > 20 else "")
    if wanted:
        raise UserError(
            "todo", f"The dataset {dataset.name} has no {what} {wanted!r}. Choose one of {known}."
        )
    if usual in there_are or len(there_are) == 1:
        return usual if usual in there_are else there_are[0]
    raise UserError(
        "todo",
        f"The dataset {dataset.name} has several {what}s, and it is not said which. Choose one of {known}.",
    )


def _reason(dataset: HubDataset, error: BaseException) -> str:
    """Why a dataset cannot be loaded. The datasets library reports some causes in text only."""
    from datasets.exceptions import DatasetNotFoundError

    from peft_space.compat.huggingface_hub import explain_hub_error, unreachable

    name, revision = dataset.name, dataset.revision
    failure = explain_hub_error(error, name, "dataset", revision)
    if "gated" in str(error) and (failure is None or failure.code != "hub.not_found"):
        return (
            "its authors require an agreement first. Accept it on the dataset's page on the Hub "
            "and sign in, then try again"
        )
    if str(error).startswith("Revision"):
        return f"it has no revision {revision!r}. Check the branch, tag or commit"
    if isinstance(error, DatasetNotFoundError):
        return f"the Hub has no dataset {name!r}, or it is private. Check the spelling, or sign in"
    if failure is None and isinstance(error, FileNotFoundError):
        return "it has no data files that the app recognizes. Download the files and upload them"
    return (failure or unreachable(error)).reason
