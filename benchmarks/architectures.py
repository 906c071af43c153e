"""Every architecture that transformers can build tiny: is what Poise reads, generates and steers what is there?

    python benchmarks/architectures.py                       # a table of all, about a quarter of an hour
    python benchmarks/architectures.py --only llama,mamba2   # of these
    python benchmarks/architectures.py --json table.json     # kept as JSON too
    python benchmarks/architectures.py --only core           # of those that the tests hold

Each architecture runs in a process of its own, so that a crash costs one row. A cell is ``exact``, ``refused`` with
Poise's own sentence, or ``FAULT``: other numbers in silence, or an error that is not Poise's. Exit code 1 for a FAULT.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import tiny_models

sys.path.append(str(Path(__file__).parents[1] / "tests"))

CORE = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "mamba",
    "mamba2",
    "jamba",
    "falcon_h1",
    "qwen3_moe",
    "granite",
    "gpt_oss",
    "recurrent_gemma",
    "lfm2",
    "qwen3_next",
    "deepseek_v3",
    "olmo_hybrid",
    "gemma3n_text",
    "xlnet",
    "bert",
    "reformer/decoder",
    "minimax",
)
CHECKS = ("read", "generate", "batch", "steer")
SECONDS = 60  # an architecture
MEMORY = 12 << 30
NEW_TOKENS = 6
CLOSE = 2e-4  # of the largest value: float32 in another order of summation


@dataclass(kw_only=True)
class Row:
    """One architecture: an outcome a check, and why where it is not exact."""

    name: str
    model_class: str = ""
    built: bool = False
    detail: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    hidden_states: bool = False
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        if not self.built:
            return "not built"
        outcomes = set(self.outcomes.values())
        return next((word for word in ("FAULT", "refused") if word in outcomes), "exact")


class Fault(Exception):
    """Other numbers than there should be."""


def examine(name: str) -> Row:
    """Build one architecture and try everything on it, in this process."""
    import tiny
    from poise.errors import InternalError, PoiseError
    from poise.model import wrap

    row, began = Row(name=name), time.perf_counter()
    try:
        lm = tiny_models.build(name)
        lm(input_ids=torch.arange(3, 12)[None])
    except Exception as error:
        row.detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return row
    row.built, row.model_class = True, type(lm).__name__

    def tried(check: str, run: Callable[[], None]) -> None:
        try:
            run()
            row.outcomes[check] = "exact"
        except Fault as fault:
            row.outcomes[check], row.reasons[check] = "FAULT", str(fault)
        except PoiseError as error:
            internal = isinstance(error, InternalError)
            row.outcomes[check], row.reasons[check] = "FAULT" if internal else "refused", str(error)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({Path(place.filename).name})"
            row.outcomes[check], row.reasons[check] = "FAULT", text

    box: list[Any] = []
    tried("load", lambda: box.append(wrap(lm, tiny.chatml(), name=f"tiny-{name}")))
    if box:
        model = box[0]
        tried("read", lambda: setattr(row, "hidden_states", check_reading(model)))
        tried("generate", lambda: check_generating(model))
        tried("batch", lambda: check_batches(model))
        tried("steer", lambda: check_steering(model))
    row.seconds = round(time.perf_counter() - began, 1)
    return row


def close(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    if got.shape != expected.shape:
        raise Fault(f"{what}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    difference = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not difference <= CLOSE:
        raise Fault(f"{what} differs by {difference:.2g}")


@torch.inference_mode()
def check_reading(model: Any) -> bool:
    """``read`` of a batch against the blocks' outputs of each text alone and, where there are, ``hidden_states``."""
    import tiny
    from poise.activations import read
    from poise.errors import PoiseError

    texts = tiny.texts(model, 5)
    got = {pool: read(model, texts, pool=pool) for pool in ("response_mean", "prompt_last")}
    with contextlib.suppress(PoiseError):
        close(read(model, texts, padding="left"), got["response_mean"], "the mean behind padding on the left")
    has_states = True
    for at, text in enumerate(texts):
        outputs, states = alone(model, text.ids)
        has_states = has_states and states is not None
        for source, layers in (("its blocks alone", outputs), ("hidden_states", states)):
            if layers is None:
                continue
            means = torch.stack([h[text.start : text.end].mean(0) for h in layers])
            last = torch.stack([h[text.start - 1] for h in layers])
            close(got["response_mean"][at, : len(layers)], means, f"the mean of text {at} and {source}")
            close(got["prompt_last"][at, : len(layers)], last, f"the last prompt token of text {at} and {source}")
    return has_states


def alone(model: Any, ids: Sequence[int]) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """The blocks' outputs [T, d] by plain hooks, and transformers' entries for all but the last block."""
    outputs: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            outputs[layer] = (output[0] if isinstance(output, tuple | list) else output)[0].float().clone()

        return keep

    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(model.blocks)]
    try:
        out = model.lm(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    states = getattr(out, "hidden_states", None)
    listed = [outputs[layer] for layer in range(model.layers)]
    if states is None or len(states) != model.layers + 1:
        return listed, None
    first = 1 if not torch.equal(states[0][0], outputs[0]) else 0  # state-space models leave the embeddings out
    return listed, [state[0].float() for state in states[first : first + model.layers - 1]]


@torch.inference_mode()
def uncached(model: Any, ids: Sequence[int]) -> tuple[int, ...]:
    """Greedy, the whole text read again for every token."""
    out = list(ids)
    for _ in range(NEW_TOKENS):
        token = int(model.lm(input_ids=torch.tensor([out]), use_cache=False).logits[0, -1].argmax())
        if token in model.stop_ids:
            break
        out.append(token)
    return tuple(out[len(ids) :])


def check_generating(model: Any) -> None:
    """Both engines' greedy answers to one prompt against a loop without a cache, and against ``lm.generate``."""
    import tiny
    from poise.engine import SamplingParams
    from poise.engine.static import LocalEngine

    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0)
    engine = LocalEngine(model)
    for prompt in tiny.prompts(model, 3):
        expected = uncached(model, prompt.ids)
        if (got := engine.generate([prompt], sampling)[0].ids) != expected:
            raise Fault(f"cached {got}, uncached {expected}")
        ids = torch.tensor([prompt.ids])
        with contextlib.suppress(Exception):  # transformers' own fails on some
            theirs = model.lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=sorted(model.stop_ids),
                pad_token_id=0,
            )[0, len(prompt.ids) :].tolist()
            trimmed = tuple(token for token in theirs if token not in model.stop_ids)
            if trimmed != expected:
                raise Fault(f"uncached and engine {expected}, lm.generate {trimmed}")


