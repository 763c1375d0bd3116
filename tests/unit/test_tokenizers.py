"""Model folders, tokenizers, and what counts as a stop token."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config

from inputs.tokenizers import (
    check_model_folder,
    check_weights,
    load_tokenizer,
    model_limits,
    num_known_ids,
    stop_ids,
)

pytestmark = pytest.mark.timeout(30)

WORDS = {f"w{index}": index for index in range(10)}


def tokenizer(words: dict[str, int] = WORDS, *, eos: str | None = None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token=eos)


def save(path: Path, *, config_eos: Any = None, generation_eos: Any = None) -> str:
    """Write a model folder's configuration."""
    Qwen3Config(vocab_size=16, max_position_embeddings=128, eos_token_id=config_eos).save_pretrained(path)
    if generation_eos is not None:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_eos}))
    return str(path)


@pytest.mark.parametrize("path", ["model", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1_8B"])
def test_a_model_is_a_folder_with_a_configuration_or_a_name_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    check_model_folder(path, "teacher.model_path")


@pytest.mark.parametrize(
    "path", ["", "student", "./a/b", "/a/b", "~/student", "../a", "a/b/c", "a/", "models", "models/typo", "file"]
)
def test_a_path_that_is_no_model_folder_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"teacher\.model_path: (no such model folder|.*no config\.json)"):
        check_model_folder(path, "teacher.model_path")


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("with_weights", [False, True])
def test_an_adapter_is_refused_alone_and_beside_weights(
    with_config: bool, with_weights: bool, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    if with_config:
        save(tmp_path)
    if with_weights:
        (tmp_path / "model.safetensors").write_bytes(b"")
    what = "an adapter beside its weights" if with_config and with_weights else "an adapter and no model"
    with pytest.raises(ValueError, match=rf"^student\.model_path: .* holds {what}.*merge it into its base model"):
        check_model_folder(str(tmp_path), "student.model_path")


def test_a_folder_without_weights_or_without_all_of_them_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^student\.model_path: {path} holds no weights \(\*\.safetensors\)$"):
        check_weights(path, "student.model_path")
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[2]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / names[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"lacks {names[1]} \(2 of the 3 files of its weights\)$"):
        check_weights(path, "student.model_path")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    check_weights(path, "student.model_path")
    check_weights("Qwen/Qwen3-0.6B", "student.model_path")
    (tmp_path / "model.safetensors.index.json").write_text("[")
    with pytest.raises(ValueError, match=r"^student\.model_path: model\.safetensors\.index\.json cannot be read"):
        check_weights(path, "student.model_path")


def test_a_folder_without_a_tokenizer_is_an_error_of_its_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.model_path: no tokenizer can be loaded from") as caught:
        load_tokenizer(save(tmp_path), "teacher.model_path")
    assert "\n" not in str(caught.value)


def test_known_ids_reach_to_the_largest_of_a_vocabulary_with_gaps() -> None:
    assert num_known_ids(tokenizer()) == 10
    assert num_known_ids(tokenizer(WORDS | {"end": 14})) == 15


@pytest.mark.parametrize("listed", [[2, 1, 3], [3, 1, 2], [1, 3]])
@pytest.mark.parametrize(("ends_with", "label"), [("w3", 3), ("w1", 1), ("w8", None), ("", None)])
def test_the_id_that_ends_a_turn_comes_first_wherever_the_files_name_it(
    tmp_path: Path, listed: list[int], ends_with: str, label: int | None
) -> None:
    own = tokenizer(eos="w1")
    own.backend_tokenizer.pre_tokenizer = Whitespace()
    own.chat_template = (
        "{% for each in messages %}w5 {{ each.content }}{% if each.role == 'assistant' %} "
        f"{ends_with} w6{{% endif %}} {{% endfor %}}"
    )
    path = save(tmp_path / "model", config_eos=listed[0], generation_eos=listed)
    # Without an end of a turn among them, the tokenizer's own.
    assert stop_ids(path, own)[0] == (label or 1)
    assert {*stop_ids(path, own)} == {*listed, 1}


def test_a_turn_that_ends_where_the_next_begins_ends_with_its_stop_id(tmp_path: Path) -> None:
    own = tokenizer(eos="w1")
    own.backend_tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    path = save(tmp_path, config_eos=1, generation_eos=[1, 4, 5])
    for role, first in (("user", 4), ("assistant", 1)):
        begin = "{{ ' w4 ' if m.role == '" + role + "' else ' w2 ' }}"
        own.chat_template = f"{{% for m in messages %}}{begin}{{{{ m.content }}}}{{% endfor %}}"
        assert stop_ids(path, own)[0] == first


def test_a_template_that_cannot_be_rendered_leaves_the_tokenizers_stop_first(tmp_path: Path) -> None:
    own = tokenizer(eos="w1")
    own.chat_template = "{{ raise_exception('no such role') }}"
    assert stop_ids(save(tmp_path / "model", generation_eos=[2, 1]), own) == (1, 2)


def test_stop_ids_come_from_generation_config_then_model_config_then_own_tokenizer(tmp_path: Path) -> None:
    student = save(tmp_path / "student", config_eos=[5, 6], generation_eos=[7, 6])
    teacher = save(tmp_path / "teacher", config_eos=4)
    assert stop_ids(student, tokenizer(eos="w9")) == (7, 6, 5, 9)
    assert stop_ids(teacher, tokenizer(eos="w8")) == (4, 8)
    assert stop_ids(save(tmp_path / "none"), tokenizer(eos="w8")) == (8,)


def test_a_model_without_any_stop_token_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path)
    with pytest.raises(ValueError, match=f"{path}: neither .* names a stop token"):
        stop_ids(path, tokenizer())


def test_context_and_head_rows_come_from_the_configuration(tmp_path: Path) -> None:
    assert model_limits(save(tmp_path), "student.model_path") == (128, 16)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"student\.model_path: no model configuration in"):
        model_limits(str(tmp_path), "student.model_path")


def test_a_tokenizer_of_more_tokens_than_any_model_has_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vocab = {f"t{index}": index for index in range(1000)}
    content = {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}, "added_tokens": []}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    monkeypatch.setattr("inputs.tokenizers.LARGE_BYTES", 1000)
    monkeypatch.setattr("inputs.tokenizers.MAX_TOKENS", 999)
    with pytest.raises(ValueError, match=r"teacher.model_path: the tokenizer of .* has 1,000 tokens; at most 999"):
        load_tokenizer(str(tmp_path), "teacher.model_path")
    assert f"teacher.model_path: reading {file} takes long" in caplog.text
    monkeypatch.setattr("inputs.tokenizers.MAX_TOKENIZER_BYTES", 2000)
    with pytest.raises(ValueError, match=r"tokenizer.json has [\d,]+ bytes; a tokenizer's file has at most 2,000"):
        load_tokenizer(str(tmp_path), "teacher.model_path")
    file.write_text("[" * 1500)
    with pytest.raises(ValueError, match=r"teacher.model_path: no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path), "teacher.model_path")
