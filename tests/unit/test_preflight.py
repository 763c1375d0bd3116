"""Each kind of mismatch, made in a copy of the demo's models, is found under its own key and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import launch
from settings.exit_codes import BAD_INPUT, FINISHED
from tests.unit.conftest import MODELS, Preflight

pytestmark = pytest.mark.timeout(60)

END, USER, ASSISTANT = "<|im_end|>", "<|user|>", "<|assistant|>"


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def swap_words(tokenizer: dict[str, Any], one: str, other: str) -> None:
    words = tokenizer["model"]["vocab"]
    words[one], words[other] = words[other], words[one]


def swap_specials(tokenizer: dict[str, Any], one: str, other: str) -> None:
    swap_words(tokenizer, one, other)
    for token in tokenizer["added_tokens"]:
        token["content"] = {one: other, other: one}.get(token["content"], token["content"])
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])


def failed(rows: dict[str, Any]) -> list[str]:
    return [key for key, row in rows.items() if row["status"] in ("error", "forced")]


def test_a_pair_that_belongs_together_passes_every_check(preflight: Preflight) -> None:
    code, rows = preflight()
    assert code == FINISHED
    made = {key for key, row in rows.items() if row["status"] != "skipped"}
    assert made == {*rows} - {"replicas", "golden"}  # those need engines
    assert {row["status"] for key, row in rows.items() if key in made} == {"ok"}
    assert rows["data"]["details"]["tokens"] == {"min": 5, "median": 5, "p95": 5, "max": 5}


def test_another_vocabulary_of_equal_size_names_the_first_id_with_its_bytes(
    preflight: Preflight, teacher: Path
) -> None:
    edit(teacher / "tokenizer.json", lambda content: swap_words(content, "1", "2"))
    code, rows = preflight()
    assert (code, failed(rows)) == (BAD_INPUT, ["tokenizer"])
    assert "2 ids differ, the first is 8 (student b'1', teacher b'2')" in rows["tokenizer"]["message"]


def test_swapped_special_ids_are_told_apart_from_ordinary_ones(preflight: Preflight, teacher: Path) -> None:
    edit(teacher / "tokenizer.json", lambda content: swap_specials(content, USER, ASSISTANT))
    code, rows = preflight()
    assert code == BAD_INPUT
    assert (
        f"2 special ids differ, the first is 4 (student '{USER}', teacher '{ASSISTANT}')"
        in (rows["tokenizer"]["message"])
    )


def test_ids_that_the_teacher_alone_knows_are_a_warning(preflight: Preflight, teacher: Path) -> None:
    edit(teacher / "tokenizer.json", lambda content: content["model"]["vocab"].update({"x": 32}))
    edit(teacher / "config.json", lambda content: content.update(vocab_size=33))
    tensors = load_file(teacher / "model.safetensors")
    widen(teacher, tensors, 33)
    code, rows = preflight()
    assert code == FINISHED
    assert rows["tokenizer"]["status"] == "warning"
    assert "the teacher knows 1 ids from 32 on that the student does not: 'x'" in rows["tokenizer"]["message"]


def widen(folder: Path, tensors: dict[str, Any], num_rows: int) -> None:
    """Give the embedding so many rows."""
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    rows = tensors[name]
    padding = torch.zeros(num_rows - len(rows), rows.shape[1], dtype=rows.dtype)
    save_file(tensors | {name: torch.cat([rows, padding])}, folder / "model.safetensors")


def test_a_stop_token_beyond_the_shared_ids_is_asked_for_log_probs_alone(
    preflight: Preflight, teacher: Path
) -> None:
    def add_end(content: dict[str, Any]) -> None:
        content["model"]["vocab"]["<|end|>"] = 32
        content["added_tokens"].append(content["added_tokens"][-1] | {"id": 32, "content": "<|end|>"})

    edit(teacher / "tokenizer.json", add_end)
    edit(teacher / "config.json", lambda content: content.update(vocab_size=33))
    widen(teacher, load_file(teacher / "model.safetensors"), 33)
    template = (teacher / "chat_template.jinja").read_text()
    (teacher / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|end|>"))
    name_end(teacher, 32, "<|end|>")
    cross_eos = ("--objective.stop_mode", "cross_eos")
    assert preflight(*cross_eos)[0] == FINISHED
    code, rows = preflight(*cross_eos, "--masks.selection", "tip")
    assert (code, failed(rows)) == (BAD_INPUT, ["padded_rows"])
    assert (
        "got cross_eos: distributions are over the 32 ids that the models share" in rows["padded_rows"]["message"]
    )


def test_padded_rows_are_named_with_the_cut(preflight: Preflight, teacher: Path) -> None:
    widen(teacher, load_file(teacher / "model.safetensors"), 48)
    edit(teacher / "config.json", lambda content: content.update(vocab_size=48))
    code, rows = preflight()
    assert (code, rows["padded_rows"]["status"]) == (FINISHED, "warning")
    message = rows["padded_rows"]["message"]
    assert (
        "padded rows differ: student 32, teacher 48; ids below 32 are sampled, distributions are cut to 32"
        in message
    )


@pytest.mark.parametrize(
    ("num_rows", "text"),
    [
        (48, "embed_tokens.weight has 32 rows, but config.json says vocab_size 48"),
        (30, "the teacher has 30 rows for 32 ids"),
    ],
)
def test_rows_that_are_not_those_of_the_configuration_or_too_few_are_refused(
    preflight: Preflight, teacher: Path, num_rows: int, text: str
) -> None:
    edit(teacher / "config.json", lambda content: content.update(vocab_size=num_rows))
    code, rows = preflight()
    assert (code, failed(rows)) == (BAD_INPUT, ["padded_rows"])
    assert text in rows["padded_rows"]["message"]


def test_a_template_that_is_not_the_students_is_shown_where_it_differs(
    preflight: Preflight, teacher: Path
) -> None:
    template = (teacher / "chat_template.jinja").read_text()
    (teacher / "chat_template.jinja").write_text(template.replace("'<|assistant|>'", "'<|assistant|>='"))
    code, rows = preflight()
    assert (code, failed(rows)) == (BAD_INPUT, ["chat_template"])
    assert (
        "the teacher's chat template renders 8 of 8 sample prompts differently" in rows["chat_template"]["message"]
    )
    first, ours, theirs, mark = rows["chat_template"]["details"]["teacher"]
    assert "first difference at character" in first
    assert ours.endswith("<|assistant|>(ends here)")
    assert theirs.endswith("<|assistant|>=")
    assert theirs[mark.index("^")] == "="


def test_a_broken_template_is_an_error_of_its_model(preflight: Preflight, teacher: Path) -> None:
    (teacher / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    code, rows = preflight()
    assert code == BAD_INPUT
    message = rows["chat_template"]["message"]
    assert message.startswith("teacher.model_path: the teacher's chat template cannot be rendered: ")
    assert message.endswith("no such role")


def name_end(folder: Path, index: int, token: str) -> None:
    """Let a model end on this id alone."""
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, lambda content: content.update(eos_token_id=index))
    edit(folder / "tokenizer_config.json", lambda content: content.update(eos_token=token))


def test_a_stop_id_that_is_missing_is_named(preflight: Preflight, teacher: Path, tmp_path: Path) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    for folder in (student, teacher):
        name_end(folder, 1, "<|endoftext|>")
    code, rows = preflight("--student.model_path", str(student))
    assert (code, failed(rows)) == (BAD_INPUT, ["stop_ids"])
    assert (
        "a stop id is missing: the student's chat template ends an answer with 2 ('<|im_end|>'), but generation "
        "ends on 1 ('<|endoftext|>') only"
    ) in rows["stop_ids"]["message"]


def test_raw_does_not_fit_sides_that_end_differently_and_another_mode_is_proposed(
    preflight: Preflight, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    name_end(student, 1, "<|endoftext|>")
    code, rows = preflight("--student.model_path", str(student))
    assert (code, failed(rows)) == (BAD_INPUT, ["stop_ids"])
    assert (
        "the student ends with 1 ('<|endoftext|>'), the teacher with 2 ('<|im_end|>')"
        in rows["stop_ids"]["message"]
    )
    assert rows["stop_ids"]["details"]["proposed_mode"] == "cross_eos"
    for mode in ("cross_eos", "mask"):
        assert preflight("--student.model_path", str(student), "--objective.stop_mode", mode)[0] == FINISHED


def test_raw_fits_divergences_whatever_each_side_ends_with(preflight: Preflight, tmp_path: Path) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    name_end(student, 1, "<|endoftext|>")
    divergence = ("--objective.name", "lsm", "--objective.k", "8")
    code, rows = preflight("--student.model_path", str(student), *divergence)
    assert code == FINISHED
    assert rows["stop_ids"]["details"]["proposed_mode"] == "raw"


@pytest.mark.parametrize("mode", ["raw", "cross_eos"])
def test_sides_that_name_the_end_of_a_text_first_still_end_with_the_end_of_a_turn(
    preflight: Preflight, teacher: Path, tmp_path: Path, mode: str
) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    for folder in (student, teacher):
        edit(folder / "generation_config.json", lambda content: content.update(eos_token_id=[1, 2]))
    code, rows = preflight("--student.model_path", str(student), "--objective.stop_mode", mode)
    assert code == FINISHED
    assert rows["stop_ids"]["details"]["proposed_mode"] == "raw"
    for side in rows["stop_ids"]["details"]["models"].values():
        assert side == {"stop_ids": [2, 1], "template_ends_with": 2}


def test_a_base_student_and_a_teacher_that_names_the_end_of_a_text_first_do_not_fit_raw(
    preflight: Preflight, teacher: Path, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    name_end(student, 1, "<|endoftext|>")
    edit(teacher / "generation_config.json", lambda content: content.update(eos_token_id=[1, 2]))
    _, rows = preflight("--student.model_path", str(student), "--objective.stop_mode", "raw")
    assert rows["stop_ids"]["status"] == "warning"
    assert rows["stop_ids"]["details"]["proposed_mode"] == "cross_eos"


@pytest.mark.parametrize(
    ("rope", "longest", "remedy"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 65, "max_model_len to at most 64"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 64, ""),
        ({"type": "longrope"}, 128, ""),
        ({"rope_type": "dynamic", "factor": 4.0}, 129, "max_model_len to at most 128"),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}, 64, "another rope type"),
        ({"rope_type": "yarn", "factor": 4.0}, 128, ""),
    ],
)
def test_positions_that_turn_by_the_longest_sequence_are_refused_where_it_can_be_too_long(
    preflight: Preflight, tmp_path: Path, rope: dict[str, Any], longest: int, remedy: str
) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    factors = {"factor": 2.0, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    edit(student / "config.json", lambda content: content.update(rope_scaling=factors | rope))
    _, rows = preflight("--student.model_path", str(student), "--rollout.engine.max_model_len", str(longest))
    assert (rows["context"]["status"] == "error") == bool(remedy)
    assert remedy in str(rows["context"]["findings"])


def test_a_stop_id_that_the_tokenizer_does_not_know_is_refused(preflight: Preflight, teacher: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit(teacher / name, lambda content: content.update(eos_token_id=151_645))
    code, rows = preflight()
    assert rows["stop_ids"]["status"] == "error"
    assert "the teacher's tokenizer does not know its stop ids [151645]" in str(rows["stop_ids"]["findings"])
    assert code == BAD_INPUT


def test_prompts_that_are_too_long_are_counted(preflight: Preflight, data: Path) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"id": "long", "problem": "1+" * 60, "answer": "0"}) + "\n")
    code, rows = preflight()
    assert (code, failed(rows)) == (BAD_INPUT, ["context"])
    assert "prompt 'long' has 122 tokens" in rows["context"]["message"]
    assert "9.1% of 11 prompts are too long for the teacher" in rows["context"]["message"]
    assert rows["data"]["details"]["share_over_limit"] == pytest.approx(1 / 11, abs=1e-6)
    assert rows["data"]["details"]["longest"]["long"] == 122


@pytest.mark.parametrize(
    ("option", "key", "text"),
    [
        ("--learner.micro_batch_tokens=2000000000", "memory", "most is for learner: change learner.micro_batch"),
        ("--rollout.engine.kv_cache_gib=0.00001", "memory", "rollout.engine.kv_cache_gib: one sequence of full"),
        ("--preflight.min_free_gib=1000000", "disk", "too little disk space: 1000000"),
    ],
)
def test_too_little_memory_or_disk_space_is_named_with_its_arithmetic(
    preflight: Preflight, option: str, key: str, text: str
) -> None:
    code, rows = preflight(option)
    assert (code, failed(rows)) == (BAD_INPUT, [key])
    assert text in str(rows[key]["findings"])
    assert rows[key]["details"]["arithmetic"]


def test_every_mistake_is_collected_not_the_first_alone(preflight: Preflight, teacher: Path, data: Path) -> None:
    edit(teacher / "tokenizer.json", lambda content: swap_words(content, "1", "2"))
    data.write_text(json.dumps({"id": "long", "problem": "1+" * 60, "answer": "0"}) + "\n")
    code, rows = preflight("--preflight.min_free_gib", "1000000")
    assert code == BAD_INPUT
    assert {"tokenizer", "context", "disk"} <= {*failed(rows)}


def test_models_that_cannot_be_read_are_all_named(preflight: Preflight) -> None:
    code, rows = preflight("--student.model_path", "/no/student", "--teacher.model_path", "/no/teacher")
    assert (code, failed(rows)) == (BAD_INPUT, ["paths"])
    assert "/no/student" in rows["paths"]["message"]
    assert "/no/teacher" in rows["paths"]["message"]
    assert rows["stop_ids"]["status"] == "skipped"


def test_a_forced_check_passes_and_says_so(preflight: Preflight, teacher: Path) -> None:
    edit(teacher / "tokenizer.json", lambda content: swap_words(content, "1", "2"))
    code, rows = preflight("--force", "tokenizer")
    assert code == FINISHED
    assert rows["tokenizer"]["status"] == "forced"
    assert "the first is 8" in rows["tokenizer"]["message"]


def test_force_does_not_help_where_nothing_could_run(preflight: Preflight) -> None:
    code, rows = preflight("--teacher.model_path", "/no/teacher", "--force", "paths")
    assert (code, rows["paths"]["status"]) == (BAD_INPUT, "error")


def test_training_names_the_check_and_how_it_is_forced(refused: Callable[..., str], teacher: Path) -> None:
    edit(teacher / "tokenizer.json", lambda content: swap_words(content, "1", "2"))
    line = refused("--teacher.model_path", str(teacher))
    assert "teacher.model_path: the teacher has another tokenizer" in line
    assert line.endswith("(check tokenizer; --force tokenizer continues anyway)")


def test_an_unknown_check_names_the_nearest(refused: Callable[..., str]) -> None:
    assert "--force tokeniser: unknown check; did you mean tokenizer?" in refused("--force", "tokeniser")


def test_the_table_tells_what_is_wrong_and_what_helps(
    arguments: list[str], teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = (teacher / "chat_template.jinja").read_text()
    (teacher / "chat_template.jinja").write_text(template.replace("'<|assistant|>'", "'<|assistant|>='"))
    given = ["preflight", *arguments[1:], "--teacher.model_path", str(teacher)]
    assert launch.main(given) == BAD_INPUT
    printed = capsys.readouterr().out
    assert "remedy: copy the chat template that is meant" in printed
    assert "first difference at character" in printed
    assert "training would be wrong: chat_template" in printed
