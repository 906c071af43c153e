"""Where the texts of a training batch are steered: all positions, those with a label, or those of marked rows."""

from __future__ import annotations

from typing import Any, Literal

import torch

from poise.errors import InvalidSteering

__all__ = ["IGNORED", "MARK", "Positions", "SteeredPlaces"]

Positions = Literal["all", "response"]
IGNORED = -100  # the label of a token that is not learnt from
MARK = "vaccinated"  # what a batch calls the rows [B] that are to be steered, where that is not all of them
MOST_PASSES = 16  # whose masks are kept for a backward pass that may run blocks again


class SteeredPlaces:
    """Which positions [B, T, 1] of a pass are steered, from its labels and marks; a trainer may go around both.

    ``announce`` reads a pass's arguments, ``begin`` starts it. What checkpointing runs again in the backward pass is
    steered where the pass that was learnt from was.
    """

    def __init__(self, positions: Positions, *, marked: bool) -> None:
        self.positions, self.marked = positions, marked
        self.masked = marked or positions == "response"  # whether a pass has positions that are left alone
        self._announced: torch.Tensor | None = None
        self._now: torch.Tensor | None = None
        self._learnt: list[torch.Tensor | None] = []  # of the passes that a backward pass may run again
        self._run_again = False
        self._last_shape = "none"

    def announce(self, arguments: dict[str, Any], rows: torch.Tensor | None) -> None:
        """Read where the next pass is steered from its keyword arguments and the marks of its rows.

        Raises:
            InvalidSteering: labels, token ids or marks are needed and missing, or marks are there and not expected.
        """
        labels = arguments.get("labels")
        self._announced = self._places(arguments.get("input_ids", labels), labels, rows)

    def begin(self, *, learnt: bool) -> None:
        """A pass begins; ``learnt``: a backward pass will follow."""
        self._now, self._announced = self._announced, None
        if self._now is not None:
            self._last_shape = "x".join(map(str, self._now.shape[:2]))
        if learnt and self.masked:
            earlier = [] if self._run_again else self._learnt
            self._learnt, self._run_again = [*earlier, self._now][-MOST_PASSES:], False

    def forget(self) -> None:
        """There is no pass any more that could be run again."""
        self._announced = self._now = None
        self._learnt, self._run_again = [], False

    def mask(self, h: torch.Tensor, *, in_pass: bool) -> torch.Tensor:
        """Which positions [B, T, 1] of a block's output h [B, T, d] are steered.

        Raises:
            InvalidSteering: the pass went around the labels or marks, or a backward pass runs one of several passes
                again that are steered in different places.
        """
        mask = self._now if in_pass else self._mask_of_learnt_pass()
        if mask is None or mask.shape[:2] != h.shape[:2]:
            raise InvalidSteering(
                f"Only some positions are to be steered, and this pass of {'x'.join(map(str, h.shape[:2]))} tokens "
                f"came without its labels or marks (last seen: {self._last_shape}); steer all positions of all rows."
            )
        return mask if mask.device == h.device else mask.to(h.device)

    def _mask_of_learnt_pass(self) -> torch.Tensor | None:
        self._run_again = True
        masks = [mask for mask in self._learnt if mask is not None]
        if any(mask.shape != masks[0].shape or not torch.equal(mask, masks[0]) for mask in masks[1:]):
            raise InvalidSteering(
                f"Only some positions are to be steered, and {len(masks)} passes with other positions each came before "
                "this backward pass, whose checkpointing does not say which of them it runs again; switch gradient "
                "checkpointing off, or steer all positions of all rows."
            )
        return masks[-1] if masks else None

    def _places(
        self, ids: torch.Tensor | None, labels: torch.Tensor | None, rows: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Which positions [B, T, 1] of a batch are steered; ``None`` for all."""
        if self.marked and rows is None:
            raise InvalidSteering(
                f"Only marked rows are to be steered, and this batch has no `{MARK}`; use "
                "`poise.train.examples.marking_collator` with remove_unused_columns=False and no packing, or steer all "
                "rows."
            )
        if rows is not None and not self.marked:
            raise InvalidSteering(
                f"This batch marks rows as `{MARK}`, and all are to be steered; say marked=True, or drop the column."
            )
        if not self.masked:
            return None
        if ids is None or (labels is None and self.positions == "response"):
            raise InvalidSteering(
                "Only response positions or marked rows are to be steered, and this trainer does not hand labels or "
                "token ids to the model by name; steer positions='all' of all rows."
            )
        where = torch.ones_like(ids, dtype=torch.bool)
        if labels is not None and self.positions == "response":
            where = torch.ne(labels, IGNORED)
        if rows is not None:
            if len(rows) != len(where):
                raise InvalidSteering(
                    f"This batch has {len(rows)} marks for {len(where)} texts, as where pairs are learnt from; steer "
                    "all rows."
                )
            where = where & rows.bool().unsqueeze(-1)
        return where.unsqueeze(-1)
