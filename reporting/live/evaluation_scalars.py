"""A row of `eval.jsonl` as scalars for dashboards: the same names in TensorBoard and Weights & Biases."""

from collections.abc import Mapping
from typing import Any

NO_SCALARS = {"step", "n", "k", "weight_version", "seed"}


def student_or_role(model: str) -> str:
    """`student` for the student at any time (`student_before`, `student_after`), else the role of a teacher."""
    return "student" if model.startswith("student") else model


def evaluation_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Every number of the row; `k` is in the names. Those of teachers carry their role.

    >>> evaluation_scalars({"model": "student_after", "benchmark": "gsm8k", "step": 9, "k": 8, "avg_at_k": 0.5})
    {'eval/gsm8k/avg_at_8': 0.5}
    """
    who = student_or_role(str(row["model"]))
    prefix = f"eval/{row['benchmark']}" if who == "student" else f"eval/{row['benchmark']}/{who}"
    at_k = f"_at_{row['k']}"
    return {
        f"{prefix}/{key.replace('_at_k', at_k)}": float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in NO_SCALARS
    }
