"""The images: linted, pinned, alike for CPU and GPU, and with nothing inside that does not belong there."""

import json
import re
import shutil
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.images.context import context_files, lets_through, read_rules
from tests.images.dockerfile import Instruction, pairs, read_stages, words
from tests.images.package_index import local_folders, write_configuration
from tests.unit.validators import ROOT, run, validator

DOCKERFILE = ROOT / "docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENGINES = ("cpu", "gpu")
OWN = ("dev", "docs", "gguf", "wandb")
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision", "triton"}
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
IN_CONTEXT = PACKAGES | {"LICENSE", "configs", "docker", "launch.py", "pyproject.toml", "requirements"}
UNWANTED = """
    .env .git/config actors/.env cluster/__pycache__/config.cpython-311.pyc runs/a/x.json docker/.env
    actors/model.safetensors learner/step_1/x.pt cluster/pytorch_model.bin configs/data.jsonl docker/ray_token
    docker/Dockerfile configs/cert.pem auth_token tests/unit/x.py requirements/cpu.txt site/index.html
""".split()  # noqa: SIM905


def test_the_dockerfile_and_its_scripts_are_clean() -> None:
    run(validator("hadolint"), "--failure-threshold=style", str(DOCKERFILE))
    run(validator("shellcheck"), *map(str, scripts()))


def scripts() -> list[Path]:
    """The scripts of docker/, which an image can run."""
    found = [path for path in (ROOT / "docker").glob("*.sh")]
    assert {"healthcheck.sh", "install.sh"} <= {path.name for path in found}
    assert all(path.stat().st_mode & 0o111 for path in found)
    return found


def test_the_base_is_named_by_date_and_digest() -> None:
    bases = {stage.base for stage in read_stages(DOCKERFILE).values()} - read_stages(DOCKERFILE).keys()
    assert len(bases) == 1
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", bases.pop())


def test_both_images_are_made_by_the_same_steps() -> None:
    stages = read_stages(DOCKERFILE)
    cpu, gpu = ([stages[f"packages-{engines}"], stages[engines]] for engines in ENGINES)
    for one, other in zip(cpu, gpu, strict=True):
        assert one.base == other.base
        steps = [each for each in other.instructions if each.name != "ENV"]
        assert [_without_engines(each, "cpu") for each in one.instructions] == [
            _without_engines(each, "gpu") for each in steps
        ]
    assert [*stages][-1] == "cpu", "the last stage is what is built if none is named"


def _without_engines(instruction: Instruction, engines: str) -> str:
    return re.sub(rf"\b{engines}\b", "ENGINES", str(instruction))


def test_nothing_runs_as_root_and_every_container_is_watched() -> None:
    node = {each.name: each for each in read_stages(DOCKERFILE)["node"].instructions}
    assert node["USER"].text == "1000:1000"
    assert words(node["ENTRYPOINT"].text)[-1] == "/app/docker/ray_node.sh"
    assert words(node["HEALTHCHECK"].text.removeprefix("CMD ")) == ["/app/docker/healthcheck.sh"]
    assert pairs(node["ENV"].text, {"PATH": "/bin"})["PYTHONPATH"] == "/app"
    scripts = re.findall(r"/app/(docker/\w+\.sh)", DOCKERFILE.read_text())
    assert {Path(name) for name in scripts} <= {*context_files(ROOT)}
    labels = pairs(node["LABEL"].text, {"REVISION": "x"})
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]


# -- pins ---------------------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    """Version by package of a file of pins."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("engines", ENGINES)
def test_every_package_is_pinned_once_and_exactly_and_as_pyproject_has_it(engines: str) -> None:
    text = (ROOT / "requirements" / f"{engines}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.!]+(\+cpu)?", line)] == []
    found = pins(f"{engines}.txt")
    assert len(lines) == len(found)
    assert [name for name in found if "+" in found[name]] == (["torch"] if engines == "cpu" else [])
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(line for extra in (engines, *OWN) for line in extras[extra])]
    wanted = {_normal(Requirement(line).name): str(Requirement(line).specifier)[2:] for line in named}
    del wanted["poweropd"]
    assert wanted.items() <= {name: version.removesuffix("+cpu") for name, version in found.items()}.items()


@pytest.mark.parametrize("engines", ENGINES)
def test_an_image_has_the_pinned_versions_without_what_only_developers_need(engines: str) -> None:
    image, everything = pins(f"image-{engines}.txt"), pins(f"{engines}.txt")
    assert image.items() < everything.items()
    wanted = names(
        PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in (engines, "wandb", "gguf"))
    )
    assert wanted <= image.keys()
    extras = PROJECT["optional-dependencies"]
    assert names(extras["dev"], extras["docs"]) - {"poweropd"} <= everything.keys() - image.keys()


def names(*lists: list[str]) -> set[str]:
    """Normal names of requirements."""
    return {_normal(Requirement(line).name) for each in lists for line in each}


def test_nothing_that_a_package_of_the_cpu_image_needs_is_left_out() -> None:
    image = pins("image-cpu.txt")
    missing = {
        f"{name} needs {requirement.name}"
        for name in image
        for requirement in map(Requirement, requires(name) or [])
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        and _normal(requirement.name) not in image.keys() | LEFT_OUT | {"setuptools", "pip"}
    }
    assert missing == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- build context ------------------------------------------------------------------------------------------


