"""`launch.py submit` without Ray: what is refused before anything is sent, and what would be sent."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

import launch
from commands.checks import load_checked
from commands.parser import build_parser
from commands.submit.command import build_request, check_options
from commands.submit.ray_jobs import find_package, path_in_package
from commands.submit.request import Request, read_environment
from settings.exit_codes import BAD_INPUT, FINISHED

ROOT = Path(__file__).resolve().parents[2]
DEMO = ["submit", "--config", str(ROOT / "configs" / "demo.yaml"), "--runs-path", "/shared/runs"]

Submit = Callable[..., str]


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.fixture
def refused(token: None, capsys: pytest.CaptureFixture[str]) -> Submit:
    """Submit the demo with more options; the error's only line."""

    def run(*options: str, base: Sequence[str] = DEMO) -> str:
        assert launch.main([*base, *options]) == BAD_INPUT
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.strip().splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


def request_of(*options: str) -> Request:
    """The request of a command line that is valid."""
    arguments, rest = build_parser(None).parse_known_args([*DEMO, *options])
    check_options(arguments, rest)
    return build_request(arguments, rest)


# -- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "nearest"),
    [
        ("ray://head:10001", "http://head:8265"),
        ("10.0.0.1:6379", "http://10.0.0.1:8265"),
        ("head", "http://head:8265"),
        ("auto", "http://127.0.0.1:8265"),
    ],
)
def test_an_address_that_is_not_the_jobs_api_is_refused_with_the_right_form(
    refused: Submit, address: str, nearest: str
) -> None:
    assert refused("--address", address) == (
        f"--address must be that of Ray's jobs API, http://HOST:8265, got {address!r} (nearest valid: {nearest})"
    )


def test_an_address_of_the_environment_is_checked_too(refused: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:6379")
    assert refused().startswith("RAY_API_SERVER_ADDRESS must be that of Ray's jobs API")


def test_no_answer_is_one_line_within_seconds(refused: Submit) -> None:
    assert refused("--address", "http://127.0.0.1:9") == (
        "--address: no jobs API of a Ray cluster answers at http://127.0.0.1:9"
    )


def test_without_a_token_nothing_is_sent(refused: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    reset_auth_token_state()  # Ray keeps the token of the first call
    assert refused().startswith("no token for the cluster: the token is read from RAY_AUTH_TOKEN, else")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--objective.alphas=4"], "objective.alphas is unknown: power takes alpha, rescale (nearest: alpha)"),
        (
            ["--runs-path=runs"],
            "runs_path must be an absolute path that every node has, such as /shared/runs, got 'r",
        ),
        (["--checkpoint.path=saved"], "checkpoint.path must be an absolute path that every node has"),
        (
            ["--priority-class=high"],
            "--priority-class is an option of --to k8s, not of --to ray; Ray's jobs have no",
        ),
        (["--to=k8s", "--address=http://head:8265"], "--address is an option of --to ray, not of --to k8s"),
        (["--retries=-1"], "--retries must be >= 0, got -1 (nearest valid: 0)"),
        (["--grace=0"], "--grace must be >= 1 second, got 0 (nearest valid: 1)"),
        (
            ["--entrypoint-resources=head"],
            "--entrypoint-resources must be NAME=AMOUNT with an AMOUNT > 0, got 'head'",
        ),
        (["--entrypoint-num-cpus=-1"], "--entrypoint-num-cpus must be >= 0, got -1 (nearest valid: 0)"),
        (["--env=TOKEN"], "--env TOKEN: not set in this environment; export it, or give TOKEN=VALUE"),
        (["--stop"], "--stop takes the name of the run: --run NAME"),
        (
            ["--run=first", "--stop"],
            "--stop --run NAME submits nothing: --runs-path has no effect on a run that is",
        ),
        (
            ["--run=first"],
            "--run NAME takes one of --follow, --stop and --status; to submit a run give --run-name",
        ),
        (["--run-name=../first"], "run_name must be letters, digits"),
    ],
)
def test_mistakes_of_the_command_line_are_one_line(refused: Submit, options: list[str], line: str) -> None:
    assert refused(*options).startswith(line)


def test_a_name_that_leads_elsewhere_is_refused_for_a_run_that_is_there(refused: Submit) -> None:
    assert refused("--stop", "--run=../x", base=["submit"]).startswith("--run must be letters, digits")


def test_data_and_models_need_not_be_on_this_machine() -> None:
    request = request_of("--data.train_path=/only/there.jsonl", "--student.model_path=/only/there")
    assert "there.jsonl" in request.settings


def test_the_entry_point_says_the_whole_run_and_continues_by_itself() -> None:
    request = request_of("--run-name=first", "--retries=3", "--force", "disk", "--node-groups", "--max-steps=7")
    assert list(request.train) == [
        *("--run-name", "first", "--rollout.resources.custom.rollout=1", "--teacher.resources.custom.teacher=1"),
        *("--learner.resources.custom.learner=1", "--runs-path", "/shared/runs", "--max-steps=7"),
        *("--force", "disk", "--log-level", "warning", "--resume=auto", "--retries", "3"),
    ]
    arguments, options = build_parser(None).parse_known_args(["train", "--config", DEMO[2], *request.train])
    assert (arguments.resume, arguments.retries, arguments.force) == ("auto", 3, ["disk"])
    config = load_checked(arguments.config, options)
    assert (config.run_name, config.max_steps, request.run_name) == ("first", 7, "first")
    assert config.learner.resources.custom == {"learner": 1}


