"""Parameters and buffers of a model -> the tensors of its Hugging Face folder, as `save_pretrained` writes them.

A model may hold its weights in another form than its folder, and engines know the folder's: transformers packs
the experts of a layer into one tensor, renames layers, and turns all of it back at once when it saves. Here it is
turned back part by part, so that no more than one part must be gathered at a time.

    model    layers.0.mlp.experts.gate_up_proj [E, 2F, H]
    folder   layers.0.mlp.experts.0.gate_proj.weight [F, H], layers.0.mlp.experts.0.up_proj.weight [F, H], ...
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion


@dataclass(frozen=True)
class Part:
    """Some tensors of the model, by name, and the tensors of the folder that they make and no others help make."""

    sources: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """(name in the folder, shape)."""
    is_converted: bool
    """False: the one tensor is stored as it is, maybe under another name."""
    keeps_float32: bool
    """Buffers that stay in float32 whatever the precision of the weights is."""

    def of(self, causal_lm: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The folder's tensors from the model's, which must be whole."""
        sources = {name: tensors[name].detach() for name in self.sources}
        if self.is_converted:
            return revert_weight_conversion(causal_lm, sources)
        return {self.shapes[0][0]: sources[self.sources[0]]}


def stored_tensors(causal_lm: Any) -> dict[str, Tensor]:
    """Every parameter and persistent buffer that a folder holds, by its name in the model; tied ones once."""
    left_out = {*(causal_lm._keys_to_ignore_on_save or ())}
    found, seen = dict[str, Tensor](), set[int]()
    for name, tensor in causal_lm.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and name not in left_out and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter, also where ZeRO-3 has taken its elements away."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def parts_of(causal_lm: Any) -> tuple[Part, ...]:
    """The parts of a model in the order of its tensors; ValueError if they cannot be told apart."""
    tensors = stored_tensors(causal_lm)
    empty = {name: torch.empty(full_shape(each), device="meta") for name, each in tensors.items()}
    whole = revert_weight_conversion(causal_lm, dict(empty))
    if all(whole.get(name) is each for name, each in empty.items()):
        made = {(name,): {name: each} for name, each in empty.items()}
    else:
        made = {group: _converted(causal_lm, empty, group) for group in _groups(causal_lm, empty)}
    found = {name: each.shape for outputs in made.values() for name, each in outputs.items()}
    if found != {name: each.shape for name, each in whole.items()}:
        different = sorted({*found} ^ {*whole}) or sorted(found)
        raise ValueError(
            f"{type(causal_lm).__name__} stores {different[0]} in a form that cannot be made part by part, so its "
            "weights cannot be published"
        )
    return tuple(_part(group, outputs, empty, tensors) for group, outputs in made.items())


def _part(
    group: tuple[str, ...],
    outputs: Mapping[str, Tensor],
    empty: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> Part:
    is_same = len(group) == 1 and len(outputs) == 1 and next(iter(outputs.values())) is empty[group[0]]
    of_buffers = [not isinstance(tensors[name], torch.nn.Parameter) for name in group]
    return Part(
        sources=group,
        shapes=tuple((name, tuple(each.shape)) for name, each in outputs.items()),
        is_converted=not is_same,
        keeps_float32=all(of_buffers) and all(tensors[name].dtype == torch.float32 for name in group),
    )


def _converted(causal_lm: Any, empty: Mapping[str, Tensor], group: tuple[str, ...]) -> dict[str, Tensor]:
    return revert_weight_conversion(causal_lm, {name: empty[name] for name in group})


def _groups(causal_lm: Any, empty: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Tensors of the model by what they make together: those that alone would make a tensor of the same name."""
    made_by = defaultdict[str, list[str]](list)
    group_of = {name: [name] for name in empty}
    for name in empty:
        for output in _converted(causal_lm, empty, (name,)):
            made_by[output].append(name)
    for names in made_by.values():
        merged = group_of[names[0]]
        for other in names[1:]:
            if group_of[other] is not merged:
                merged += group_of[other]
                group_of |= dict.fromkeys(group_of[other], merged)
    return list(dict.fromkeys(tuple(group) for group in group_of.values()))
