"""Names that lead elsewhere, secrets, foreign code and pickles are refused, each with one clear line."""

import json
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import launch
from cluster.connection import ensure_token
from records.checkpoints import MANIFEST_NAME, remove_old, start
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.load import _dotted_keys, load_settings
from settings.run import RunConfig
from settings.secrets import is_secret_name
from tests.unit.conftest import MODELS

Refused = Callable[..., str]


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", "", "-x", "x\n", "x\x1b[31m", "x\0", "a" * 101])
def test_a_run_name_that_is_no_plain_folder_name_is_refused_by_every_command(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "run_name" in refused(f"--run-name={name}")
    for line in (["status"], ["stop"], ["scale", "--rollout=2"]):
        assert launch.main([*line, f"--run={name}", f"--runs-path={tmp_path}"]) == BAD_INPUT
        captured = capsys.readouterr()
        assert captured.err.startswith("error: --run must "), captured.err
        assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_runs_path_that_is_a_file_is_refused(refused: Refused, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert "runs_path: " in refused(f"--runs-path={tmp_path / place}")


@pytest.mark.parametrize(
    "option",
    [
        "--rollout.engine.extra.hf_token=hunter2",
        "--teacher.engine.extra={nested: {apiKey: hunter2}}",
        "--learner.deepspeed.monitor.password=hunter2",
        "--data.template_arguments={tools: [{access_key: hunter2}]}",
        "--data.template_arguments={url: 'https://me:hunter2@example.org/x'}",
        "--cluster.address=ray://me:hunter2@head:10001",
        "--data.train_path=s3://bucket/x?X-Amz-Signature=1&token=hunter2",
        f"--logging.wandb_project=hf_hunter2{'x' * 30}",
        "--wandb.api_key=hunter2",
        "--data.system_prompt=${oc.env:HF_TOKEN,hunter2}",
        f"--data.template_arguments={{hf_{'hunter2' * 6}: 1}}",
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(refused: Refused, option: str) -> None:
    line = refused(option)
    assert option[2:].partition("=")[0].split(".")[0] in line
    assert "environment" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "taken",
    [
        "${oc.env:'MY_TOKEN'}",
        '${oc.env:"MY_TOKEN"}',
        "${ oc.env:MY_TOKEN }",
        "${oc.env:my_token,none}",
        "${oc.env:${oc.env:WHICH}}",
        "${oc.env:MY_${oc.env:KIND}}",
        "${oc.decode:${oc.env:'MY_TOKEN'}}",
        "${oc.decode:'${oc.env:MY_TOKEN}'}",
        "before ${oc.select:none,${oc.env:MY_TOKEN}} after",
        "hunter2hunter2",
        "a text with hunter2hunter2hunter2 in it",
        "${oc.env:INNOCENT}",
    ],
)
@pytest.mark.parametrize("key", ["data.system_prompt", "data.template_arguments.mark", "logging.wandb_project"])
def test_a_secret_of_the_environment_is_refused_however_it_is_taken(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, taken: str
) -> None:
    variables = {"MY_TOKEN": "hunter2hunter2", "my_token": "hunter2hunter2", "LONG_PASSWORD": "hunter2" * 3}
    for name, value in {**variables, "WHICH": "MY_TOKEN", "KIND": "TOKEN", "INNOCENT": "hunter2hunter2"}.items():
        monkeypatch.setenv(name, value)
    section, _, name = key.rpartition(".")
    path = tmp_path / "given.yaml"
    content = OmegaConf.create({})
    OmegaConf.update(content, f"{section}.{name}", taken, force_add=True)
    path.write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    for line in (refused(f"--config={path}"), refused(f"--{key}={taken}")):
        assert key in line
        assert "from the environment, and its value would be written down" in line
        assert "hunter2" not in line


def test_what_is_no_secret_is_taken_from_the_environment_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data/problems.jsonl")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("CREDENTIALS_FILE", "/data/problems.jsonl")
    given = ["--student.model_path=s", "--teacher.model_path=t", "--data.train_path=${oc.env:PLACE}"]
    given += ["--run_name=${oc.env:NOT_SET,named}"]
    config = load_settings(RunConfig, None, given)
    assert (config.data.train_path, config.run_name) == ("/data/problems.jsonl", "named")
    with pytest.raises(ValueError, match="run_name: KeyError raised while resolving"):
        load_settings(RunConfig, None, [*given[:-1], "--run_name=${oc.env:NOT_SET}"])


def test_a_secret_in_a_configuration_file_is_refused_and_not_repeated(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text("learner: {deepspeed: {wandb: {api_key: hunter2}}}\n")
    line = refused(f"--config={path}")
    assert "learner.deepspeed.wandb.api_key looks like a secret" in line
    assert "hunter2" not in line


def test_no_setting_of_ours_but_counts_of_tokens_looks_like_a_secret() -> None:
    assert {key for key in _dotted_keys(RunConfig) if is_secret_name(key)} == set()
    texts = ("template_arguments.bos_token", "max_tokens", "tokenizer_mode", "kernel.keys")
    assert not any(is_secret_name(key) for key in texts)


@pytest.mark.parametrize(
    ("role", "name"), [("student", "pytorch_model-00001-of-00002.bin"), ("teacher", "a.pt"), ("teacher", "a.ckpt")]
)
def test_a_model_with_pickled_weights_only_is_refused(
    refused: Refused, tmp_path: Path, role: str, name: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODELS / role, folder)
    for file in folder.glob("*.safetensors"):
        file.rename(folder / name)
    line = refused(f"--{role}.model_path={folder}")
    assert f"{role}.model_path: {folder} holds its weights only as {name}" in line
    assert "convert it: " in line


def test_a_model_with_code_of_its_own_is_refused_unless_it_is_trusted(
    refused: Refused, arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(MODELS / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own_one", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    code = "from pathlib import Path\nfrom transformers import Qwen3Config\n"
    code += f"Path({str(ran)!r}).touch()\nclass OwnConfig(Qwen3Config):\n    model_type = 'own_one'\n"
    (folder / "own.py").write_text(code)
    option = f"--student.model_path={folder}"
    assert "set student.trust_remote_code true" in refused(option)
    assert not ran.exists()
    assert launch.main([*arguments, option, "--student.trust_remote_code=true"]) == FINISHED
    assert "trust_remote_code: true" in capsys.readouterr().out
    assert ran.exists()


def test_code_is_not_trusted_by_a_setting_of_an_engine(refused: Refused) -> None:
    line = refused("--teacher.engine.extra.trust_remote_code=true")
    assert "engine.extra.trust_remote_code is not taken" in line


def test_old_checkpoints_are_removed_without_following_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (MANIFEST_NAME, "precious"):
        (elsewhere / name).write_text("")
    checkpoints = tmp_path / "checkpoints"
    for step in (2, 3):
        (checkpoints / f"step_{step}").mkdir(parents=True)
        (checkpoints / f"step_{step}" / MANIFEST_NAME).write_text("")
    (checkpoints / "step_2" / "link").symlink_to(elsewhere)
    (checkpoints / "step_1").symlink_to(elsewhere)
    (checkpoints / "step_4.tmp").symlink_to(elsewhere)
    assert remove_old(checkpoints, keep=1) == [checkpoints / "step_2"]
    start(checkpoints / "step_4")
    assert sorted(path.name for path in elsewhere.iterdir()) == [MANIFEST_NAME, "precious"]


def test_a_token_is_made_once_and_readable_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    threads = [threading.Thread(target=ensure_token, args=(str(path),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    token = path.read_text()
    assert (len(token), stat.S_IMODE(path.stat().st_mode)) == (64, 0o600)
    assert [file.name for file in path.parent.iterdir()] == ["token"]
    path.chmod(0o644)
    assert ensure_token(str(path)).read_text() == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
