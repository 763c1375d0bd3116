"""Checks of tokenizers and embeddings: ids to bytes on the common range, special ids apart, padded rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from inputs.model_facts import ModelFacts
from inputs.tokenizers import decoder_kinds, special_tokens, token_bytes
from settings.checks import Finding

MAX_NAMED = 5
"""Differing ids that are named one by one."""

FAMILY = "take a teacher of the student's model family, or a student made from the teacher's tokenizer"


def num_common_ids(models: Mapping[str, ModelFacts]) -> int:
    """The ids below this number are known to every model; larger ones are never sampled."""
    return min(each.num_known_ids for each in models.values())


def tokenizer_findings(models: Mapping[str, ModelFacts]) -> tuple[list[Finding], dict[str, Any]]:
    """Compare the student's tokenizer with every other one; findings, and the numbers of ids."""
    student = models["student"]
    findings: list[Finding] = []
    for other in _others(models):
        findings += _compared(student, other)
    details: dict[str, Any] = {"common_ids": num_common_ids(models)}
    for role, each in models.items():
        details[role] = {"ids": each.num_known_ids, "special": len(special_tokens(each.tokenizer))}
    if not findings:
        ids = num_common_ids(models)
        findings = [Finding("ok", f"{ids:,} ids stand for the same bytes in {_names(models)}")]
    return findings, details


def _compared(student: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    num = min(student.num_known_ids, other.num_known_ids)
    texts, specials = differing_ids(student, other, num)
    where = f"{other.field}: the {other.who} has another tokenizer than the student"
    if specials:
        yield Finding("error", f"{where}: {_listed(specials, 'special ids', student, other)}", FAMILY)
    if texts:
        yield Finding("error", f"{where}: {_listed(texts, 'ids', student, other)}", FAMILY)
    if specials or texts or student.num_known_ids == other.num_known_ids:
        return
    knows_more, knows_less = (student, other) if student.num_known_ids > num else (other, student)
    further = _texts_beyond(knows_more, num)
    text = (
        f"{other.field}: the {other.who} has another tokenizer than the student: the {knows_more.who} knows "
        f"{len(further)} ids from {num} on that the {knows_less.who} does not: {_quoted(further)}"
    )
    if knows_more is student:
        yield Finding("error", text, f"with --force tokenizer only the {num:,} common ids are sampled")
    else:
        yield Finding("warning", f"{text}; the student never samples them")


def differing_ids(
    student: ModelFacts, other: ModelFacts, num: int
) -> tuple[dict[int, tuple[str, str]], dict[int, tuple[str, str]]]:
    """Ids below `num` whose bytes differ, with what both sides read; ordinary ids, and special ones.

    An id is special if it is on either side; one that is special on one side alone differs.
    """
    ours, theirs = special_tokens(student.tokenizer), special_tokens(other.tokenizer)
    specials = {
        index: (_special(ours, index), _special(theirs, index))
        for index in sorted(ours.keys() | theirs.keys())
        if index < num and ours.get(index) != theirs.get(index)
    }
    if _is_equal(student, other):
        return {}, specials
    mine, others = token_bytes(student.tokenizer), token_bytes(other.tokenizer)
    texts = {
        index: (_text(mine.get(index)), _text(others.get(index)))
        for index in range(num)
        if index not in specials and mine.get(index) != others.get(index)
    }
    return texts, specials


def _is_equal(student: ModelFacts, other: ModelFacts) -> bool:
    """Whether both have the same tokens and turn them into text in the same way: then the bytes are equal."""
    ours, theirs = student.tokenizer, other.tokenizer
    same_added = ours.added_tokens_decoder.keys() == theirs.added_tokens_decoder.keys()
    return same_added and ours.get_vocab() == theirs.get_vocab() and decoder_kinds(ours) == decoder_kinds(theirs)


def padded_rows_findings(models: Mapping[str, ModelFacts]) -> tuple[list[Finding], dict[str, Any]]:
    """Compare the rows of every model's head and embedding with the ids of its tokenizer and with each other."""
    findings: list[Finding] = []
    student = models["student"]
    details: dict[str, Any] = {"sampled_ids": num_common_ids(models)}
    for each in models.values():
        rows = each.rows_of_weights()
        details[each.role] = {"head_rows": each.num_head_rows, "ids": each.num_known_ids, "weights": rows}
        wrong = {name: number for name, number in rows.items() if number != each.num_head_rows}
        if each.num_head_rows < student.num_known_ids:
            findings.append(_too_few_rows(each, student))
        elif wrong:
            name, number = next(iter(wrong.items()))
            text = (
                f"{each.field}: {name} has {number:,} rows, but config.json says vocab_size {each.num_head_rows:,}"
            )
            findings.append(Finding("error", text, "correct vocab_size, or resize the embeddings and save again"))
    details["shared_rows"] = cut = min(each.num_head_rows for each in models.values())
    sampled, heads = details["sampled_ids"], {each.num_head_rows for each in models.values()}
    listed = ", ".join(f"{each.who} {each.num_head_rows:,}" for each in models.values())
    if len(heads) > 1 and not findings:
        text = f"padded rows differ: {listed}; ids below {sampled:,} are sampled, distributions are cut to {cut:,}"
        findings.append(Finding("warning", text, "nothing, if the rows beyond the tokenizer are padding"))
    elif not findings:
        text = f"{cut:,} rows in every model, {cut - sampled:,} of them padding; ids below {sampled:,} are sampled"
        findings.append(Finding("ok", text))
    return findings, details


def _too_few_rows(model: ModelFacts, student: ModelFacts) -> Finding:
    return Finding(
        "error",
        f"{model.field}: the {model.who} has {model.num_head_rows:,} rows for {student.num_known_ids:,} ids of "
        "the student's tokenizer: some ids have no row",
        "take the tokenizer that belongs to the model, or resize its embeddings",
    )


def _others(models: Mapping[str, ModelFacts]) -> list[ModelFacts]:
    return [each for role, each in models.items() if role != "student"]


def _names(models: Mapping[str, ModelFacts]) -> str:
    return ", ".join(each.who for each in models.values())


def _listed(differing: Mapping[int, tuple[str, str]], what: str, student: ModelFacts, other: ModelFacts) -> str:
    first = list(differing.items())[:MAX_NAMED]
    named = "; ".join(f"{index} (student {mine}, {other.who} {theirs})" for index, (mine, theirs) in first)
    more = f"; and {len(differing) - len(first)} more" if len(differing) > len(first) else ""
    return f"{len(differing)} {what} differ, the first is {named}{more}"


def _texts_beyond(model: ModelFacts, num: int) -> list[str]:
    by_id = sorted((index, token) for token, index in model.tokenizer.get_vocab().items() if index >= num)
    return [token for _, token in by_id]


def _quoted(texts: list[str]) -> str:
    more = ", ..." if len(texts) > MAX_NAMED else ""
    return ", ".join(ascii(text) for text in texts[:MAX_NAMED]) + more


def _special(texts: Mapping[int, str], index: int) -> str:
    return ascii(texts[index]) if index in texts else "none"


def _text(value: bytes | None) -> str:
    return "none" if value is None else repr(value)
