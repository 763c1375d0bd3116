"""Check of chat templates: every model would be given the same text."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from inputs.model_facts import ModelFacts
from inputs.rendering import Prompt
from settings.checks import Finding

CONTEXT = 40
"""Characters that are shown before and after the first difference."""

Render = Callable[[PreTrainedTokenizerBase], list[Prompt]]
"""Renders the sample prompts with the template of a tokenizer."""


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
    except Exception as error:  # a template is a program: it can raise anything
        reason = " ".join(str(error).split()).removeprefix("student.model_path: ") or type(error).__name__
        raise ValueError(f"{model.field}: the {model.who}'s chat template cannot be rendered: {reason}") from error


def _text(model: ModelFacts, prompt: Prompt) -> str:
    """The prompt as text: whether the ids are the same is another check's question."""
    exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    text: Any = model.tokenizer.decode(prompt.token_ids, **exact)
    return str(text)