def test_the_build_context_is_the_code_the_recipes_and_the_scripts() -> None:
    files = context_files(ROOT)
    assert {path.parts[0] for path in files} == IN_CONTEXT
    assert {path.suffix for path in files} == {"", ".css", ".j2", ".js", ".py", ".sh", ".toml", ".txt", ".yaml"}
    assert max((ROOT / path).stat().st_size for path in files) < 200_000
    texts = {path: (ROOT / path).read_text() for path in files}
    assert [
        path for path, text in texts.items() if re.search(r"-----BEGIN|hf_[A-Za-z]{30}|AKIA[0-9A-Z]{16}", text)
    ] == []


def test_weights_data_runs_and_secrets_stay_out_of_the_build_context(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    for path in (*map(Path, UNWANTED), Path("actors/engine.py")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert context_files(tmp_path) == [Path("actors/engine.py")]


@pytest.mark.parametrize(
    ("patterns", "inside", "outside"),
    [
        ("*/temp*", ["a/b/temp", "temp", "a/xtemp"], ["a/temporary.txt", "a/temp/x"]),
        ("**/*.go", ["a.gox"], ["a.go", "a/b/c.go"]),
        ("*.md\nREADME-secret.md\n!README*.md", ["README-secret.md"], ["x.md"]),
        ("*\n!/a\n**/*.py[co]", ["a/x.py", "a/b/x"], ["b", "a/x.pyc", "ba/x"]),
    ],
)
def test_the_patterns_of_the_build_context_are_read_as_docker_reads_them(
    patterns: str, inside: list[str], outside: list[str], tmp_path: Path
) -> None:
    (tmp_path / ".dockerignore").write_text(f"# comment\n{patterns}\n")
    rules = read_rules(tmp_path / ".dockerignore")
    assert [path for path in inside if not lets_through(rules, path)] == []
    assert [path for path in outside if lets_through(rules, path)] == []


# -- compose ------------------------------------------------------------------------------------------------


def compose(profile: str, path: Path = ROOT / "docker" / "compose.yaml") -> dict[str, dict]:
    """The services of a profile as docker compose understands them."""
    line = [validator("docker-compose"), "--file", str(path), "--profile", profile, "config", "--format=json"]
    return json.loads(run(*line))["services"]


@pytest.mark.parametrize("engines", ENGINES)
def test_compose_has_a_service_for_each_group_of_nodes(engines: str) -> None:
    services, suffix = compose(engines), {"cpu": "", "gpu": "-gpu"}[engines]
    assert services.keys() == {f"{group}{suffix}" for group in ("head", "rollout", "teacher", "learner")}
    for name, service in services.items():
        group = name.removesuffix("-gpu")
        assert service["image"] == f"poweropd:{PROJECT['version']}-{engines}"
        assert service["command"][0] == group
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"] == ["CMD", "/app/docker/healthcheck.sh"]
        assert int(service["shm_size"]) > int(service["command"][1].partition("=")[2])
        assert [each["target"] for each in service["volumes"]] == ["/shared"]
        assert "container_name" not in service, "it could not be scaled"
        assert [each["host_ip"] for each in service.get("ports", [])] == ["127.0.0.1"] * (group == "head")
        secret = service["secrets"][0]["target"]
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == secret
        assert "RAY_AUTH_TOKEN" not in service["environment"]
        if group != "head":
            assert service["environment"]["POWEROPD_HEAD"] == f"head{suffix}:6379"
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [each["capabilities"] for each in devices] == [["gpu"]] * (engines == "gpu" and group != "head")


def test_a_misspelt_key_of_the_compose_file_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((ROOT / "docker" / "compose.yaml").read_text().replace("shm_size:", "shm_sise:"))
    with pytest.raises(AssertionError, match="shm_sise"):
        compose("cpu", wrong)


def test_the_settings_of_the_example_are_those_that_the_compose_file_reads() -> None:
    read = re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker" / "compose.yaml").read_text())
    example = (ROOT / "docker" / ".env.example").read_text()
    given = re.findall(r"^#(POWEROPD_\w+)=(.*)$", example, re.MULTILINE)
    assert {name for name, _ in read} == {name for name, _ in given}
    differing = {"POWEROPD_SHARED", "POWEROPD_REGISTRY", "POWEROPD_PULL_POLICY"}
    assert {pair for pair in given if pair[0] not in differing} <= set(read)


def test_the_image_test_hands_pips_configuration_on_with_its_certificates_as_a_secret(tmp_path: Path) -> None:
    (tmp_path / "more" / "simple").mkdir(parents=True)
    settings = {
        **{"index-url": "https://example.org/simple", "extra-index-url": f"file://{tmp_path}/more/simple"},
        **{"find-links": f"{tmp_path} https://example.org/wheels", "cert": "/ca.pem", "user": "true"},
    }
    secrets = write_configuration(tmp_path / "pip.conf", settings)
    assert secrets == {"pip": tmp_path / "pip.conf", "ca": Path("/ca.pem")}
    text = (tmp_path / "pip.conf").read_text()
    assert "index-url = https://example.org/simple" in text
    assert "cert = /run/secrets/ca" in text
    assert "user" not in text
    assert {*local_folders(settings)} == {tmp_path, tmp_path / "more"}
