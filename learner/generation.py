"""How an exported student generates by default: its own generation settings with this run's stops and sampling."""

import copy
from typing import Any

from transformers import GenerationConfig

from settings.run import RolloutConfig
from transport.stop_tokens import StopTokens


def exported_generation_config(
    own: GenerationConfig, *, stops: StopTokens, rollout: RolloutConfig, pad_token_id: int | None = None
) -> GenerationConfig:
    """The student's own settings, with the stop ids of both sides and the sampling it was trained with.

    Training ends responses on the stop ids of student and teachers, so the trained student may end with either:
    whatever loads the folder must stop on all of them. Limits on length are left out (vLLM would take them for
    limits of a server).
    """
    config: Any = copy.deepcopy(own)
    config._from_model_config = False  # else transformers makes it anew from config.json, with one stop id
    config.eos_token_id = [*dict.fromkeys((*stops.student_ids, *stops.ids))]
    if config.pad_token_id is None:
        config.pad_token_id = pad_token_id
    config.do_sample = True
    config.temperature = rollout.temperature
    config.top_p = rollout.top_p
    config.top_k = max(0, rollout.top_k)  # 0 is all, for transformers and vLLM; unset, transformers takes 50
    config.max_length = config.max_new_tokens = None
    return config
