"""What generates, by the name that a command's option has for it."""

from __future__ import annotations

from typing import Literal

from poise.engine import Engine
from poise.engine.static import LocalEngine
from poise.errors import UnsuitableModel
from poise.model import Model
from poise.vllm.engine import VllmEngine, check_installed

__all__ = ["GeneratorName", "check_generator", "choose_engine"]

GeneratorName = Literal["local", "vllm"]


def check_generator(name: GeneratorName) -> None:
    """Check that there is such an engine here, before a model is loaded.

    Raises:
        MissingExtra: vLLM is not installed.
    """
    if name == "vllm":
        check_installed()


def choose_engine(
    name: GeneratorName, model: Model, *, batch: int = 32, allow_other_model: bool = False, started: bool = False
) -> Engine:
    """The engine that generates for a model that was loaded by its name.

    Args:
        name: ``local``: on ``model`` itself. ``vllm``: on the same weights, in the same dtype, loaded by vLLM.
        model: Tokenises, reads and judges.
        batch: Most answers that the local engine generates at once; vLLM sizes its batches itself.
        allow_other_model: Let vectors of another model steer.
        started: Start vLLM at once: what is timed next is an answer.

    Raises:
        MissingExtra: vLLM is not installed.
        UnsuitableModel: vLLM cannot generate for this model as it is.
    """
    if name == "local":
        return LocalEngine(model, batch=batch, allow_other_model=allow_other_model)
    if model.fingerprint.adapter:
        raise UnsuitableModel(
            f"{model.name} has an adapter, which vLLM's engine does not run; merge the two with `poise merge`."
        )
    revision = getattr(model.lm.config, "_commit_hash", None)
    engine = VllmEngine(
        model.name,
        dtype=str(model.lm.dtype).removeprefix("torch."),
        **({"revision": revision} if revision else {}),
    )
    if started:
        engine.start()
    return engine
