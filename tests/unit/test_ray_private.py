"""The canary of Ray's private API: it fails when the pin moves or a name vanishes, before a run does."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobSubmissionClient
from ray.util.placement_group import placement_group

from cluster import ray_private

ROOT = Path(__file__).parents[2]
FILE = Path("cluster/ray_private.py")
PRIVATE_MODULE = re.compile(r"ray\.(.*\.)?_|ray\.core\.|ray\.autoscaler\.v2")
PRIVATE_NAME = re.compile(r"_generator_backpressure|_soft_target_node_id|_do_request|ray\.rpc\.")


def taken(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a file imports from Ray."""
    tree = ast.parse((ROOT / path).read_text())
    return [
        (node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ray"
        for name in node.names
    ]


@pytest.mark.parametrize(("module", "name"), taken(FILE))
def test_the_pinned_ray_has_what_is_taken_from_it(module: str, name: str) -> None:
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.import_module(f"{module}.{name}")


def test_the_pinned_ray_is_the_one_that_was_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [pin] = [pin for pin in project["dependencies"] if pin.startswith("ray[")]
    assert [pin.partition("==")[2], ray.__version__] == [ray_private.VERSION] * 2


def test_attributes_and_options_are_there_too() -> None:
    from ray._common import ray_option_utils
    from ray._private import node, ray_constants, utils, worker
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    assert hasattr(ray_constants, "ENABLE_RAY_CLUSTER")
    assert hasattr(utils, "set_sigterm_handler")
    assert [*inspect.signature(worker.print_to_stdstream).parameters] == ["data", "ignore_prefix"]
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    for module in (node, worker):
        assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(module)
    assert hasattr(state, "_connect_and_get_accessor")
    assert hasattr(gcs_pb2, "ActorTableData")
    assert "_soft_target_node_id" in inspect.signature(placement_group).parameters
    assert "_generator_backpressure_num_objects" in inspect.getsource(ray_option_utils)
    assert [*inspect.signature(JobSubmissionClient._do_request).parameters][:3] == ["self", "method", "endpoint"]


def test_no_other_file_uses_ray_s_private_api() -> None:
    folders = ("actors", "cluster", "commands", "controller", "evaluation", "inputs", "learner", "records")
    folders += ("reporting", "rewards", "settings", "transport", "benchmarks")
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    offenders = {
        str(path)
        for path in [*files, Path("launch.py")]
        if any(PRIVATE_MODULE.match(f"{module}.{name}") for module, name in taken(path))
        or PRIVATE_NAME.search((ROOT / path).read_text())
    }
    assert offenders == {str(FILE)}
