"""Tokens that were generated and not trained on are counted by cause, also over fall-backs and resumed runs."""

from typing import Any

from controller.meters import WastedTokens


def step(
    waste: WastedTokens, number: int, slots: list[int], tokens: int = 10, *, skipped: int = 0
) -> dict[str, Any]:
    row = {"step": number, "tokens_trained": tokens, "skipped": skipped}
    return row | waste.train(row, slots)


def counts(row: dict[str, Any]) -> dict[str, int]:
    """The causes that a row counts something for."""
    return {key.removeprefix("wasted/"): n for key, n in row.items() if key.startswith("wasted/") and n}


def test_what_is_generated_again_is_counted_by_cause_and_a_cut_off_attempt_as_one() -> None:
    waste = WastedTokens()
    waste.begin(0)
    for slot, cause in enumerate(("lost", "refused", "given_up")):
        waste.finish(slot, 10 + slot)
        waste.lose(slot, cause)  # pyright: ignore[reportArgumentType]
    waste.lose(3, "lost")
    assert counts(step(waste, 1, [])) == {"lost": 10, "refused": 11, "given_up": 12, "cut_off": 1}


def test_a_skipped_step_wastes_its_tokens_once() -> None:
    waste = WastedTokens()
    waste.begin(0)
    step(waste, 1, [], 10)
    assert counts(step(waste, 2, [], 20, skipped=1)) == {"skipped": 20}
    waste.begin(0)
    assert counts(step(waste, 1, [])) == {"skipped": 20, "fall_back": 10}


def test_a_fall_back_wastes_the_steps_after_the_checkpoint_and_the_rollouts_at_hand() -> None:
    waste = WastedTokens()
    waste.begin(0)
    for number in (1, 2, 3):
        waste.finish(number, 99)
        step(waste, number, [number], 10 * number)
    waste.finish(9, 4)
    waste.begin(1)
    assert counts(step(waste, 2, [2], 20)) == {"fall_back": 20 + 30 + 4}
    waste.begin(1)
    assert counts(step(waste, 2, [2], 20)) == {"fall_back": 54 + 20}


def test_a_run_that_is_continued_goes_on_counting() -> None:
    waste = WastedTokens()
    waste.begin(0)
    waste.finish(5, 3)
    waste.lose(5, "lost")
    rows = [step(waste, number, []) for number in (1, 2, 3, 4)]
    again = WastedTokens(rows)
    again.begin(2)
    rows += [step(again, 3, []), step(again, 4, [])]
    assert counts(rows[-1]) == {"lost": 3, "fall_back": 20}
    third = WastedTokens(rows)
    third.begin(3)
    assert counts(step(third, 4, [])) == {"lost": 3, "fall_back": 30}


def test_rows_of_older_runs_count_nothing() -> None:
    waste = WastedTokens([{"step": 1}, {"step": 2, "tokens_trained": 5.0}])
    waste.begin(2)
    assert counts(step(waste, 3, [])) == {}
