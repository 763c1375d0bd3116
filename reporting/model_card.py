"""The model card of an exported student: `README.md` beside its weights, made of the run's own files.

Its front matter is what the Hugging Face hub reads; every number in it is one of `eval.jsonl`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from records.files import read_json
from records.ledger import slots_of
from records.run_folder import RunFolder, own_version
from settings.run import RunConfig

logger = logging.getLogger(__name__)

MODEL_CARD = "README.md"


def write_model_card(
    folder: RunFolder, config: RunConfig, export: Path, *, step: int, name: str | None = None
) -> Path:
    """Write the card of the student after `step` steps into `export`; returns its path.

    `name` is its repository on the hub, where it is uploaded.
    """
    export.mkdir(parents=True, exist_ok=True)
    card = export / MODEL_CARD
    card.write_text(model_card(folder, config, step=step, name=name or config.run_name), encoding="utf-8")
    return card


def model_card(folder: RunFolder, config: RunConfig, *, step: int, name: str) -> str:
    """The whole card."""
    evaluations = evaluations_of(folder, step)
    front = yaml.safe_dump(front_matter(config, evaluations, name=name), sort_keys=False, allow_unicode=False)
    steps = [row for row in folder.valid_metrics() if row["step"] <= step]
    ledger = folder.ledger_rows.valid()
    teachers = {role: each.model_path for role, each in config.teacher_of_role.items()}
    text = FRAME.format(
        title=name,
        student=config.student.model_path,
        teachers=" and ".join(f"`{path}`" for path in teachers.values()),
        recipe=table([*recipe_of(config, steps, step)]),
        data=data_of(config, sum(len(slots_of(uids)) for number, uids in ledger.items() if number <= step)),
        numbers=numbers_of(evaluations, config),
        use=USE.format(path=name if "/" in name else f"runs/{name}/export", sampling=_sampling_of(config)),
        made=made_by(folder),
        limits=limits_of(config, evaluations),
    )
    return f"---\n{front}---\n\n{text}"


# -- front matter ---------------------------------------------------------------------------------------------


def front_matter(config: RunConfig, evaluations: Sequence[Mapping[str, Any]], *, name: str) -> dict[str, Any]:
    """What the hub reads. A model or data set in a local folder has no name there, and is in the text alone."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if is_hub_name(config.student.model_path):
        front |= {"base_model": config.student.model_path, "base_model_relation": "finetune"}
    teachers = [each.model_path for each in config.teacher_of_role.values()]
    front["teacher"] = teachers[0] if len(teachers) == 1 else teachers
    front["tags"] = ["poweropd", "on-policy-distillation", "distillation"]
    names = [path for path, _ in sources_of(config) if is_hub_name(path)]
    if names:
        front["datasets"] = names
    license_name = license_of(Path(config.student.model_path))
    if license_name is not None:
        front["license"] = license_name
    results = [_result(row) for row in evaluations if str(row["model"]).startswith("student") and row["step"] > 0]
    if results:
        front["model-index"] = [{"name": name.rpartition("/")[2], "results": results}]
    return front


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [
        {"type": kind, "name": f"{kind.removesuffix('_k')}_{row.get('k', 'k')}", "value": row[kind]}
        for kind in ("avg_at_k", "pass_at_k")
        if row.get(kind) is not None
    ]
    benchmark = {"name": str(row["benchmark"]), "type": str(row["benchmark"])}
    return {"task": {"type": "text-generation"}, "dataset": benchmark, "metrics": metrics}


def is_hub_name(path: str) -> bool:
    """Whether this is `organisation/name`, and no folder or file here."""
    return path.count("/") == 1 and not path.startswith((".", "/")) and not Path(path).parent.exists()


def license_of(student: Path) -> str | None:
    """The license in the front matter of the student's own card; None if it says none."""
    card = student / MODEL_CARD
    try:
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", maxsplit=2)
        if len(parts) < 3 or parts[0].strip():
            return None
        front = yaml.safe_load(parts[1])
    except (OSError, RecursionError, ValueError, yaml.YAMLError):  # no card; no YAML; a date that is none
        return None
    return front.get("license") if isinstance(front, dict) and isinstance(front.get("license"), str) else None


