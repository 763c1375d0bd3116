"""Memory of buckets is used again, and never while somebody holds what was handed out."""

import numpy as np
import torch

from learner.publisher import BucketMemory


def address(memory: BucketMemory, num_bytes: int) -> int:
    return memory.take(num_bytes).ctypes.data


def test_memory_that_was_let_go_is_used_again_for_what_fits() -> None:
    memory = BucketMemory()
    first = address(memory, 2**20)
    assert address(memory, 2**20) == first
    assert address(memory, 2**19) == first
    assert len(memory.take(2**19)) == 2**19
    assert address(memory, 2**21) != first


def test_memory_in_use_is_not_handed_out_whoever_holds_it() -> None:
    memory = BucketMemory()
    for hold in (lambda taken: taken, lambda taken: taken[5:7], torch.from_numpy, lambda taken: taken.data):
        taken = memory.take(2**20)
        taken[:] = 7
        held = hold(taken)
        del taken
        memory.take(2**20)[:] = 8
        assert np.all(np.asarray(held) == 7)
        del held


def test_two_that_are_held_in_turn_are_used_in_turn() -> None:
    memory, before, addresses = BucketMemory(), None, set[int]()
    for _ in range(10):
        taken = memory.take(2**20)
        addresses.add(taken.ctypes.data)
        before = taken
        del taken
    assert before is not None
    assert len(addresses) == 2


def test_a_small_bucket_leaves_the_memory_of_a_large_one() -> None:
    memory = BucketMemory()
    large = address(memory, 2**21)
    for _ in range(3):
        held = memory.take(2**21)
        assert held.ctypes.data == large
        small = memory.take(2**10)
        assert small.ctypes.data != large
        del held, small
