"""A count of labels that stays on the device while a model trains: nobody waits for it before the end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class LabelCount:
    """How many labels a method treated apart from others, over all steps of a training.

    In a stack one count stands for those of all heads; each head's own count knows where its share is.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._before = 0
        self._here: Tensor | None = None
        self._stack: tuple[LabelCount, int] | None = None

    def add(self, marked: Tensor) -> None:
        """Count the marks of a training step.

        Args:
            marked: bool [B, C], of a stacked method [H, B, C].
        """
        number = marked.sum(dim=(-2, -1))
        self._here = number if self._here is None else self._here + number

    def total(self) -> int:
        """Return the number of marks so far; waits for the device."""
        if self._stack is None:
            here = self._here
        else:
            stacked, head = self._stack
            here = stacked._here
            if here is not None and here.ndim:  # marks that all heads have in common come as [1, B, C], or [B, C]
                here = here[head if len(here) > 1 else 0]
        return self._before + (0 if here is None else int(here))

    def restart(self, total: int) -> None:
        """Go on from a total, as a checkpoint has it."""
        self._before, self._here, self._stack = total, None, None

    @classmethod
    def stacked(cls, members: Sequence[LabelCount]) -> LabelCount:
        """Return one count for those of H heads, whose totals it raises from now on."""
        stack = cls()
        for head, member in enumerate(members):
            member.restart(member.total())
            member._stack = stack, head
        return stack
