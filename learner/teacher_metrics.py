"""What one optimizer step did by teacher, where there are several.

Shapes: T response tokens of this rank's window, K teachers.
"""

from collections.abc import Sequence

import torch

from learner.collate import PackedBatch
from learner.metrics import StepTokens
from learner.ranks import Ranks


def teacher_metrics(
    batches: Sequence[PackedBatch], tokens: StepTokens, *, names: Sequence[str], ranks: Ranks
) -> dict[str, float]:
    """Return `kl/reverse/NAME`, `reward/mean/NAME` and `tokens_trained/NAME`, the same on every rank.

    `tokens` are those of `batches`; `names` are the teachers in the order of `PackedBatch.teacher_B`. A teacher of
    none of the step's tokens has 0. Every rank must call it.
    """
    teacher_T = torch.cat([batch.teacher_B[batch.row_T] for batch in batches])
    kl_T = tokens.logp_T - tokens.teacher_logp_T
    has_kl_T = tokens.is_trained_T & kl_T.isfinite()
    trained_T = tokens.is_trained_T
    values_4T = torch.stack(
        [
            torch.where(has_kl_T, kl_T, 0.0),
            has_kl_T.double(),
            torch.where(trained_T, tokens.reward_T, 0.0),
            trained_T.double(),
        ]
    )
    sums_4K = values_4T.new_zeros(4, len(names)).index_add_(1, teacher_T, values_4T)
    kl_K, kl_tokens_K, reward_K, trained_K = ranks.sum(sums_4K)
    means = {
        "kl/reverse": kl_K / kl_tokens_K.clamp(min=1.0),
        "reward/mean": reward_K / trained_K.clamp(min=1.0),
        "tokens_trained": trained_K,
    }
    return {
        f"{metric}/{name}": value
        for metric, values_K in means.items()
        for name, value in zip(names, values_K.tolist(), strict=True)
    }
