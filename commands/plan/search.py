"""The cheapest worker counts that reach a target: from the ratio of rates, then by simulation.

More workers of any role never make a run slower. The search begins with what the rates alone demand, tries a few
more workers of every role that the learner waits for, keeps the growth that gains most for its cost until
the target is reached, and then takes away what is not needed, the most expensive first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.placement import plan
from commands.plan.plan_config import TargetConfig
from commands.plan.prediction import Prediction, with_workers, workers_of
from commands.plan.rates import RatesConfig
from settings.run import RunConfig

MAX_WORKERS = 64

MIN_GAIN = 1.003
"""Factor of the throughput that counts as a gain."""

MIN_SHARE = 0.02
"""Share of the learner's time from which on a role is worth more workers."""

Counts = dict[str, int]


@dataclass
class Search:
    """All candidates that were simulated, in order, and the chosen one."""

    step_s: float
    """Seconds per step that are wanted."""
    tokens_per_s: float
    """The same in trained response tokens per second: this decides, since lengths vary from sample to sample."""
    candidates: list[Prediction] = field(default_factory=list)
    chosen: Prediction | None = None
    """The cheapest that reaches the target; None if none does."""
    reason: str = ""
    """Why nothing was chosen, or why the search ended early; empty otherwise."""


class CountSearch:
    """Searches the counts of one run."""

    def __init__(
        self,
        config: RunConfig,
        rates: RatesConfig,
        target: TargetConfig,
        predict: Callable[[RunConfig], Prediction],
    ) -> None:
        """ValueError for limits of roles that the run does not have."""
        self._config = config
        self._rates = rates
        self._target = target
        self._predict = predict
        self._roles = list(workers_of(config))
        for role in target.max_workers:
            if role not in self._roles:
                raise ValueError(f"target.max_workers: no role {role!r} (roles: {', '.join(self._roles)})")
        self._most = {role: target.max_workers.get(role, MAX_WORKERS) for role in self._roles}
        self._cost = {each.role: each.bundle.get("GPU", 0.0) for each in plan(config)}
        if not any(self._cost.values()):
            self._cost = {each.role: each.bundle.get("CPU", 0.0) for each in plan(config)}
        self._seen: dict[tuple[int, ...], Prediction] = {}
        step_s = wanted_step_s(config, rates, target)
        self._found = Search(step_s, mean_tokens(config, rates) / step_s)

    def run(self) -> Search:
        """Return what was found."""
        demanded = {role: self._fewest(role) for role in self._roles}
        self._found.reason = self._impossible(demanded)
        if self._found.reason:
            return self._found
        fewest = {role: max(1, math.ceil(num - 1e-6)) for role, num in demanded.items()}
        grown = self._grow(fewest)
        if grown is not None:
            self._shrink(grown, fewest)
            enough = [each for each in self._seen.values() if self._reaches(each)]
            self._found.chosen = min(enough, key=lambda each: (self.cost(each.workers), -each.tokens_per_s))
        self._found.candidates = list(self._seen.values())
        return self._found

    def _impossible(self, demanded: dict[str, float]) -> str:
        """Why the rates alone rule the target out; empty if they do not."""
        for role, num in demanded.items():
            if math.isinf(num):
                fixed_s = self._rates.learner.step_s + self._rates.learner.publish_s
                return (
                    f"the target is not reached by any number of workers: a step may take "
                    f"{self._found.step_s:.3g} s, the learner's fixed part takes {fixed_s:.3g}; use larger batches"
                )
            if num > self._most[role] + 1e-6:
                return (
                    f"the target is not reached: it takes {math.ceil(num)} {role} workers or more, and at most "
                    f"{self._most[role]} are allowed (target.max_workers.{role})"
                )
        return ""

    def cost(self, counts: Counts) -> float:
        """GPUs of these workers; CPUs where nobody has a GPU."""
        return sum(count * self._cost[role] for role, count in counts.items())

    def _grow(self, counts: Counts) -> Counts | None:
        """Add workers where they gain most until the run is fast enough; None if that is not possible."""
        best = self._simulate(counts)
        gains = dict.fromkeys(counts, math.inf)  # of each role when it was last tried
        while best is not None and not self._reaches(best):
            tried: dict[str, Prediction] = {}
            while role := self._most_promising(best, gains, tried):
                larger = self._simulate(best.workers | {role: self._more(best, role)})
                if larger is None:
                    return self._give_up(f"{self._target.max_simulations} simulations were not enough")
                tried[role] = larger
                gains[role] = self._gain(best, larger)
            grown = max(tried, key=lambda role: gains[role], default=None)
            if grown is None or tried[grown].tokens_per_s < MIN_GAIN * best.tokens_per_s:
                return self._give_up("more workers hardly help")
            best = tried[grown]
        return None if best is None else best.workers

    def _most_promising(
        self, before: Prediction, gains: dict[str, float], tried: dict[str, Prediction]
    ) -> str | None:
        """The role to try next; None if one that was tried gains more than others did last time.

        Before the growth ends because nothing gains, every role is tried.
        """
        shares = before.shares
        share = dict.fromkeys(before.workers, shares["score_wait"])
        share |= {"rollout": shares["rollout_wait"] + shares["score_wait"], "learner": shares["train"]}
        open_ = [r for r in share if r not in tried and share[r] > MIN_SHARE and self._more(before, r)]
        if any(each.tokens_per_s >= MIN_GAIN * before.tokens_per_s for each in tried.values()):
            open_ = [role for role in open_ if gains[role] > max(gains[each] for each in tried)]
        return max(open_, key=lambda role: gains[role], default=None)

    def _more(self, prediction: Prediction, role: str) -> int:
        """The next larger count of a role; 0 if it has its most."""
        count = prediction.workers[role]
        missing = self._found.tokens_per_s / prediction.tokens_per_s - 1
        more = min(count + max(1, int(count * min(missing, 1.0) / 2)), self._most[role])
        return more if more > count else 0

    def _gain(self, before: Prediction, after: Prediction) -> float:
        """Tokens per second for each GPU more, as far as the target wants them."""
        cost = self.cost(after.workers) - self.cost(before.workers)
        return (min(after.tokens_per_s, self._found.tokens_per_s) - before.tokens_per_s) / max(cost, 1e-9)

    def _give_up(self, why: str) -> None:
        fastest = max(self._seen.values(), key=lambda each: each.tokens_per_s)
        self._found.reason = (
            f"the target is not reached: {why} (at most {_listed(self._most)}). The fastest tried, with "
            f"{_listed(fastest.workers)}, trains {fastest.tokens_per_s:,.0f} tokens/s. {fastest.advice}"
        )

    def _shrink(self, counts: Counts, fewest: Counts) -> None:
        """Take workers away as long as the target is reached, the most expensive role first."""
        best = self._simulate(counts)
        assert best is not None, "it was simulated before"
        for role in sorted(self._roles, key=lambda role: -self._cost[role]):
            low, high = fewest[role], best.workers[role]  # `high` is known to be enough
            while low < high:
                middle = (low + high) // 2
                prediction = self._simulate(best.workers | {role: middle})
                if prediction is None:
                    self._found.reason = f"ended after {self._target.max_simulations} simulations"
                    return
                if self._reaches(prediction):
                    best, high = prediction, middle
                else:
                    low = middle + 1

    def _reaches(self, prediction: Prediction) -> bool:
        return prediction.tokens_per_s >= self._found.tokens_per_s

    def _simulate(self, counts: Counts) -> Prediction | None:
        """The prediction for these counts; None if no simulation is left."""
        key = tuple(counts[role] for role in self._roles)
        if key not in self._seen:
            if len(self._seen) >= self._target.max_simulations:
                return None
            self._seen[key] = self._predict(with_workers(self._config, counts))
        return self._seen[key]

    def _fewest(self, role: str) -> float:
        """Workers that the rates alone demand, if nobody ever waited for another."""
        config, rates, step_s = self._config, self._rates, self._found.step_s
        num, mean = config.batch_size * config.num_samples_per_prompt, rates.lengths.mean
        tokens = num * (rates.lengths.prompt + mean)
        if role == "learner":
            left_s = step_s - rates.learner.step_s - rates.learner.publish_s
            return tokens / rates.learner.tokens_per_s / left_s if left_s > 0 else math.inf
        if role == "rollout":
            engine = rates.rollout
            together = engine.max_num_seqs
            token_s = min(engine.step_s, (engine.step_s + engine.sequence_s * (together - 1)) / together)
            decode_s = num * mean * token_s
            return (decode_s + num * rates.lengths.prompt / engine.prefill_tokens_per_s) / step_s
        share = 1.0 if role == "reference" else 1.0 / len(config.teacher_of_role)
        return share * tokens / rates.teacher.prefill_tokens_per_s / step_s


def wanted_step_s(config: RunConfig, rates: RatesConfig, target: TargetConfig) -> float:
    """Seconds per step that a target allows."""
    if target.hours is not None:
        return 3600 * target.hours / config.max_steps
    assert target.tokens_per_s is not None, "a target was asked for"
    return mean_tokens(config, rates) / target.tokens_per_s


def mean_tokens(config: RunConfig, rates: RatesConfig) -> float:
    """Response tokens of a step."""
    return config.batch_size * config.num_samples_per_prompt * rates.lengths.mean


def _listed(counts: Counts) -> str:
    return ", ".join(f"{count} {role}" for role, count in counts.items())
