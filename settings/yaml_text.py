"""YAML as it comes from people: read with limits, so that no text takes the memory or the stack of this process.

Ten lines of aliases to aliases stand for billions of values, and a few thousand brackets overflow the stack.
"""

from pathlib import Path

import yaml

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 40


def read_yaml_text(path: str, field: str) -> str:
    """The text of a YAML file with few enough values; ValueError naming `field` and the file if it is none."""
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
    """ValueError beginning with `what` if the text is no YAML, or stands for too much."""
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
    """Values that a node stands for, aliases counted each time, and its levels; RecursionError if too deep."""
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
