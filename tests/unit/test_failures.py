"""What earlier attempts say about a prompt: refusals, losses and deaths are counted apart."""

from ray.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError, RayTaskError

from cluster.errors import is_lost, is_mistake
from cluster.worker import Worker
from controller.failures import NO_FAILURES, Failures, Refusal

REFUSAL = Refusal(None, "no")
LIMITS = {"max_refused": 3, "max_lost": 5}


def dead_worker(num_uses: int) -> Worker:
    worker = Worker("rollout-0")
    worker.uses_at_death["generate"] = num_uses
    return worker


def test_a_prompt_that_engines_refuse_is_given_up_as_failed() -> None:
    failures = NO_FAILURES.refused(REFUSAL).refused(REFUSAL)
    assert failures.verdict(**LIMITS) is None
    assert failures.refused(REFUSAL).verdict(**LIMITS) == "failed"


def test_a_prompt_that_killed_two_engines_on_which_it_was_alone_is_poison() -> None:
    alone = dead_worker(1)
    once = NO_FAILURES.died(alone, 1)
    assert once.verdict(**LIMITS) is None
    assert once.died(alone, 1).verdict(**LIMITS) == "poison"


def test_deaths_of_engines_that_did_other_things_too_are_no_proof_against_a_prompt() -> None:
    failures = NO_FAILURES
    for worker, num_together in [(dead_worker(2), 1), (dead_worker(1), 8), (dead_worker(3), 2)]:
        failures = failures.died(worker, num_together)
    assert (failures.num_deaths, failures.num_kills) == (3, 0)
    assert failures.verdict(**LIMITS) is None


def test_a_prompt_that_is_lost_again_and_again_is_given_up_as_lost_and_not_before() -> None:
    failures = NO_FAILURES
    for _ in range(4):
        failures = failures.lost()
    assert failures.verdict(**LIMITS) is None
    assert failures.lost().verdict(**LIMITS) == "lost"


def test_an_attempt_that_ended_because_its_worker_was_scaled_away_only_counts_as_an_attempt() -> None:
    failures = NO_FAILURES
    for _ in range(100):
        failures = failures.cut_off()
    assert failures.verdict(**LIMITS) is None
    assert failures.num_attempts == 100


def test_who_refused_what_another_could_do_is_blamed_once_for_all_that_it_refused_together() -> None:
    first, second = Worker("teacher-0"), Worker("teacher-1")
    together = Refusal(first, "no")
    one, other = NO_FAILURES.refused(together), NO_FAILURES.refused(together)
    assert one.blame(first) is None
    assert one.blame(second) is together
    assert other.blame(second) is None
    assert NO_FAILURES.refused(REFUSAL).blame(second) is None
    assert NO_FAILURES.died(first, 2).blame(second) is None
    assert Failures().blame(second) is None


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("score", "traceback", cause)


def test_a_lost_table_is_told_from_a_mistake_and_from_a_death() -> None:
    lost = ObjectLostError("00" * 28, None, "nowhere")
    owner_died = OwnerDiedError("00" * 28, None, "nowhere")
    assert is_lost(lost)
    assert is_lost(owner_died)
    assert is_lost(task_error(lost))
    assert not is_lost(ActorDiedError())
    assert is_mistake(task_error(ValueError("wrong")))
    assert not is_mistake(task_error(RuntimeError("connection closed by peer")))
    assert not is_mistake(task_error(lost))
    assert not is_mistake(ActorDiedError())
