"""The published test vectors, read from `reward_vectors.json` in the folder named by POWEROPD_VECTORS, or in
`../shared` beside the repository; no case without that file."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS_PATH = Path(os.environ.get("POWEROPD_VECTORS", REPOSITORY.parent / "shared")) / "reward_vectors.json"

Case = dict[str, Any]
Results = dict[str, Any]

CASES: list[Case] = json.loads(VECTORS_PATH.read_text())["cases"] if VECTORS_PATH.exists() else []

needs_vectors = pytest.mark.skipif(
    not CASES, reason="reward_vectors.json is in neither POWEROPD_VECTORS nor ../shared"
)


def assert_reproduced(
    case: Case, results: Results, dtype: torch.dtype, *, not_computed: Collection[str] = ()
) -> None:
    """Every expected value is there, at the case's tolerance in float64 and at rtol 2e-5, atol 1e-6 in float32."""
    rtol, atol = (case["rtol"], case["atol"]) if dtype == torch.float64 else (2e-5, 1e-6)
    for key in case["expected"].keys() - {*not_computed}:
        expected = case["expected"][key]
        values = list(expected.values()) if isinstance(expected, dict) else expected
        expected = torch.as_tensor(values, dtype=torch.float64)
        actual = torch.as_tensor(results[key], dtype=torch.float64).detach().reshape(expected.shape)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
