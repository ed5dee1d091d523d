"""Downloads the files of one split of a dataset on the Hugging Face Hub; runs no code of it."""

import contextlib
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
_EXAMPLE = (
    f"Write it as {SCHEME}OWNER/NAME@REVISION?config=CONFIG&split=SPLIT; "
    "everything after NAME is optional."
)


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset. None selects the default revision, configuration or split."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @property
    def address(self) -> str:
        """The form that users write; `parse_address` reads it."""
        choices = {"config": self.config, "split": self.split}
        query = urlencode({key: value for key, value in choices.items() if value})
        revision = f"@{self.revision}" if self.revision else ""
        return SCHEME + self.name + revision + (f"?{query}" if query else "")


def is_address(data: Any) -> bool:
    """Return True if `data` names a dataset on the Hub rather than a file."""
    return isinstance(data, str) and data.startswith("hf:")


def parse_address(address: str) -> HubDataset:
    """Return the dataset that an address names.

    Raises:
        UserError: the address has another form.
    """
    match = _ADDRESS.fullmatch(address.removeprefix(SCHEME)) if address.startswith(SCHEME) else None
    query = dict(parse_qsl(match[3] or "")) if match else {}
    is_safe = match is not None and ".." not in match[0] and not has_secret(address)
    if match is None or not is_safe or set(query) - {"config", "split"}:
        message = f"{address!r} is not the address of a dataset on the Hub. {_EXAMPLE}"
        raise UserError("data.invalid_hub_address", message)
    return HubDataset(match[1], match[2], query.get("config"), query.get("split"))


def download(
    address: str, suffixes: tuple[str, ...], on_progress: OnProgress
) -> tuple[str, list[Path]]:
    """Download the files of a split.

    Args:
        address: as `HubDataset.address`.
        suffixes: endings of supported file names.
        on_progress: receives the progress of the download.

    Returns:
        A name with the commit, and the files in the local cache.

    Raises:
        UserError: the dataset, configuration or split does not exist, or its files are not
            supported or too large.
    """
    dataset = parse_address(address)
    with _hub_errors(dataset):
        return _download(dataset, suffixes, on_progress)


def find_splits(address: str) -> tuple[list[str], str | None, list[str]]:
    """Return the configurations of a dataset, the one that is read, and the splits of that.

    If there are several configurations and none is chosen or the default, the configuration is None
    and the splits are empty.

    Raises:
        UserError: the dataset does not exist, or the Hub does not answer.
    """
    dataset = parse_address(address)
    with _hub_errors(dataset):
        listing = _list(dataset, lambda share, what: None)
        try:
            config, files = listing.files_of(dataset.config)
        except UserError:
            return listing.configs, None, []
        return listing.configs, config, sorted(files)


@contextlib.contextmanager
def _hub_errors(dataset: HubDataset) -> Iterator[None]:
    """Raise UserError if the Hub does not answer, or has no such dataset."""
    import httpx2
    from huggingface_hub import errors

    from peft_space.compat.huggingface_hub import ignore_hub_if_unreachable

    if failure := ignore_hub_if_unreachable():
        message = f"The dataset {dataset.name} cannot be loaded: {failure.reason}."
        raise UserError("data.hub_dataset_unavailable", message)
    try:
        yield
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        message = f"The dataset {dataset.name} cannot be loaded: {_reason(dataset, error)}."
        raise UserError("data.hub_dataset_unavailable", message) from error


@dataclass(frozen=True)
class _Listing:
    """A commit of a dataset and its configurations."""

    name: str
    commit: str | None
    configs: list[str]

    def files_of(self, config: str | None) -> tuple[str, dict[str, list[str]]]:
        """Return the chosen or default configuration, and split -> addresses of its files.

        Raises:
            UserError: the configuration does not exist, or none was chosen and none is the default.
        """
        from datasets import load_dataset_builder

        config = _choose(self.configs, config, "default", self.name, "configuration")
        builder = load_dataset_builder(self.name, config, revision=self.commit)
        files = builder.config.data_files or {}
        return config, {str(split): list(addresses) for split, addresses in files.items()}


def _list(dataset: HubDataset, on_progress: OnProgress) -> _Listing:
    from datasets import get_dataset_config_names
    from huggingface_hub import HfApi

    name = dataset.name
    on_progress(0.0, f"Asking the Hub for {name}")
    # all later requests read the same commit
    commit = HfApi().dataset_info(name, revision=dataset.revision).sha
    _check_no_external_files(name, commit)
    return _Listing(name, commit, get_dataset_config_names(name, revision=commit))


