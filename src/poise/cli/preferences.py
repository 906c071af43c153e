"""``poise screen --method preference``: what is particular to pairs of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poise.cli.work import working
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    from poise.data.preference_data import PreferenceData
    from poise.screen.preference import PreferenceSettings

__all__ = ["check_method", "pair_settings", "show_pairs"]


def check_method(method: str, fix: str | None, *, judge: object, estimate: bool) -> None:
    """Refuse options that the method has no use for.

    Raises:
        InvalidArgument: names the option and what to do.
    """
    if method != "preference":
        if fix in ("drop", "swap"):
            raise InvalidArgument(f"`fix` {fix} is for `method` preference; by {method} give `fix` alone.")
        return
    if fix == "own":
        raise InvalidArgument("`fix` takes drop or swap by `method` preference; say which.")
    if judge:
        raise InvalidArgument("`judge` scores single answers and not pairs; leave it out by `method` preference.")
    if estimate:
        raise InvalidArgument("`estimate` compares methods for single answers; leave it out by `method` preference.")


def pair_settings(*, fix: Any, **plan: Any) -> PreferenceSettings:
    """How to screen, as the library takes it."""
    from poise.screen.preference import PreferenceSettings

    return PreferenceSettings(fix=fix or "", **plan)


def show_pairs(*data: PreferenceData | None, model: str | None, n: int, as_json: bool) -> None:
    """Print the first pairs of each data set as they would be scored."""
    from poise.cli.preview import print_previews

    with working():
        from poise.workflows.previews import preview_pairs

        previews = [preview_pairs(one, model, n) for one in data if one is not None]
    print_previews(*previews, as_json=as_json)
