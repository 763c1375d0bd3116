"""Data set -> rows: from a file, a folder, a folder saved by `datasets`, or the hub.

    for place, row in open_data("openai/gsm8k", subset="main", split="test", field="evaluation.paths").rows: ...

`row_files.py` reads files, with errors that name file and line; the `datasets` library reads what it saved or
downloads, and its offline mode (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE) is respected.

In a plain folder, a subset is a sub-folder; without one, the files are those in the folder itself and in `data/`.
A file belongs to the split named by a word in its name (`test-00000-of-00001.parquet`, `math_train.jsonl`), else
to `train`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from inputs.row_files import SUFFIXES, ArrowRow, Row, file_rows, format_of
from settings.exit_codes import unbroken

HUB_TIMEOUT_S = 20.0
"""Maximum time to wait for the hub's first answer."""
SPLIT_OF_WORD = {
    **{word: "train" for word in ("train", "training")},
    **{word: "test" for word in ("test", "testing", "eval", "evaluation")},
    **{word: "validation" for word in ("validation", "valid", "val", "dev")},
}


@dataclass(frozen=True)
class OpenedRows:
    """A data set that could be opened: its rows, each with its place (`path:3`), and the files they are in."""

    rows: Iterator[tuple[str, Row]]
    files: list[str]  # empty if nothing of them is stored here


def open_data(
    path: str, *, subset: str | None = None, split: str = "train", revision: str | None = None, field: str
) -> OpenedRows:
    """Open a data set, whose rows come in their order; `field` names the setting in errors.

    `subset` and `split` choose within a folder or a hub data set; a single file has neither, and they are ignored.
    `revision` is the hub's. ValueError with one line if it cannot be opened, and, while rows are taken, for the
    first broken one.
    """
    kind = _kind(path, field)
    if kind == "file":
        return OpenedRows(_readable(file_rows(path), path, field), [path])
    if kind == "folder":
        files = files_of_split(Path(path), subset, split, field)
        return OpenedRows(_readable(_rows_of(files, field), path, field), files)
    if kind == "saved":
        found = _saved(path, split, field)
    else:
        if kind == "hub":
            _check_hub(path, revision, field)
        found = _built(path, subset, split, revision, field)
    return OpenedRows(_numbered(found, path, field), [str(file["filename"]) for file in found.cache_files])


def _kind(path: str, field: str) -> str:
    """What a path is: a `file`, a `folder` of files, a folder `saved` by `datasets`, a folder with a `card` that
    says what is in it, or else a name of the `hub`."""
    place = Path(path)
    try:
        if path and place.is_dir():
            if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
                return "saved"
            return "card" if _has_card(place) else "folder"
        if path and place.is_file():
            return "file"
    except OSError as error:
        raise ValueError(f"{field}: {path} cannot be read: {error.strerror}") from error
    if _is_hub_name(path):
        return "hub"
    raise ValueError(f"{field}: no such file: {path!r} (a data set of the hub is named owner/name)")


def _has_card(folder: Path) -> bool:
    """Whether a README says which files make up which subset, as those of the hub do."""
    path = folder / "README.md"
    start = path.read_bytes()[:100_000] if path.is_file() else b""
    return start.startswith(b"---") and b"\nconfigs:" in start.partition(b"\n---")[0]


def _is_hub_name(path: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return path.count("/") == 1 and format_of(path) is None


def _check_hub(path: str, revision: str | None, field: str) -> None:
    """Ask the hub once, with a time-out; the library itself tries again and again."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if config.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(path, revision=revision, timeout=HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise ValueError(f"{field}: the hub gives {path} only to those who were granted access") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{field}: {path} has no revision {revision!r} in the hub") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{field}: no such file or folder: {path}, and the hub has no such data set, or not for you"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{field}: no such file or folder: {path}, and the hub cannot be asked: {unbroken(error)} (with "
            "HF_HUB_OFFLINE=1, a data set that was downloaded before is read from the cache)"
        ) from error


def _built(path: str, subset: str | None, split: str, revision: str | None, field: str) -> Any:
    """A split of a data set that `datasets` can read; it keeps a copy in its cache."""
    from datasets import config, disable_progress_bars, load_dataset_builder

    disable_progress_bars()
    try:
        builder = load_dataset_builder(path, name=subset, revision=revision)
        names = [str(name) for name in builder.info.splits or builder.config.data_files or {}]
        check_split(split, names, path, field)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except Exception as error:
        if config.HF_HUB_OFFLINE and isinstance(error, ConnectionError):
            raise ValueError(
                f"{field}: no such file or folder: {path}; as a data set of the hub it is not in the cache, and "
                f"offline mode is on: {unbroken(error)}"
            ) from error
        raise ValueError(f"{field}: {path} cannot be read: {unbroken(error.__cause__ or error)}") from error


def _saved(path: str, split: str, field: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(path)
    except Exception as error:
        raise ValueError(f"{field}: {path} cannot be read: {unbroken(error)}") from error
    if isinstance(found, DatasetDict):
        check_split(split, [str(name) for name in found], path, field)
        return found[split]
    return found


def _rows_of(files: list[str], field: str) -> Iterator[tuple[str, Row]]:
    try:
        for file in files:
            yield from file_rows(file)
    except ValueError as error:  # the file may be none that was meant
        raise ValueError(f"{field}: {error}") from error


def _readable(rows: Iterator[tuple[str, Row]], path: str, field: str) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows
    except OSError as error:
        raise ValueError(f"{field}: {path} cannot be read: {error.strerror or unbroken(error)}") from error


def _numbered(rows: Iterable[Row], path: str, field: str) -> Iterator[tuple[str, Row]]:
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{path}:{number}", ArrowRow(row)
    except Exception as error:
        raise ValueError(f"{field}: {path} cannot be read: {unbroken(error)}") from error


def files_of_split(folder: Path, subset: str | None, split: str, field: str) -> list[str]:
    """Files of a split in the order of their names; ValueError naming `field` if there is none."""
    place = folder if subset is None else _subset(folder, subset, field)
    inside = [*place.iterdir(), *((place / "data").iterdir() if (place / "data").is_dir() else ())]
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for path in inside if format_of(path.name) and path.is_file()):
        files[_split_of(path.name)].append(str(path))
    if not files:
        raise ValueError(f"{field}: the folder {place} holds no file that ends in {', '.join(SUFFIXES)}")
    split = SPLIT_OF_WORD.get(split, split)
    check_split(split, sorted(files), str(place), field)
    return files[split]


def check_split(split: str, names: list[str], path: str, field: str) -> None:
    """ValueError naming the nearest unless `split` is one of these."""
    if names and split not in names:
        nearest = get_close_matches(split, names, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{field}: {path} has no split {split!r}, only {', '.join(names)} (nearest valid: {nearest})"
        )


def _subset(folder: Path, subset: str, field: str) -> Path:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if subset in names:
        return folder / subset
    nearest = get_close_matches(subset, names, n=1, cutoff=0.0)
    raise ValueError(
        f"{field}: {folder} has no subset {subset!r}, which would be a folder inside (nearest valid: "
        f"{nearest[0] if nearest else 'none'})"
    )


def _split_of(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), "train")
