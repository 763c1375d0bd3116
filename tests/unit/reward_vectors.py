"""The published test vectors, read from `reward_vectors.json` in the folder named by POWEROPD_VECTORS, or in
`../shared` beside the repository; no case without that file.

A test file says which cases are its own and, by patterns of their ids, how they are run through the registries.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS_PATH = Path(os.environ.get("POWEROPD_VECTORS", REPOSITORY.parent / "shared")) / "reward_vectors.json"

Case = dict[str, Any]
Results = dict[str, Any]
Run = Callable[[Case, torch.dtype], Results]

CASES: list[Case] = json.loads(VECTORS_PATH.read_text())["cases"] if VECTORS_PATH.exists() else []


def vector_test(
    cases: list[Case], runs: Mapping[str, Run], *, not_computed: Mapping[str, Collection[str]] | None = None
) -> Callable[..., None]:
    """A test of every case in float64 and float32; exactly one pattern of `runs` matches its id.

    Every expected value is there but those that are `not_computed`, at the case's tolerance in float64 and at rtol
    2e-5, atol 1e-6 in float32.
    """

    @pytest.mark.skipif(not CASES, reason="reward_vectors.json is in neither POWEROPD_VECTORS nor ../shared")
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    @pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])
    def test_the_registries_reproduce_the_vector(case: Case, dtype: torch.dtype) -> None:
        (run,) = [run for pattern, run in runs.items() if re.fullmatch(pattern, case["id"])]
        results = run(case, dtype)
        rtol, atol = (case["rtol"], case["atol"]) if dtype == torch.float64 else (2e-5, 1e-6)
        for key in case["expected"].keys() - {*(not_computed or {}).get(case["id"], ())}:
            expected = case["expected"][key]
            values = list(expected.values()) if isinstance(expected, dict) else expected
            expected = torch.as_tensor(values, dtype=torch.float64)
            actual = torch.as_tensor(results[key], dtype=torch.float64).detach().reshape(expected.shape)
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)

    return test_the_registries_reproduce_the_vector


def all_kept(values: Tensor) -> Tensor:
    """A mask without masked slots."""
    return torch.ones_like(values, dtype=torch.bool)
