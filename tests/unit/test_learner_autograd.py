"""The learner's gradient is that of the formulas, written down plainly and differentiated by autograd.

Every objective, under every stop mode, in one, two and four micro-batches; also what looks at whole distributions
beside a reward. The reference takes each response by itself, without packing, chunks or micro-batches.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import pyarrow as pa
import pytest
import torch
from torch import Tensor

import rewards
from learner.collate import PackedBatch, collate, pack
from learner.divergence import TeacherHead
from learner.facts import StudentValues
from learner.log_probs import HeadLimits
from learner.loss import Objective
from learner.student import StudentModel
from learner.window import prepare_window
from settings.objective import ImportanceConfig, MasksConfig, ObjectiveConfig, TokenWeightsConfig
from tests.unit.test_learner_scene import ALONE, STOPS, VOCAB_SIZE, scored_table, tiny_qwen3
from transport.batches import HIDDEN, REFERENCE, TARGETS, TOP_K_FIELDS, TeacherSignal, scored_schema
from transport.stop_tokens import StopMode

pytestmark = pytest.mark.timeout(120)

# Shapes: T response tokens of one response, or of all, V vocabulary, H hidden size, K the teacher's top tokens.
H, K = 16, 8
STUDENTS, TEACHERS, CUT = 62, 63, 7
"""How responses end: with the stop token of a side, or cut off."""
LAST = (STUDENTS, TEACHERS, CUT, STUDENTS)
LENGTHS = [(3, 9), (5, 7), (2, 10), (6, 6)]
TOKENS_OF_MICRO_BATCHES = {1: 1000, 2: 22, 4: 11}
MODES: tuple[StopMode, ...] = get_args(StopMode)
STEP, MAX_STEPS = 1, 4
TOLERANCE = 1e-5

CASES: list[dict[str, Any]] = [
    *({"name": name} for name in sorted(rewards.OBJECTIVES)),
    *({"name": "opd_plus", "divergence": which, "naive": naive} for which in ("fkl", "rkl") for naive in (0, 1)),
    {"name": "power", "alpha": 0.5, "rescale": "inv_alpha", "aggregate": "seq_mean_token_mean"},
    {"name": "log_ratio", "normaliser": "zscore"},
    {"name": "log_ratio", "discount": 0.5, "aggregate": "seq_mean_token_sum"},
    {"name": "reopold", "switch_step": 0},
    {"name": "veto", "direction": "reverse"},
    {"name": "jsd", "beta": 0.3, "temperature": 2.0},
    {"name": "lsm", "support": "teacher+sampled"},
    {"name": "lsm", "support": "student", "direction": "forward"},
    {"name": "lsm", "support": "union", "tail": "bucket"},
    {"name": "power", "alpha": 0.5, "baseline": "closed_form"},
    *({"name": name, "baseline": "closed_form"} for name in ("log_ratio", "veto_reverse")),
    {"name": "log_ratio", "selection": "entropy_top"},
    {"name": "log_ratio", "selection": "tip"},
    {"name": "log_ratio", "selection": "fire_opd"},
    {"name": "lsm", "support": "teacher+sampled", "selection": "tip"},
    {"name": "log_tanh", "weights": "fire_opd"},
    {"name": "power", "weights": "iw_opd"},
]


def signal_of(case: dict[str, Any], needs: rewards.Needs) -> TeacherSignal:
    asked = {*needs.teacher} | ({"full"} if case.keys() & {"baseline"} else set())
    asked |= {"full"} if "tip" in case.values() or case.get("weights") == "fire_opd" else set()
    kind = "full" if asked & {"full", "ids_query"} else "topk" if "topk" in asked else "token"
    shape = {"full": {"hidden_size": H, "dtype": "float32"}, "topk": {"k": K}, "token": {}}[kind]
    return TeacherSignal(kind, has_reference=needs.reference, **shape)


class Scene:
    """A student, and four scored responses with everything that a teacher may send of them."""

    def __init__(self, mode: StopMode) -> None:
        self.student = StudentModel(tiny_qwen3(num_layers=1), HeadLimits(VOCAB_SIZE, chunk_tokens=7))
        self.parameters = [*self.student.parameters()]
        generator = torch.Generator().manual_seed(3)
        self.head = TeacherHead(torch.randn(VOCAB_SIZE, H, generator=generator) * 0.7)
        tables = [
            scored_table([lengths], first=row, ends_with=last, stop_mode=mode)
            for row, (lengths, last) in enumerate(zip(LENGTHS, LAST, strict=True))
        ]
        self.rows = pa.concat_tables(tables).to_pylist()
        for row, last in zip(self.rows, LAST, strict=True):
            hidden_TH = torch.randn(len(row["response_token_ids"]), H, generator=generator)
            row["log_t_TV"] = self.head.logits(hidden_TH).log_softmax(-1)
            row["is_stop"] = last in STOPS.ids
            # Each side's own stop token is its only one here; a student is credited for what it sampled.
            row[TARGETS.name] = [*row["response_token_ids"]]
            if mode == "cross_eos" and row["is_stop"]:
                row[TARGETS.name][-1] = TEACHERS
            asked_T = torch.tensor(row[TARGETS.name])
            row["teacher_log_probs"] = row["log_t_TV"].gather(1, asked_T[:, None])[:, 0].tolist()
            row[REFERENCE.name] = (row["log_t_TV"].roll(1, 1).gather(1, asked_T[:, None])[:, 0]).tolist()
            top_TK = row["log_t_TV"].topk(K)
            for field, values in zip(TOP_K_FIELDS, (top_TK.indices, top_TK.values), strict=True):
                row[field.name] = values.flatten().tolist()
            row[HIDDEN.name] = hidden_TH.numpy().tobytes()
            keep_T = torch.ones(len(hidden_TH), dtype=torch.bool)
            keep_T[-1] = not (mode == "mask" and row["is_stop"])
            row["keep_T"] = keep_T

    def table(self, signal: TeacherSignal) -> pa.Table:
        schema = scored_schema(signal)
        return pa.Table.from_pylist(
            [{name: row[name] for name in schema.names} for row in self.rows], schema=schema
        )

    def log_p(self) -> list[Tensor]:
        """The student's log-probs [T, V] of each response by itself, with gradient."""
        found = []
        for row in self.rows:
            prompt, response = row["prompt_token_ids"], row["response_token_ids"]
            logits = self.student.causal_lm(input_ids=torch.tensor([prompt + response])).logits[0]
            found.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        return found


