"""Any configuration file and any command line either works or is refused with one clear line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from commands.compare.plan import CompareConfig
from commands.plan.plan_config import PlanConfig
from settings.exit_codes import BAD_INPUT
from settings.load import _dotted_keys
from settings.run import RunConfig
from tests.examples import examples
from tests.unit.conftest import MODELS, ROOT
from tests.unit.fuzzing import DEAD, arguments_of, check, near, refusal, texts, values, with_value

KEYS = [key for key in _dotted_keys(RunConfig) if key != "cluster.address"]
TREE = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
COMPARISON = {"base": str(ROOT / "configs" / "demo.yaml"), "objectives": [{"label": "a"}, {"label": "b"}]}
QUICK = {"simulation": {"responses": 64, "steps": 1}, "overrides": {"batch_size": 8, "max_steps": 4}}
PLAN = {"base": COMPARISON["base"], "models": {"student": {"billions": 1}, "teacher": {"billions": 4}}} | QUICK


@pytest.fixture(scope="module", autouse=True)
def no_hub() -> Iterator[None]:
    """Names that look like one of the hub's are not looked up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing may be written to."""
    folder = tmp_path_factory.mktemp("fuzz")
    arguments_of(folder)
    return folder


def file_of(folder: Path, content: bytes | dict[Any, Any]) -> str:
    """A configuration file of these bytes or values."""
    path = folder / "given.yaml"
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return str(path)


def bomb(levels: int, width: int) -> bytes:
    """YAML whose aliases stand for width ** levels values."""
    rows = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(rows).encode()


STRANGE = {
    "an alias bomb": bomb(9, 9),
    "a chain of aliases": bomb(60, 1),
    "a circle": b"a: &a [*a]",
    "deep brackets": b"a: " + b"[" * 5000,
    "deep braces": b"{a: " * 3000,
    "deep lists": b"a: " + b"[" * 60 + b"]" * 60,
    "a key twice": b"seed: 1\nseed: 2\n",
    "a number": b"42",
    "a list": b"- 1",
    "a text": b"hello",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a python object": b"seed: !!python/object/apply:os.system ['touch written']",
    "no UTF-8": b"seed: \xff\xfe",
    "UTF-16": "seed: 1".encode("utf-16"),
    "NUL": b"run_name: \x00",
    "a long number": b"seed: " + b"9" * 5000,
    "a long float": b"learner: {eps: 1e99999}",
    "a date that is none": b"seed: 2024-13-45",
    "binary": b"seed: !!binary '?'",
    "a set": b"seed: !!set {a}",
    "keys of other types": b"{1: 2, null: 3, true: 4, 1.5: 6}",
    "a list as a key": b"? [a, b]\n: 1",
    "an empty key": b"'': 1",
    "interpolation of itself": b"run_name: ${run_name}",
    "interpolation of the whole": b"data: {template_arguments: {a: '${data}'}}",
    "a resolver": b"run_name: ${oc.create:[1]}",
    "a surrogate": b'data: {system_prompt: "\\ud800"}',
    "tabs": b"seed:\t\t- 1\n\t- 2",
    "a merge of nothing": b"<<: 1",
    "too large": b"#" * 2_000_000,
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_strange_yaml_is_refused(folder: Path, text: bytes) -> None:
    assert refusal(arguments_of(folder, config=file_of(folder, text)), folder).startswith("error: ")
    assert not Path("written").exists()


@given(text=st.binary(max_size=60))
@examples(20)
def test_random_bytes_are_a_configuration_or_refused(folder: Path, text: bytes) -> None:
    check(arguments_of(folder, config=file_of(folder, text)), folder)


@given(text=st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#,?\n 1.\t\\$<="), max_size=40))
@examples(20)
def test_random_punctuation_is_a_configuration_or_refused(folder: Path, text: str) -> None:
    check(arguments_of(folder, config=file_of(folder, text.encode())), folder)


@given(changes=st.lists(st.tuples(near(KEYS), values), min_size=1, max_size=3))
@examples(20)
def test_a_configuration_with_any_values_at_any_keys_works_or_is_refused(
    folder: Path, changes: list[tuple[str, Any]]
) -> None:
    tree = TREE
    for key, value in changes:
        tree = with_value(tree, key, value)
    line = ["train", "--dry-run", "--config", file_of(folder, tree), "--evaluation.data_path=null"]
    given_paths = {key for key, _ in changes}
    paths = {"data.train_path": folder / "train.jsonl", "runs_path": folder / "runs"}
    paths |= {f"{role}.model_path": MODELS / role for role in ("student", "teacher")}
    check([*line, *(f"--{key}={path}" for key, path in paths.items() if key not in given_paths)], folder)


@given(changes=st.lists(st.tuples(near(KEYS), texts), min_size=1, max_size=3), joined=st.booleans())
@example(changes=[("seed", "9" * 5000)], joined=True)
@example(changes=[("learner.betas", "[" * 5000)], joined=True)
@example(changes=[("learner.betas", "\ud800")], joined=True)
@example(changes=[("run_name", "\udcff")], joined=True)
@examples(20)
def test_any_options_work_or_are_refused(folder: Path, changes: list[tuple[str, str]], joined: bool) -> None:
    options = [[f"--{key}={text}"] if joined else [f"--{key}", text] for key, text in changes]
    check(arguments_of(folder, *(word for option in options for word in option)), folder)


WORDS = st.one_of(
    st.sampled_from(
        ["--config", "--dry-run", "--json", "--watch", "--resume", "--resume=auto", "--run", "--model"]
    ),
    st.sampled_from(
        ["--results-only", "--log-level", "--log-level=debug", "--", "-", "-x", "--rollout=2", "--teacher"]
    ),
    st.sampled_from(["--runs-path", "/dev/null", ".", "--seed", "-1", "configs/demo.yaml", "configs", "--help"]),
    texts,
)


@given(
    command=st.sampled_from(["train", "eval", "compare", "plan", "", "trian", "-x"]),
    line=st.lists(WORDS, max_size=5),
)
@examples(20)
def test_any_command_line_works_or_is_refused(folder: Path, command: str, line: list[str]) -> None:
    # A command without a valid configuration never gets as far as to start anything.
    check([command, *line], folder)


@given(command=st.sampled_from(["scale", "status", "stop"]), line=st.lists(WORDS, max_size=5))
@examples(20)
def test_any_command_to_a_run_that_is_not_there_is_refused(folder: Path, command: str, line: list[str]) -> None:
    if "--help" not in line:
        assert check([command, *line, f"--address={DEAD}", "--run=x"], folder) == BAD_INPUT


@given(key=near(list(_dotted_keys(CompareConfig))), value=values)
@example(key="base", value=str(ROOT / "configs"))
@example(key="runs_path", value="/dev/null")
@example(key="objectives", value=[{"label": "../../x", "settings": {"run_name": "y"}}])
@example(key="objectives", value=[{"label": "x" * 200}])
@examples(20)
def test_any_comparison_works_or_is_refused(folder: Path, key: str, value: Any) -> None:
    path = file_of(folder, with_value(COMPARISON | {"runs_path": str(folder / "c")}, key, value))
    check(["compare", "--config", path, "--dry-run"], folder)


@given(key=near(list(_dotted_keys(PlanConfig))), value=values)
@example(key="from_run", value="/dev")
@examples(15)
def test_any_plan_works_or_is_refused(folder: Path, key: str, value: Any) -> None:
    check(["plan", "--config", file_of(folder, with_value(PLAN, key, value)), "--json"], folder)
