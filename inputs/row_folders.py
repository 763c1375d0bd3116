"""Files of a plain folder of data: which belong to a subset and a split, by their names.

A subset is a folder inside; without one, the files are those in the folder itself and in `data/`. A file belongs
to the split that its name holds as a word (`test-00000-of-00001.parquet`, `math_train.jsonl`), else to `train`.
"""

import re
from collections import defaultdict
from difflib import get_close_matches
from pathlib import Path

from inputs.row_files import SUFFIXES, format_of

SPLIT_OF_WORD = {
    **{word: "train" for word in ("train", "training")},
    **{word: "test" for word in ("test", "testing", "eval", "evaluation")},
    **{word: "validation" for word in ("validation", "valid", "val", "dev")},
}


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
