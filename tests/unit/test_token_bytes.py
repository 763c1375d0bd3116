"""The same text in differently written vocabularies is the same; the same letters with another meaning are not."""

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from inputs.check_tokenizers import differing_ids, num_common_ids, tokenizer_findings
from inputs.model_facts import ModelFacts
from inputs.tokenizers import special_tokens, token_bytes

pytestmark = pytest.mark.timeout(30)


def byte_level(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def model(role: str, tokenizer: PreTrainedTokenizerFast) -> ModelFacts:
    return ModelFacts(role, f"{role}.model_path", role, tokenizer, (0,), 128, None, 64, None)


def test_byte_level_letters_and_sentencepiece_pieces_are_read_as_bytes() -> None:
    assert token_bytes(byte_level("a", "\u0120b", "\u010a", "\u00e2\u012b\u00a4")) == {
        0: b"a",
        1: b" b",
        2: b"\n",
        3: b"\xe2\x89\xa4",
    }
    assert token_bytes(pieces("a", "\u2581b", "<0x0A>")) == {0: b"a", 1: b" b", 2: b"\n"}
    assert token_bytes(words("a", "<0x0A>")) == {0: b"a", 1: b"<0x0A>"}


def test_added_tokens_are_plain_text_and_special_ones_are_known() -> None:
    tokenizer = byte_level("a", "b")
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    tokenizer.add_tokens(["caf\u00e9"])
    assert token_bytes(tokenizer)[3] == "caf\u00e9".encode()
    assert special_tokens(tokenizer) == {2: "<|end|>"}


def test_the_same_letters_with_another_meaning_differ() -> None:
    student, teacher = model("student", byte_level("a", "\u0120b")), model("teacher", words("a", "\u0120b"))
    texts, specials = differing_ids(student, teacher, 2)
    assert texts == {1: ("b' b'", repr("\u0120b".encode()))}
    assert specials == {}


def test_a_token_that_is_special_on_one_side_alone_differs() -> None:
    ours, theirs = words("a", "<|end|>"), words("a", "<|end|>")
    ours.add_special_tokens({"eos_token": "<|end|>"})
    texts, specials = differing_ids(model("student", ours), model("teacher", theirs), 2)
    assert (texts, specials) == ({}, {1: ("'<|end|>'", "none")})


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "status"), [(3, 4, "warning"), (4, 3, "error"), (4, 4, "ok")]
)
def test_ids_beyond_the_common_range_matter_where_the_student_could_sample_them(
    num_student: int, num_teacher: int, status: str
) -> None:
    tokens = ("a", "b", "c", "d")
    models = {
        "student": model("student", words(*tokens[:num_student])),
        "teacher": model("teacher", words(*tokens[:num_teacher])),
    }
    findings, details = tokenizer_findings(models)
    assert [each.status for each in findings] == [status]
    assert details["common_ids"] == num_common_ids(models) == min(num_student, num_teacher)
    if status != "ok":
        assert "1 ids from 3 on" in findings[0].message
        assert "'d'" in findings[0].message