@cache
def scene(mode: StopMode) -> Scene:
    return Scene(mode)


class Case:
    """One objective as the learner has it, and as formulas."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        own = {"aggregate", "normaliser", "discount", "baseline"}
        further = own | {"name", "selection", "weights"}
        entry = rewards.OBJECTIVES[given["name"]]
        known = {parameter.name for parameter in entry.parameters}
        small = {"k": K} if "k" in known else {}
        parameters = small | {key: value for key, value in given.items() if key not in further}
        if "naive" in parameters:
            parameters["naive"] = bool(parameters["naive"])
        self.parameters = rewards.validate("objective", given["name"], parameters)
        self.needs = entry.needs_with(self.parameters)
        self.signal = signal_of(given, self.needs)
        of_objective = {key: value for key, value in given.items() if key in own}
        self.config = ObjectiveConfig.model_validate({"name": given["name"], **of_objective, **self.parameters})
        weights = given.get("weights", "none")
        selection = given.get("selection", "none")
        self.mask_parameters = rewards.validate("token_mask", selection, {}) if selection != "none" else {}
        self.objective = Objective(
            self.config,
            ImportanceConfig.model_validate({"name": "truncated", "low": 0.0, "high": 2.0}),
            masks=MasksConfig.model_validate({"selection": selection, **self.mask_parameters}),
            token_weights=TokenWeightsConfig.model_validate({"name": weights}),
        )
        self.objective.begin_step(STEP, MAX_STEPS)

    # -- the learner ------------------------------------------------------------------------------------------

    def of_learner(self, mode: StopMode, num_micro_batches: int) -> Tensor:
        given, loss = scene(mode), self.objective
        head = given.head if self.signal.kind == "full" else None
        batches = collate(
            [given.table(self.signal)],
            stop_mode=mode,
            stops=STOPS,
            max_tokens=TOKENS_OF_MICRO_BATCHES[num_micro_batches],
            signal=self.signal,
        )
        assert len(batches) == num_micro_batches
        if head is not None:
            batches = [head.with_log_probs(batch, chunk_tokens=5) for batch in batches]

        def values(batch: PackedBatch, divergence: Any, facts: Any) -> StudentValues:
            inputs = (batch.input_ids_N, batch.position_ids_N, batch.source_positions_T, batch.target_ids_T)
            logp_T, entropy_T, *further = given.student(*inputs, divergence, facts)
            divergence_T = None if divergence is None else further[0]
            return StudentValues(logp_T, entropy_T, divergence_T, {} if facts is None else facts.named(further[1]))

        window = prepare_window(
            loss,
            batches,
            evaluate=lambda batch: values(batch, None, loss.window_facts(batch, head)),
            padding=pack([], signal=self.signal),
            ranks=ALONE,
        )
        given.student.zero_grad()
        for batch, fixed in zip(window.batches, window.fixed, strict=True):
            found = values(batch, loss.divergence(batch, head), loss.facts(batch, head))
            loss.micro_batch_loss(
                batch,
                found.logp_T,
                found.entropy_T,
                found.divergence_T,
                counts=window.counts,
                statistics_S=window.statistics_S,
                fixed=fixed,
                facts=found.facts,
            ).loss.backward()
        return flat([parameter.grad for parameter in given.parameters])

    # -- the formulas -----------------------------------------------------------------------------------------

    def of_formulas(self, mode: StopMode) -> Tensor:
        given = scene(mode)
        log_p = given.log_p()
        logp = [
            values_TV.gather(1, torch.tensor(row["response_token_ids"])[:, None])[:, 0]
            for values_TV, row in zip(log_p, given.rows, strict=True)
        ]
        keep = self.selected(given.rows, log_p, logp)
        reward = [*self.normalised([*self.rewards(given.rows, logp, keep)], keep)]
        weight = self.weights(given.rows, log_p, keep)
        num_tokens, num_responses = int(torch.cat(keep).sum()), sum(bool(each.any()) for each in keep)
        total = torch.zeros(())
        for index, row in enumerate(given.rows):
            term_T = torch.zeros(len(logp[index]))
            if self.needs.form != "direct":
                behaviour_T = torch.tensor(row["behaviour_log_probs"])
                importance_T = (logp[index].detach() - behaviour_T).exp().clamp(max=2.0)
                credit_T = reward[index] * weight[index]
                term_T = term_T - importance_T * credit_T * logp[index]
            if self.needs.form != "pg":
                term_T = term_T + self.divergence(row, log_p[index])
            loss = term_T[keep[index]].sum()
            match self.config.aggregate:
                case "window_token_mean":
                    total = total + loss / num_tokens
                case "seq_mean_token_mean":
                    total = total + loss / keep[index].sum() / num_responses
                case "seq_mean_token_sum":
                    total = total + loss / num_responses
        gradients = torch.autograd.grad(total, given.parameters, allow_unused=True)
        return flat(
            [torch.zeros_like(p) if g is None else g for p, g in zip(given.parameters, gradients, strict=True)]
        )

    def scheduled(self, entry: rewards.Entry) -> dict[str, int]:
        return {"step": STEP, "max_steps": MAX_STEPS} if "step" in entry.extras else {}

    def rewards(self, rows: list[dict[str, Any]], logp: list[Tensor], keep: list[Tensor]) -> Iterator[Tensor]:
        entry = rewards.TOKEN_REWARDS.get(self.config.name)
        baseline = rewards.BASELINES.get(self.config.name) if self.config.baseline == "closed_form" else None
        for row, logp_T, keep_T, log_p_TV in zip(rows, logp, keep, self.detached, strict=True):
            if entry is None or self.needs.form == "direct":
                yield torch.zeros_like(logp_T)
                continue
            teacher_T, mask_1T = torch.tensor(row["teacher_log_probs"]), keep_T[None]
            extras: dict[str, Any] = self.scheduled(entry)
            if "reference_logp_BT" in entry.extras:
                extras["reference_logp_BT"] = torch.tensor(row[REFERENCE.name])[None]
            reward_T = entry(teacher_T[None], logp_T.detach()[None], mask_1T, **self.parameters, **extras)[0]
            if self.config.discount:
                later = [
                    sum(self.config.discount ** (s - t) * reward_T[s] for s in range(t, len(reward_T)))
                    for t in range(len(reward_T))
                ]
                reward_T = torch.stack([torch.as_tensor(each) for each in later])
            if baseline is not None:
                p_TV = log_p_TV.exp()
                every_TV = entry(row["log_t_TV"], log_p_TV, p_TV >= 0, **self.parameters, **extras)
                reward_T = reward_T - (p_TV * every_TV).sum(-1)
            yield reward_T

    def normalised(self, reward: list[Tensor], keep: list[Tensor]) -> Iterator[Tensor]:
        if self.config.normaliser == "none":
            yield from reward
            return
        kept_T = torch.cat([each[keep_T] for each, keep_T in zip(reward, keep, strict=True)])
        for each in reward:
            yield (each - kept_T.mean()) / kept_T.std(correction=0)

    def divergence(self, row: dict[str, Any], log_p_TV: Tensor) -> Tensor:
        entry = rewards.DIVERGENCES[self.config.name]
        teacher: rewards.Teacher = rewards.TeacherLogits(row["log_t_TV"])
        if self.signal.kind == "topk":
            ids_TK, logp_TK = (torch.tensor(row[field.name]).view(-1, K) for field in TOP_K_FIELDS)
            teacher = rewards.TeacherTopK(ids_TK, logp_TK)
        extras: dict[str, Any] = self.scheduled(entry)
        if "sampled_ids_N" in entry.extras:
            extras["sampled_ids_N"] = torch.tensor(row["response_token_ids"])
            extras["sampled_teacher_logp_N"] = torch.tensor(row["teacher_log_probs"])
        return entry(log_p_TV, teacher, **self.parameters, **extras)

    def selected(self, rows: list[dict[str, Any]], log_p: list[Tensor], logp: list[Tensor]) -> list[Tensor]:
        """The tokens that count: after the stop mode, and after a selection over the window."""
        self.detached = [each.detach() for each in log_p]
        keep, sizes = [row["keep_T"] for row in rows], [len(each) for each in logp]
        name = rewards.OBJECTIVES[self.config.name].token_mask or self.given.get("selection", "none")
        if name == "none":
            return keep
        all_1T, log_p_TV = torch.cat(keep)[None], torch.cat(self.detached)
        log_t_TV = torch.cat([row["log_t_TV"] for row in rows])
        teacher = [torch.tensor(row["teacher_log_probs"]) for row in rows]
        if name == "fire_opd":
            mean_B = torch.stack([each[kept].mean() for each, kept in zip(teacher, keep, strict=True)])
            limit = mean_B.quantile(float(self.mask_parameters["lowest_quantile"]))  # pyright: ignore[reportArgumentType]
            return [each & (mean >= limit) for each, mean in zip(keep, mean_B, strict=True)]
        inputs = {
            "student_entropy_BT": -(log_p_TV.exp() * log_p_TV).sum(-1)[None],
            "reverse_kl_BT": (log_p_TV.exp() * (log_p_TV - log_t_TV)).sum(-1)[None],
            "teacher_logp_BT": torch.cat(teacher)[None],
            "student_logp_BT": torch.cat(logp).detach()[None],
            "step": STEP,
        }
        mask = rewards.TOKEN_MASKS[name]
        taken = {key: value for key, value in inputs.items() if key in mask.extras}
        own = self.parameters if name == "reopold" else self.mask_parameters
        return [*mask(all_1T, **taken, **own)[0].split(sizes)]

    def weights(self, rows: list[dict[str, Any]], log_p: list[Tensor], keep: list[Tensor]) -> list[Tensor]:
        sizes = [len(each) for each in keep]
        match self.given.get("weights"):
            case "iw_opd":
                return [
                    rewards.TOKEN_WEIGHTS["iw_opd"](
                        keep_T[None],
                        advantage_BT=torch.tensor([row["teacher_log_probs"]])
                        - torch.tensor([row["behaviour_log_probs"]]),
                    )[0]
                    for row, keep_T in zip(rows, keep, strict=True)
                ]
            case "fire_opd":
                log_t_TV, log_p_TV = torch.cat([row["log_t_TV"] for row in rows]), torch.cat(self.detached)
                entropies = [-(each.exp() * each).sum(-1)[None] for each in (log_t_TV, log_p_TV)]
                names = ("teacher_entropy_BT", "student_entropy_BT")
                given = dict(zip(names, entropies, strict=True))
                return [*rewards.TOKEN_WEIGHTS["fire_opd"](torch.cat(keep)[None], **given)[0].split(sizes)]
        return [torch.ones(size) for size in sizes]


def flat(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients if gradient is not None])


def name_of(given: dict[str, Any]) -> str:
    return "-".join(map(str, given.values()))


def assert_agrees(case: Case, mode: StopMode, *splits: int) -> None:
    expected = case.of_formulas(mode)
    assert expected.norm() > 0
    for num_micro_batches in splits:
        found = case.of_learner(mode, num_micro_batches)
        assert (found - expected).norm() <= TOLERANCE * expected.norm(), num_micro_batches


@pytest.mark.parametrize("given", CASES, ids=name_of)
def test_the_gradient_of_two_micro_batches_is_that_of_the_formulas(given: dict[str, Any]) -> None:
    assert_agrees(Case(given), "cross_eos", 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", CASES, ids=name_of)
def test_the_gradient_under_every_stop_mode_in_any_split_is_that_of_the_formulas(
    given: dict[str, Any], mode: StopMode
) -> None:
    assert_agrees(Case(given), mode, *TOKENS_OF_MICRO_BATCHES)
