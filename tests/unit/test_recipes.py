"""Every recipe under configs/ is valid as it is written, fits the machines that it names, and passes --dry-run."""

import json
from pathlib import Path

import pytest
import yaml

import launch
from cluster.nodes import Node
from cluster.placement import check_all_fit, plan
from commands.checks import load_checked
from commands.preflight.memory import needs_of
from commands.preflight.nodes import NodeFacts, memory_findings, roles_by_node
from inputs.models import Shape, model_paths
from learner.served import signal_kind
from settings.exit_codes import FINISHED
from settings.run import RunConfig
from settings.run_files import load_config
from tests.unit.qwen3_stand_in import qwen3_folder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
NO_RUNS = ("parts", "benchmarks")
FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name not in NO_RUNS]
COMPARISONS = [path for path in FILES if "objectives" in yaml.safe_load(path.read_text())]
RECIPES = [path for path in FILES if path not in COMPARISONS and not path.name.startswith("plan")]
QWEN3 = [path for path in RECIPES if path.parent.name == "qwen3"]
PAIRS = ["0.6b_from_4b", "0.6b_from_8b", "1.7b_from_4b", "1.7b_from_8b"]
NODE = {"CPU": 32.0, "GPU": 8.0, "memory": 512 * 2.0**30}
HARDWARE = {"one_gpu": [{"CPU": 8.0, "GPU": 1.0}], "two_nodes": [NODE, NODE], "one_node": [NODE]}


def label(path: Path) -> str:
    """A file as it is named in the output of tests."""
    return str(path.relative_to(CONFIGS))


def loaded(path: Path, *options: str) -> RunConfig:
    """The checked configuration of a recipe."""
    return load_checked(str(path), options)


