"""Reads a settings file together with the files it extends, with limits on size and depth.

    # configs/qwen3/0.6b_from_4b_one_gpu.yaml
    extends: [0.6b_from_4b.yaml, ../parts/one_gpu.yaml]
    run_name: qwen3-0.6b-from-4b-one-gpu

`extends` is a path or a list of paths, relative to the file that contains it. Later files override earlier ones,
and the file's own keys override all of them; mappings are merged key by key, lists are replaced.

No YAML may exhaust this process's memory or stack: ten lines of aliases to aliases expand to billions of values,
and a few thousand brackets overflow the stack.
"""

from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from yaml import YAMLError

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 40
MAX_FILES = 50
"""Maximum number of files in one configuration, each counted as often as it is extended."""


def read_settings_file(path: str | None) -> Any:
    """The merged configuration of a file, unresolved, or an empty one; ValueError naming a wrong file."""
    return OmegaConf.create({}) if path is None else _Reader().read(path, "--config", ())


def files_of_settings(path: str | None) -> list[Path]:
    """The settings file and all that it extends, as resolved paths, each as often as it is read."""
    reader = _Reader()
    if path is not None:
        reader.read(path, "--config", ())
    return reader.files


class _Reader:
    """Reads the files of one configuration and counts them, so that repeated extension ends."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def read(self, path: str, field: str, above: tuple[Path, ...]) -> Any:
        """The configuration of a file; `above` are the files that extend it, outermost first."""
        real = Path(path).resolve()
        if real in above:
            circle = " -> ".join(each.name for each in (*above[above.index(real) :], real))
            raise ValueError(f"{field}: the files extend each other in a circle: {circle}")
        self.files.append(real)
        if len(self.files) > MAX_FILES:
            raise ValueError(f"{field}: a configuration extends at most {MAX_FILES} files")
        own = _read_one(path, field)
        merged = OmegaConf.create({})
        for extended in _taken_paths(own, path, field):
            below = self.read(str(Path(path).parent / extended), f"{path}: extends", (*above, real))
            merged = _merged(merged, below, path)
        return _merged(merged, own, path)


def _read_one(path: str, field: str) -> Any:
    text = read_yaml_text(path, field)
    try:
        loaded = OmegaConf.load(StringIO(text))
    except OSError as error:  # what OmegaConf raises for a lone number
        raise ValueError(f"{field}: {path} must hold a mapping of settings: {error}") from error
    except (YAMLError, ValueError) as error:  # ValueError: an invalid date, an integer with too many digits
        raise ValueError(f"{field}: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(loaded):
        raise ValueError(f"{field}: {path} must hold a mapping of settings")
    return loaded


def _taken_paths(own: Any, path: str, field: str) -> list[str]:
    """Remove `extends` from a file's configuration and return its paths."""
    values: Any = OmegaConf.to_container(own, resolve=False)
    if "extends" not in values:
        return []
    given = values["extends"]
    del own["extends"]
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not paths or not all(isinstance(each, str) and each for each in paths):
        raise ValueError(f"{field}: {path}: extends must be a path or a list of paths, got {given!r:.120}")
    if wrong := next((each for each in paths if "\0" in each or "${" in each), None):
        raise ValueError(f"{field}: {path}: extends must be a path as it is, got {wrong!r:.120}")
    return paths


def _merged(one: Any, other: Any, path: str) -> Any:
    try:
        return OmegaConf.merge(one, other)
    except TypeError as error:  # a list where a mapping is given, or the other way round
        raise ValueError(f"--config: {path} and what it extends cannot be merged: {error}") from error


def read_yaml_text(path: str, field: str) -> str:
    """The text of a YAML file within the limits; ValueError naming `field` and the file otherwise."""
    file = Path(path)
    try:
        if not file.is_file():
            raise ValueError(f"{field}: no such file: {path}")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{field}: {path} has {size} bytes; a configuration has at most {MAX_BYTES}")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{field}: {path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise ValueError(f"{field}: {path} cannot be read: {error.strerror}") from error
    check_yaml(text, f"{field}: {path}")
    return text


def check_yaml(text: str, what: str) -> None:
    """ValueError starting with `what` if the text is not YAML or exceeds the limits."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        num_values = 0 if root is None else _size(root, {}, 0)[0]
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is nested more than {MAX_DEPTH} levels deep") from error
    if num_values > MAX_VALUES:
        raise ValueError(f"{what} stands for {num_values} values; a configuration has at most {MAX_VALUES}")


def _size(node: yaml.Node, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Number of values in a node, with every alias expanded, and its depth; RecursionError if too deep."""
    if id(node) not in known:
        if depth > MAX_DEPTH:
            raise RecursionError
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        sizes = [_size(child, known, depth + 1) for child in below]
        known[id(node)] = 1 + sum(num for num, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
    if depth + known[id(node)][1] > MAX_DEPTH:
        raise RecursionError
    return known[id(node)]