def check_batches(model: Any) -> None:
    """Answers of different lengths in one batch, of both engines, against each prompt alone without a cache."""
    import tiny
    from poise.engine import GenerationRequest, SamplingParams
    from poise.engine.continuous import ContinuousEngine
    from poise.engine.static import LocalEngine

    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0)
    prompts = [*tiny.prompts(model, 4), *tiny.prompts(model, 2)]
    full = [uncached(model, prompt.ids) for prompt in prompts]
    early = {tokens[at] for tokens, at in zip(full, (1, 2), strict=False) if len(tokens) > at}  # rows leave the batch
    model = replace(model, stop_ids=model.stop_ids | early)
    expected = [uncached(model, prompt.ids) for prompt in prompts]
    answers = LocalEngine(model).generate(prompts, sampling)
    if [answer.ids for answer in answers] != expected:
        raise Fault(f"in a batch {[answer.ids for answer in answers]}, alone {expected}")
    engine, texts = ContinuousEngine(model), [""] * len(prompts)
    arrivals = list(enumerate(prompts))
    while arrivals or engine.waiting or engine.running:
        for number, prompt in (arrivals.pop() for _ in arrivals[-2:]):  # two at a step, so that rows join a batch
            engine.add(number, GenerationRequest(prompt=prompt, sampling=sampling))
        for output in engine.step():
            if output.error:
                raise output.error
            texts[int(str(output.key))] += "".join(token.text for token in output.tokens)
    if texts != [answer.text for answer in answers]:
        raise Fault(f"in the continuous engine {texts}, alone {[answer.text for answer in answers]}")


def check_steering(model: Any) -> None:
    """Of three rows one is steered: its states are h + v there and its logits change; the others' stay."""
    import tiny
    from poise.model.batching import pad
    from poise.model.hooks import observe
    from poise.steer import Steering, apply_steering

    text = tiny.texts(model, 1)[0]
    batch, layer = pad([text] * 3, side="right"), 1
    steering = Steering.add(tiny.vector(model), coef=2.0, layer=layer, phase="all")

    def run(rows: list[Any] | None) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        states: dict[int, torch.Tensor] = {}
        with contextlib.ExitStack() as hooks, torch.inference_mode():
            if rows:
                hooks.enter_context(apply_steering(model, rows)).announce(batch)
            hooks.enter_context(observe(model, lambda at, h: states.update({at: h.clone()})))
            logits = model.lm(input_ids=batch.ids, use_cache=False).logits.float()
        return states, logits

    (before, plain), (after, steered) = run(None), run([None, steering, None])
    added = 2.0 * tiny.vector(model).directions[layer]
    close(after[layer][1], before[layer][1] + added, "the steered row's states")
    for row in (0, 2):
        close(steered[row], plain[row], f"the logits of row {row}, which is not steered,")
    for deeper in range(layer, model.layers):
        if torch.allclose(after[deeper][1], before[deeper][1], atol=1e-3):
            raise Fault(f"steering at layer {layer} changes nothing at layer {deeper}")
    if float((steered[1] - plain[1]).abs().max()) < 1e-3 * float(plain.std()):
        raise Fault("the steered row's logits do not change")


def in_a_process(name: str) -> Row:
    """``examine`` behind a fork, with a limit on time and memory."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, sender))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
        return row
    except EOFError:
        return Row(name=name, detail=f"its process ended (limit {SECONDS} s, {MEMORY >> 30} GiB)")
    finally:
        process.join()


def _child(name: str, sender: Any) -> None:
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
    sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115 - transformers' advice on each architecture
    sender.send(examine(name))


def line(row: Row) -> str:
    cells = " ".join(f"{row.outcomes.get(check, '-'):8}" for check in CHECKS)
    reasons = dict.fromkeys(row.reasons.values()) if row.built else {row.detail: None}
    states = "hidden_states" if row.hidden_states else ""
    return f"{row.name:26} {row.verdict:9} {cells} {states:13} {' | '.join(reasons)}".rstrip()


def summary(rows: Sequence[Row]) -> str:
    import transformers

    counts = Counter(row.verdict for row in rows)
    words = ", ".join(f"{counts[word]} {word}" for word in ("exact", "refused", "FAULT", "not built"))
    return f"transformers {transformers.__version__}: {len(rows)} architectures, {words}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, separated by commas; 'core' for the core set")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    options = parser.parse_args()
    chosen = list(CORE) if options.only == "core" else [name for name in options.only.split(",") if name]
    quiet()
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(in_a_process, chosen or tiny_models.names()):
            rows.append(row)
            print(line(row), flush=True)
    print(summary(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"verdict": row.verdict} for row in rows], indent=1) + "\n")
    sys.exit(any(row.verdict == "FAULT" for row in rows))


def quiet() -> None:
    import transformers

    import tiny  # noqa: F401 - both are loaded once, before the forks

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