def test_a_dry_run_says_what_would_be_sent_without_values(token: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env", "MODE=quiet", "--entrypoint-resources", "head=0.5", "--address", "http://head:8265"]
    assert launch.main([*DEMO, "--dry-run", "--run-name", "first", "--retries", "2", *options]) == FINISHED
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["jobs API"] == "http://head:8265"
    assert lines["job"].startswith("first, or")
    assert lines["entry point"].startswith("python launch.py train --config configs/demo.yaml --run-name first ")
    assert lines["entry point"].endswith("--resume=auto --retries 2")
    assert (lines["its resources"], lines["variables"]) == ("head 0.5", "MODE, RAY_JOB_STOP_WAIT_TIME_S")
    assert "MiB" in lines["working directory"]


# -- variables ----------------------------------------------------------------------------------------------


def test_variables_are_given_or_taken_from_the_environment() -> None:
    given = ["MODE=a=b", "HF_TOKEN", "EMPTY="]
    assert read_environment(given, {"HF_TOKEN": "hf_x"}) == {"MODE": "a=b", "HF_TOKEN": "hf_x", "EMPTY": ""}


@pytest.mark.parametrize(
    "given", ["HF_TOKEN=abc", "WANDB_API_KEY=abc", "URL=https://me:pw@host", "X=hf_" + "a" * 34]
)
def test_a_secret_with_its_value_is_refused_and_not_shown(given: str) -> None:
    name, _, value = given.partition("=")
    with pytest.raises(ValueError, match=f"export {name} and give --env {name} alone") as caught:
        read_environment([given], {})
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["1=2"], "must be NAME=VALUE or NAME"),
        (["=secret"], "must be NAME=VALUE or NAME"),
        (["A=1", "A=2"], "--env A: given twice"),
        (["RAY_JOB_STOP_WAIT_TIME_S=3"], "--grace sets it"),
    ],
)
def test_variables_that_are_none_are_refused(given: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_environment(given, {})


# -- what is sent -------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A working directory with things that are not sent."""
    root = tmp_path / "checkout"
    sizes = {"launch.py": 10, "configs/a.yaml": 0, "models/student/weights": 300, "models/teacher/weights": 200}
    ignored = {
        "data/train.jsonl": 10**6,
        "runs/first/log": 10**6,
        ".git/objects/x": 10**6,
        "a/__pycache__/x.pyc": 99,
    }
    for name, size in (sizes | ignored).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size)
    (root / ".gitignore").write_text("data/\nsecret.yaml\n")
    (root / "configs" / "a.yaml").write_text("extends: parts/b.yaml\n")
    (root / "configs" / "parts").mkdir()
    (root / "configs" / "parts" / "b.yaml").write_text("max_steps: 1\n")
    return root


def test_what_git_ignores_and_run_folders_are_not_sent(checkout: Path) -> None:
    package = find_package(checkout)
    assert {str(path) for path in package.sizes} == {
        *(".gitignore", "launch.py", "configs/a.yaml", "configs/parts/b.yaml"),
        *("models/student/weights", "models/teacher/weights"),
    }
    assert package.num_bytes == sum((checkout / path).stat().st_size for path in package.sizes)


def test_a_working_directory_that_is_too_large_is_refused_with_its_largest_folders(checkout: Path) -> None:
    (checkout / "models" / "student" / "weights").write_bytes(bytes(3 * 2**20))
    with pytest.raises(
        ValueError, match=r"too large to send: 3\.0 MiB, and Ray takes 1\.0 MiB; largest: models/stu"
    ):
        find_package(checkout, max_bytes=2**20)


def test_the_models_of_the_demo_go_along_and_nothing_large(token: None) -> None:
    package = find_package(ROOT)
    sent = {str(path) for path in package.sizes}
    assert {f"examples/arithmetic/models/{role}/model.safetensors" for role in ("student", "teacher")} <= sent
    assert "launch.py" in sent
    assert not {path.parts[0] for path in package.sizes} & {".git", ".venv", "runs", ".tools"}
    assert package.num_bytes < 20 * 2**20


def test_the_settings_file_is_named_as_the_job_finds_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout / "configs")
    assert path_in_package("a.yaml", find_package(checkout)) == "configs/a.yaml"
    assert path_in_package(None, find_package(checkout)) is None


@pytest.mark.parametrize("name", ["secret.yaml", "../outside.yaml", "configs/parts/extends_outside.yaml"])
def test_a_settings_file_that_is_not_sent_is_refused(checkout: Path, name: str) -> None:
    (checkout / "secret.yaml").write_text("max_steps: 1\n")
    (checkout.parent / "outside.yaml").write_text("max_steps: 1\n")
    (checkout / "configs" / "parts" / "extends_outside.yaml").write_text("extends: ../../../outside.yaml\n")
    with pytest.raises(ValueError, match=r"--config: .* is not sent with the working directory"):
        path_in_package(str(checkout / name), find_package(checkout))