def _download(
    dataset: HubDataset, suffixes: tuple[str, ...], on_progress: OnProgress
) -> tuple[str, list[Path]]:
    from huggingface_hub import hf_hub_download

    name = dataset.name
    config, data_files = _list(dataset, on_progress).files_of(dataset.config)
    split = _choose(sorted(data_files), dataset.split, "train", name, "split")
    pinned_commit, paths = _repository_paths(name, data_files[split], suffixes)
    megabytes = _check_size(f"The split {split} of {name}", name, paths, pinned_commit)
    files = []
    for number, path in enumerate(paths):
        on_progress(number / len(paths), f"Downloading {megabytes:,.1f} MB of {name}")
        file = hf_hub_download(name, path, revision=pinned_commit, repo_type="dataset")
        files.append(Path(file))
    part = split if config == "default" else f"{config}, {split}"
    return f"{name}@{pinned_commit[:7]} ({part})", files


def _repository_paths(
    name: str, addresses: list[str], suffixes: tuple[str, ...]
) -> tuple[str, list[str]]:
    """Return the commit and the paths in the repository of the files of a split."""
    pattern = re.compile(rf"{re.escape(SCHEME + name)}@([0-9a-f]+)/(.+)")
    matches = [match for address in addresses if (match := pattern.fullmatch(address))]
    if len(matches) < len(addresses):  # such as a local folder with the name of the dataset
        raise _external_files(name)
    paths = [match[2] for match in matches]
    for path in paths:
        if not path.lower().removesuffix(".gz").endswith(suffixes):
            raise UserError(
                "data.unsupported_file_type",
                f"The dataset {name} has files such as {path}, which are not supported. "
                f"Use a dataset with {', '.join(suffixes)}.",
            )
    return matches[0][1], paths


def _check_size(what: str, name: str, paths: list[str], commit: str) -> float:
    """Return the size of the files in MB. Raise UserError if it exceeds the limit."""
    from huggingface_hub import HfApi

    infos = HfApi().get_paths_info(name, paths, revision=commit, repo_type="dataset")
    megabytes = sum(getattr(info, "size", 0) for info in infos) / 1e6
    limit = settings.max_file_megabytes()
    if megabytes > limit:
        raise UserError(
            "data.file_too_large",
            f"{what} has {megabytes:,.1f} MB; the limit is {limit:g} MB. "
            "Choose a smaller split, or raise PEFT_SPACE_MAX_FILE_MB.",
        )
    return megabytes


_CARD, _CONFIG = "README.md", ".huggingface.yaml"
_EXTERNAL = re.compile(r"://|::|^[/\\~]|(^|/)\.\.(/|$)")


def _external_files(name: str) -> UserError:
    return UserError(
        "data.external_files",
        f"The dataset {name} stores its rows outside its own repository. "
        "Download them and use the files.",
    )


def _check_no_external_files(name: str, commit: str | None) -> None:
    """Raise UserError if a dataset refers to other addresses, which `datasets` would request."""
    from huggingface_hub import HfApi, hf_hub_download

    files = HfApi().get_paths_info(name, [_CARD, _CONFIG], revision=commit, repo_type="dataset")
    for file in files:
        path = Path(hf_hub_download(name, file.path, revision=commit, repo_type="dataset"))
        text = path.read_text(encoding="utf-8", errors="replace")
        if file.path == _CARD:
            header = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
            text = header[1] if header else ""
        try:
            metadata = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError):
            continue  # `datasets` reports it
        configs = metadata.get("configs") if isinstance(metadata, dict) else None
        if any(_EXTERNAL.search(path) for path in _strings_in(configs)):
            raise _external_files(name)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(inner)


def _choose(options: list[str], choice: str | None, default: str, name: str, what: str) -> str:
    """Return the user's choice, or the default, or the only option.

    Raises:
        UserError: the option does not exist, or there are several and no default.
    """
    if choice in options:
        return str(choice)
    listed = ", ".join(options[:20]) + (" …" if len(options) > 20 else "")
    if choice:
        message = f"The dataset {name} has no {what} {choice!r}. Choose one of {listed}."
        raise UserError("data.unknown_split", message)
    if default in options or len(options) == 1:
        return default if default in options else options[0]
    message = f"The dataset {name} has more than one {what}. Choose one of {listed}."
    raise UserError("data.ambiguous_split", message)


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
