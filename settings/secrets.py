"""Refuses settings that hold a secret: the whole configuration is written to the run folder and shown to others.

Nothing here says a value: only its key.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

SECRET_WORD = re.compile(r"secret|passw(or)?d|passphrase|credential|api_?key|access_?key|private_?key|auth_?key")
TOKEN = re.compile(r"(^|_)(token|bearer|authorization)$")
TEXT_TOKEN = re.compile(
    r"^(bos|eos|pad|unk|sep|cls|mask|image|audio|video|stop|start|end|think|special|extra)_token$"
)
"""Tokens that a chat template takes are texts."""
LOGIN_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s@]+@")
SECRET_IN_URL = re.compile(r"://\S*[?&]([a-z_-]*(token|key|secret|password|signature)|sig)=", re.IGNORECASE)
KNOWN_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)")

ADVICE = "set it as an environment variable on the nodes instead"


def refuse_secrets(values: Mapping[Any, Any], own_names: Collection[str]) -> None:
    """ValueError naming the first key that looks like a secret's, or whose text does; `own_names` are no secrets.

    `values` are settings as they were given, before `${...}` is replaced.
    """
    for key, value in leaves(values):
        if value is None or isinstance(value, bool):
            continue
        if key.rpartition(".")[2] not in own_names and is_secret_name(key):
            raise ValueError(
                f"{key} looks like a secret, which every reader of the run folder would see; {ADVICE}"
            )
        if isinstance(value, str):
            _refuse_text(key, value)


def is_secret_name(key: str) -> bool:
    """Whether a dotted key, or the name of an environment variable, is like that of a secret."""
    parts = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower().replace("-", "_") for part in key.split(".")]
    is_token = TOKEN.search(parts[-1]) is not None and TEXT_TOKEN.fullmatch(parts[-1]) is None
    return is_token or any(SECRET_WORD.search(part) for part in parts)


def is_secret_text(text: str) -> bool:
    """Whether a text holds a login, or a key or token of a known shape."""
    return any(each.search(text) for each in (LOGIN_IN_URL, SECRET_IN_URL, KNOWN_SHAPE))


def _refuse_text(key: str, text: str) -> None:
    if is_secret_text(text):
        raise ValueError(f"{key} holds a login, a key or a token, which would be written down; {ADVICE}")
    for name in FROM_ENVIRONMENT.findall(text):
        if is_secret_name(name):
            raise ValueError(
                f"{key} takes {name} from the environment, and its value would be written down; leave it there"
            )


def leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values that are neither mappings nor lists."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from leaves(value, f"{key}.{index}")
    else:
        yield key, values