# -- text -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[tuple[str, str]]) -> str:
    """A Markdown table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def recipe_of(config: RunConfig, steps: Sequence[Mapping[str, Any]], step: int) -> list[tuple[str, str]]:
    """What was optimized, and how."""
    objective, learner, rollout = config.objective, config.learner, config.rollout
    parameters = ", ".join(f"{key} {json.dumps(value)}" for key, value in objective.parameters.items())
    tokens = sum(row.get("tokens_trained", 0) for row in steps)
    return [
        ("objective", f"`{objective.name}`" + (f" ({parameters})" if parameters else "")),
        ("importance correction", f"`{config.importance.name}`"),
        ("stop tokens", f"`{objective.stop_mode}`"),
        ("steps", f"{step} of {config.max_steps}"),
        ("batch", f"{config.batch_size} prompts, {config.num_samples_per_prompt} response(s) each"),
        ("response tokens trained", f"{tokens:,.0f}"),
        ("longest response", f"{rollout.max_response_tokens} tokens"),
        ("sampling", _sampling_of(config)),
        (
            "learning rate",
            f"{learner.learning_rate:g}, {learner.lr_schedule}, {learner.warmup_steps} warm-up steps",
        ),
        ("optimizer", f"AdamW, betas {tuple(learner.betas)}, weight decay {learner.weight_decay:g}"),
        ("precision", f"{learner.dtype}, ZeRO stage {learner.zero_stage}"),
        ("staleness", f"at most {config.max_staleness} weight versions"),
        ("seed", str(config.seed)),
    ]


def _sampling_of(config: RunConfig) -> str:
    rollout = config.rollout
    return f"temperature {rollout.temperature:g}, top-p {rollout.top_p:g}, top-k {rollout.top_k}"


def sources_of(config: RunConfig) -> list[tuple[str, float]]:
    """Path and weight of every source of training prompts."""
    data = config.data.model_dump(mode="json")
    if data.get("train_path"):
        return [(str(data["train_path"]), 1.0)]
    return [(str(source["path"]), float(source.get("weight") or 1.0)) for source in data.get("sources") or ()]


def data_of(config: RunConfig, num_prompts: int) -> str:
    """The sources, and how many prompts were taken from them."""
    lines = [f"{num_prompts:,} prompts (one per slot) were trained on, from:", ""]
    sources = sources_of(config)
    for path, weight in sources:
        rows = _count_lines(Path(path))
        share = f", weight {weight:g}" if len(sources) > 1 else ""
        lines.append(f"- `{path}`{share}" + (f", {rows:,} rows" if rows is not None else ""))
    return "\n".join(lines)


def _count_lines(path: Path) -> int | None:
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def evaluations_of(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """Teachers, the student before training, and the student at `step`: the last row of each per benchmark."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for row in folder.evaluation_rows():
        is_student = str(row["model"]).startswith("student")
        if not is_student or row["step"] in (0, step):
            who = ("student before" if row["step"] == 0 else "student after") if is_student else str(row["model"])
            last[who, str(row["benchmark"])] = row
    return [*last.values()]


def numbers_of(evaluations: Sequence[Mapping[str, Any]], config: RunConfig) -> str:
    """The table of accuracies, and their protocol."""
    if not evaluations:
        return "This student was not evaluated."
    lines = [
        "| model | benchmark | step | accuracy | pass | majority | mean tokens | truncated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in evaluations:
        who = "student" if str(row["model"]).startswith("student") else str(row["model"])
        lines.append(
            f"| {who} | {row['benchmark']} | {row['step']} | {_number(row, 'avg_at_k')} (avg@{row.get('k', 'k')}) "
            f"| {_number(row, 'pass_at_k')} (pass@{row.get('k', 'k')}) | {_number(row, 'maj_at_k')} "
            f"| {_number(row, 'mean_length', '.1f')} | {_number(row, 'truncated_frac')} |"
        )
    settings = config.evaluation
    limit = settings.max_response_tokens or config.rollout.max_response_tokens
    protocol = (
        f"Protocol: {evaluations[-1].get('n', settings.num_samples)} responses per problem, temperature "
        f"{settings.temperature:g}, top-p {settings.top_p:g}, top-k {settings.top_k}, at most {limit} tokens, "
        f"seed {config.seed}; responses end on the stop tokens of student and teacher."
    )
    return "\n".join([*lines, "", protocol])


def _number(row: Mapping[str, Any], key: str, form: str = ".4f") -> str:
    return "-" if row.get(key) is None else format(row[key], form)


def made_by(folder: RunFolder) -> str:
    """Versions and commit of the software that trained it."""
    file = folder.path / "environment.json"
    try:
        environment = read_json(file) or {}
    except ValueError as error:  # the student is what counts
        logger.warning("the model card does not say what trained the student: %s", error)
        environment = {}
    commit = environment.get("git_commit")
    text = f"poweropd {environment.get('poweropd') or own_version()}" + (f", commit `{commit}`" if commit else "")
    text += " with local changes" if environment.get("git_is_dirty") else ""
    packages = environment.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    named = [f"{name} {packages[name]}" for name in sorted(packages)]
    return f"{text}; {', '.join(named)}" if named else text


def limits_of(config: RunConfig, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """What must not be concluded."""
    names = sorted({str(row["benchmark"]) for row in evaluations})
    measured = f"Only accuracy on {', '.join(names)} was measured" if names else "Nothing was measured"
    return (
        f"- {measured}; other abilities, languages, safety and bias were not.\n"
        f"- It was trained on responses of at most {config.rollout.max_response_tokens} tokens, on its own "
        "samples, and takes over faults of its teacher.\n"
        "- The licenses of student, teacher and data apply; check them before you publish."
    )


# -- the words, with what is filled in in braces --------------------------------------------------------------


FRAME = """# {title}

`{student}`, distilled on its own samples from {teachers} (on-policy distillation).

## Recipe

{recipe}

## Data

{data}

## Numbers

{numbers}

## Use

{use}

## How it was made

{made}

## Limitations

{limits}
"""

USE = """`generation_config.json` has every stop token of student and teacher, and the sampling of training
({sampling}); both libraries take them from there.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForCausalLM.from_pretrained("{path}")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
outputs = model.generate(**inputs, max_new_tokens=1024)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

```python
from vllm import LLM

model = LLM("{path}")
sampling = model.get_default_sampling_params()
sampling.max_tokens = 1024
print(model.chat([{{"role": "user", "content": "..."}}], sampling)[0].outputs[0].text)
```"""
