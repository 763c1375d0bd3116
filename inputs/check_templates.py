"""Checks of chat templates: models see the same prompt, and generation stops where they end an answer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from inputs.model_facts import ModelFacts
from inputs.rendering import Prompt
from inputs.templates import MARK, Chat, RefusedChatError, render_chats
from inputs.tokenizers import turn_end
from settings.checks import Checks, Finding, RefusedError
from transport.stop_tokens import StopMode, StopTokens

CONTEXT = 40
"""Characters that are shown before and after the first difference."""

Render = Callable[[PreTrainedTokenizerBase], list[Prompt]]
"""Renders the sample prompts with the template of a tokenizer."""


def stop_findings(
    models: Mapping[str, ModelFacts],
    stops: StopTokens,
    mode: StopMode,
    *,
    is_direct: bool = False,
    template_arguments: Mapping[str, Any] | None = None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Compare the stop ids of student and teachers, and those that their chat templates end an answer with.

    `is_direct`: distributions are compared, so that every stop token is scored, whichever was sampled.
    """
    ends = {role: answer_end(each, template_arguments or {}) for role, each in models.items()}
    findings = [*_unknown(models), *_never_stops(models, stops, ends)]
    student = models["student"]
    teachers = [each for role, each in models.items() if role.startswith("teacher")]
    for teacher in [] if is_direct else teachers:
        findings += _mode_findings(student, teacher, mode)
    proposed = "raw" if is_direct else proposed_mode(student, teachers)
    details = {role: {"stop_ids": list(each.stop_ids), "template_ends_with": ends[role]}
               for role, each in models.items()}  # fmt: skip
    if not findings:
        listed = "; ".join(f"{each.who} {_named(each, each.stop_ids)}" for each in models.values())
        fits = "fits" if mode == proposed else f"is set, {proposed} would train the stop token too"
        mode_text = f"stop mode {mode} {fits}" if mode != "cross_eos" else "stop mode cross_eos fits"
        findings = [Finding("ok", f"{listed}; {mode_text}")]
    return findings, {"models": details, "ends_on": list(stops.ids), "mode": mode, "proposed_mode": proposed}


def proposed_mode(student: ModelFacts, teachers: list[ModelFacts]) -> StopMode:
    """`raw` where every side's own stop token is the same, else `cross_eos`, which asks each for its own."""
    labels = {each.stop_ids[0] for each in (student, *teachers)}
    return "raw" if len(labels) == 1 else "cross_eos"


def answer_end(model: ModelFacts, template_arguments: Mapping[str, Any]) -> int | None:
    """The id with which the model's chat template ends an answer; None without one.

    ValueError naming the model if its template cannot be rendered.
    """
    try:
        return turn_end(model.tokenizer, model.stop_ids, template_arguments)
    except RefusedChatError as error:
        raise ValueError(f"{model.field}: the {model.who}'s chat template cannot be rendered: {error}") from error


def _unknown(models: Mapping[str, ModelFacts]) -> Iterator[Finding]:
    for each in models.values():
        unknown = [index for index in each.stop_ids if not 0 <= index < each.num_known_ids]
        if unknown:
            text = f"{each.field}: the {each.who}'s tokenizer does not know its stop ids {unknown}"
            num = each.num_known_ids
            remedy = f"correct eos_token_id in config.json and generation_config.json (it knows {num:,} ids)"
            yield Finding("error", text, remedy)


def _never_stops(
    models: Mapping[str, ModelFacts], stops: StopTokens, ends: Mapping[str, int | None]
) -> Iterator[Finding]:
    """A model that scores for teaching ends its answers with something that does not stop generation."""
    for role, end in ends.items():
        if end is None or end in stops.ids or role == "reference":
            continue
        each = models[role]
        yield Finding(
            "error",
            f"{each.field}: a stop id is missing: the {each.who}'s chat template ends an answer with "
            f"{_named(each, [end])}, but generation ends on {_named(each, stops.ids)} only",
            f"add {end} to eos_token_id in generation_config.json of {each.path}",
        )


def _mode_findings(student: ModelFacts, teacher: ModelFacts, mode: StopMode) -> Iterator[Finding]:
    ours, theirs = student.stop_ids[0], teacher.stop_ids[0]
    if mode != "raw" or ours == theirs:
        return
    is_shared = ours in teacher.stop_ids or theirs in student.stop_ids
    text = (
        f"objective.stop_mode: raw does not fit: the student ends with {_named(student, [ours])}, the "
        f"{teacher.who} with {_named(teacher, [theirs])}, so a right stop is scored as a wrong token"
    )
    remedy = (
        "set objective.stop_mode cross_eos (each side is asked for its own stop token) or mask (it is left out)"
    )
    yield Finding("warning" if is_shared else "error", text, remedy)