def hardware_of(path: Path) -> list[dict[str, float]]:
    """The nodes that a recipe for GPUs is made for, by its name."""
    return next((nodes for name, nodes in HARDWARE.items() if path.stem.endswith(name)), HARDWARE["one_node"])


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `chat`, small models like Qwen3-Base and Qwen3, and `problems.jsonl`."""
    path = tmp_path_factory.mktemp("stand-ins")
    rows = [{"id": str(i), "problem": f"{i}+1", "answer": str(i + 1)} for i in range(40)]
    (path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qwen3_folder(path / "base", is_base=True)
    qwen3_folder(path / "chat", is_base=False)
    return path


def replaced(path: Path, stand_ins: Path) -> list[str]:
    """Options that put local folders in the place of what is not here: models and data of the hub, a cluster."""
    config = load_config(str(path))
    options = ["--cluster.address", "null", "--cluster.num_cpus", "64"]
    student, teacher = config.student.model_path, config.teacher.model_path
    if not ((ROOT / student).is_dir() and (ROOT / teacher).is_dir()):
        options += ["--student.model_path", str(stand_ins / ("base" if student.endswith("-Base") else "chat"))]
        options += ["--teacher.model_path", str(stand_ins / "chat")]
    if not (ROOT / (config.data.train_path or "")).exists():
        options += ["--data.train_path", str(stand_ins / "problems.jsonl")]
    if config.evaluation.data_path is None or not (ROOT / config.evaluation.data_path).exists():
        options += ["--evaluation.data_path", str(stand_ins / "problems.jsonl")]
    return options + (["--evaluation.benchmarks", "[]"] if config.evaluation.benchmarks else [])


@pytest.mark.parametrize("path", RECIPES, ids=label)
def test_every_recipe_prints_its_plan_with_dry_run(
    path: Path, stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--runs-path", str(tmp_path / "runs"), *replaced(path, stand_ins)]
    assert launch.main(["train", "--config", str(path), "--dry-run", *options]) == FINISHED
    printed = capsys.readouterr().out
    assert "# placement plan: one placement group per worker" in printed
    assert yaml.safe_load(printed)["run_name"] == load_config(str(path)).run_name
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", QWEN3, ids=label)
def test_every_recipe_for_gpus_fits_the_machines_that_it_is_made_for(path: Path) -> None:
    demands = plan(loaded(path))
    nodes = hardware_of(path)
    check_all_fit(demands, nodes)
    wanted = sum(bundle.get("GPU", 0.0) for demand in demands for group in demand.groups for bundle in group)
    assert wanted == pytest.approx(sum(node["GPU"] for node in nodes))  # and leaves none idle


def test_engines_that_share_a_device_take_less_than_all_of_its_memory() -> None:
    shared = [path for path in QWEN3 if path.stem.endswith("one_gpu")]
    assert len(shared) == len(PAIRS)
    for path in shared:
        config = loaded(path)
        engines = [config.rollout.engine, config.teacher.engine]
        assert (
            sum(engine.gpu_memory_fraction for engine in engines) <= 1 - config.learner.resources.num_gpus + 1e-9
        )


@pytest.mark.parametrize("pair", PAIRS)
def test_the_four_pairs_have_the_protocol_of_the_paper(pair: str) -> None:
    config = loaded(CONFIGS / "qwen3" / f"{pair}.yaml")
    student, teacher = pair.split("_from_")
    assert config.student.model_path == f"Qwen/Qwen3-{student.upper()}-Base"
    assert config.teacher.model_path == f"Qwen/Qwen3-{teacher.upper()}"
    assert (config.max_steps, config.batch_size, config.num_samples_per_prompt) == (1500, 32, 1)
    assert (config.max_staleness, config.importance.name, config.seed) == (0, "none", 42)
    assert (config.objective.name, config.objective.parameters["alpha"]) == ("power", 5)
    assert (config.objective.stop_mode, config.objective.aggregate) == ("mask", "window_token_mean")
    assert config.data.template_arguments == {"enable_thinking": False}
    rollout, learner, evaluation = config.rollout, config.learner, config.evaluation
    assert (rollout.max_response_tokens, rollout.temperature, rollout.top_p, rollout.top_k) == (
        1024,
        1.0,
        0.95,
        20,
    )
    assert (learner.learning_rate, learner.lr_schedule, learner.betas, learner.eps) == (
        *(5e-7, "constant", (0.9, 0.999), 1e-8),
    )
    assert (learner.weight_decay, learner.max_grad_norm, learner.dtype) == (0.0, 1.0, "bfloat16")
    assert (evaluation.num_samples, evaluation.k, evaluation.max_response_tokens) == (8, 8, 4096)
    assert len(evaluation.benchmarks) == 7


@pytest.mark.parametrize("pair", PAIRS)
def test_a_counterpart_differs_from_its_pair_in_nothing_but_the_objective(pair: str) -> None:
    own = loaded(CONFIGS / "qwen3" / f"{pair}.yaml").model_dump()
    for suffix, kind in (("vanilla", "token"), ("full_vocabulary", "full")):
        other = loaded(CONFIGS / "qwen3" / f"{pair}_{suffix}.yaml")
        assert signal_kind(other) == kind
        differing = {key for key, value in other.model_dump().items() if value != own[key]}
        assert differing <= {"run_name", "objective", "evaluation", "rollout"}
        assert other.evaluation.model_copy(update={"teacher": True}).model_dump() == own["evaluation"]
        assert other.rollout.model_copy(update={"stop_on": "all"}).model_dump() == own["rollout"]


def test_the_full_vocabulary_baseline_is_the_one_of_the_papers_code() -> None:
    comparison = yaml.safe_load((CONFIGS / "qwen3" / "compare_0.6b_from_4b.yaml").read_text())
    settings = next(each["settings"] for each in comparison["objectives"] if each["label"] == "full vocabulary")
    options = [f"--{key}={value}" for key, value in settings.items()]
    compared = loaded(ROOT / comparison["base"], *options)
    for config in (compared, *(loaded(CONFIGS / "qwen3" / f"{pair}_full_vocabulary.yaml") for pair in PAIRS)):
        objective = config.objective
        assert (objective.name, objective.aggregate, objective.stop_mode) == (
            *("reverse_kl", "seq_mean_token_mean", "raw"),
        )
        assert config.rollout.stop_on == "student"


def test_other_methods_recipes_have_the_settings_of_their_code() -> None:
    veto, revisiting = (
        loaded(CONFIGS / "qwen3" / f"{name}.yaml") for name in ("0.6b_from_4b_veto", "1.7b_from_4b_revisiting_opd")
    )
    assert (veto.learner.weight_decay, revisiting.learner.weight_decay) == (0.01, 0.01)
    assert (veto.objective.stop_mode, revisiting.objective.stop_mode) == ("raw", "raw")
    assert (veto.rollout.max_response_tokens, revisiting.rollout.max_response_tokens) == (768, 16384)


SHAPES = {
    "Qwen/Qwen3-0.6B-Base": Shape(0.596e9, 28, 1024, 2048, 1024, 3072, 151_936, 32_768),
    "Qwen/Qwen3-1.7B-Base": Shape(1.721e9, 28, 2048, 2048, 1024, 6144, 151_936, 32_768),
    "Qwen/Qwen3-4B": Shape(4.022e9, 36, 2560, 4096, 1024, 9728, 151_936, 40_960),
    "Qwen/Qwen3-8B": Shape(8.191e9, 36, 4096, 4096, 1024, 12288, 151_936, 40_960),
}
GPU_BYTES = 81_079 * 2**20
"""What nvidia-smi says of an A100 that is sold with 80 GB; an H100 has a little more."""
FULL_VOCABULARY = (
    "--objective.name",
    "reverse_kl",
    "--objective.stop_mode",
    "raw",
    "--evaluation.teacher",
    "false",
)


def check_memory(path: Path, *options: str) -> None:
    """Assert that preflight finds enough memory on the machines that a recipe is made for."""
    config = loaded(path, *options)
    nodes = [Node(f"node-{i}", node) for i, node in enumerate(hardware_of(path))]
    shapes = {role: SHAPES[name] for role, name in model_paths(config).items()}
    needs = needs_of(config, shapes, holds_teacher_head=signal_kind(config) == "full")
    num_gpus = int(nodes[0].total["GPU"])
    has = NodeFacts(512 * 2**30, 512 * 2**30, (GPU_BYTES,) * num_gpus, (), is_writable=True)
    roles = roles_by_node(plan(config), nodes)
    findings, _ = memory_findings(config, needs, roles, {node.name: has for node in nodes})
    assert [(each.status, each.message) for each in findings if each.status != "ok"] == []


@pytest.mark.parametrize("path", QWEN3, ids=label)
def test_every_recipe_for_gpus_fits_into_the_memory_of_the_gpus_that_it_names(path: Path) -> None:
    check_memory(path)
    if path.stem.endswith("one_gpu"):
        check_memory(path, *FULL_VOCABULARY)


@pytest.mark.parametrize("path", [path for path in QWEN3 if "_gpu" not in path.stem], ids=label)
def test_the_asynchronous_form_that_is_shown_is_valid(path: Path) -> None:
    part = (CONFIGS / "parts" / "qwen3_protocol.yaml").read_text()
    options = next(line for line in part.splitlines() if "--max_staleness" in line).strip("# ").split()
    config = loaded(path, *options)
    assert (config.max_staleness, config.importance.name) == (8, "truncated")


@pytest.mark.parametrize("path", COMPARISONS, ids=label)
def test_every_comparison_lists_its_runs_with_dry_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["compare", "--config", str(path), "--dry-run"]) == FINISHED
    given = yaml.safe_load(path.read_text())
    assert capsys.readouterr().out.count("--resume=auto") == len(given["objectives"]) * len(given["seeds"])


def test_every_recipe_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for path in FILES:
        pair = next((each for each in PAIRS if path.stem.startswith(each)), None)
        if path.name not in page:
            assert pair is not None, path
            assert f"| `{path.stem.removeprefix(pair)}` |" in page, path


def test_every_recipe_has_a_name_of_its_own_and_says_what_it_is() -> None:
    assert all(path.read_text().startswith("# ") for path in FILES)
    names = [load_config(str(path)).run_name for path in RECIPES]
    assert len({*names}) == len(names)
