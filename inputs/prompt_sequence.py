"""Prompts that are looked up one by one, as a sequence."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from inputs.rendering import Prompt


class PromptSequence(Sequence[Prompt]):
    """Takes indices and slices as a list does; a subclass has `__len__`, and looks up one prompt."""

    @abstractmethod
    def look_up(self, index: int) -> Prompt:
        """The prompt at an index from 0 to the length, exclusive."""

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self.look_up(each) for each in range(*index.indices(len(self)))]
        return self.look_up(range(len(self))[index])