def _named(model: ModelFacts, ids: tuple[int, ...] | list[int]) -> str:
    known = {index: token for token, index in model.tokenizer.get_vocab().items() if index in ids}
    return ", ".join(f"{index} ({known[index]!a})" if index in known else str(index) for index in ids)


def check_limits(models: Mapping[str, ModelFacts], template_arguments: Mapping[str, Any], checks: Checks) -> None:
    """Render a short question with the template of every model, before any with many prompts.

    RefusedError if one does not end or takes too much memory, after all have been tried.
    """
    ended = list[str]()
    for each in models.values():
        with checks.guard("chat_template", is_hard=True):
            try:
                if each.tokenizer.chat_template:
                    render_chats(each.tokenizer, [Chat([{"role": "user", "content": MARK}])], template_arguments)
            except RefusedChatError as error:
                if error.met_limit:  # else what it says of the prompts themselves counts
                    ended.append(each.who)
                    text = f"{each.field}: the {each.who}'s chat template cannot be rendered: {error}"
                    raise ValueError(text) from error
    if ended:
        raise RefusedError(f"not every chat template can be rendered: {', '.join(ended)}")


def template_findings(models: Mapping[str, ModelFacts], render: Render) -> tuple[list[Finding], dict[str, Any]]:
    """Render the sample prompts as each model's template does, and compare them with the student's.

    A reference model that differs is a warning.
    """
    student, findings = models["student"], list[Finding]()
    prompts = _rendered(student, render)
    details: dict[str, Any] = {"num_prompts": len(prompts)}
    for role, each in models.items():
        if role == "student":
            continue
        if not each.tokenizer.chat_template:
            text = f"{each.field}: the {each.who} has no chat template; it is given the student's prompts"
            findings.append(Finding("warning", text))
            continue
        theirs = _rendered(each, render)
        pairs = [(_text(student, ours), _text(each, other)) for ours, other in zip(prompts, theirs, strict=True)]
        differing = [index for index, (ours, other) in enumerate(pairs) if ours != other]
        if differing:
            first = differing[0]
            findings.append(_finding(each, prompts[first], len(differing), len(prompts)))
            details[role] = first_difference(*pairs[first], names=("student", each.who))
    if not findings:
        who = ", ".join(each.who for each in models.values())
        findings = [Finding("ok", f"{len(prompts)} sample prompts are rendered alike by {who}")]
    return findings, details


def first_difference(ours: str, theirs: str, *, names: tuple[str, str]) -> list[str]:
    """Lines that show where two texts differ first, with some context and a mark under the place."""
    both = zip(ours, theirs, strict=False)
    place = next((i for i, (a, b) in enumerate(both) if a != b), min(len(ours), len(theirs)))
    begin = max(0, place - CONTEXT)
    width = max(map(len, names))
    lines = [f"first difference at character {place}:"]
    for name, text in zip(names, (ours, theirs), strict=True):
        before, after = ascii(text[begin:place])[1:-1], ascii(text[place : place + CONTEXT])[1:-1]
        lines.append(f"{name:>{width}}: {before}{after or '(ends here)'}")
    mark = len(ascii(ours[begin:place])[1:-1])
    return [*lines, f"{'':>{width}}  {'':>{mark}}^"]


def _finding(model: ModelFacts, first: Prompt, num: int, total: int) -> Finding:
    status = "warning" if model.role == "reference" else "error"
    return Finding(
        status,
        f"{model.field}: the {model.who}'s chat template renders {num} of {total} sample prompts differently than "
        f"the student's, the first is {first.prompt_id!r}",
        f"copy the chat template that is meant into both model folders, or set data.template_arguments; the "
        f"{model.who} is always given the student's prompts",
    )


def _rendered(model: ModelFacts, render: Render) -> list[Prompt]:
    try:
        return render(model.tokenizer)
    except ValueError as error:
        reason = str(error).removeprefix("student.model_path: ")
        raise ValueError(f"{model.field}: the {model.who}'s chat template cannot be rendered: {reason}") from error


def _text(model: ModelFacts, prompt: Prompt) -> str:
    """The prompt as text: whether the ids are the same is another check's question."""
    exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    text: Any = model.tokenizer.decode(prompt.token_ids, **exact)
    return str(text)
