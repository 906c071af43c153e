"""What the stages of a screening share: how it is done, where things are kept, and the scoring itself.

``DIR/.run`` keeps the windows' scores, the model's own answers and the readings of all texts, so that the same data
under another rule are ready at once, and of changed data only what is new is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from poise.activations import Probe
from poise.data import Conversation, DataSet, RejectedRow, Rejections
from poise.detector.reach import DetectorReach, measure_reach
from poise.engine import Engine
from poise.errors import InvalidArgument
from poise.model import Model
from poise.progress import track
from poise.screen import shards as windows
from poise.screen.base_answers import BaseAnswers
from poise.screen.flagging import FlaggingRule
from poise.screen.projection import ScoringMethod
from poise.screen.reading_cache import ReadingCache
from poise.screen.scores import AnswerScores, collect_scores
from poise.screen.shards import Shard, ShardStore, score_shards
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.vector import PersonaVector
from poise.vllm.choice import check_generator, choose_engine

__all__ = ["FlaggingRule", "ScreenSettings", "ScreeningEngine", "ScreeningRun", "check_ray_address"]

ScreeningEngine = Literal["local", "vllm", "ray"]
USABLE_ROW = Conversation(
    messages=(), file="", row=-1, index=-1, raw=b""
)  # stands for a row that can be used, where only their number counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenSettings:
    """How to screen.

    Attributes:
        method: What a score is.
        rule: What is flagged.
        layer: For all vectors; default, each one's own.
        judge: Who gives a second opinion, as ``poise.judge.factory`` takes it; ``None`` for nobody.
        judge_budget: Most answers that the judge sees, of all traits together, half of them the highest and half drawn
            from the others, so that precision and recall are estimated; ``None`` for flagged ones and as many others.
        fix: Whether flagged answers are replaced.
        max_new_tokens: Longest answer of the model's own.
        batch: Most answers generated at once.
        seed: Seed of resampling and of the choice that the judge sees.
        broken: Largest share of rows that may be unusable.
        engine: Engine that the work is done by; ``vllm`` generates the model's own answers, and scores as ``local``.
        ray_address: Address of a running Ray cluster that the engine ray joins, HOST:PORT or ``auto``; default that of
            ``RAY_ADDRESS``, and without it a cluster of this machine alone.
    """

    method: ScoringMethod = "difference"
    rule: FlaggingRule = field(default_factory=FlaggingRule)
    layer: int | None = None
    judge: str | None = None
    judge_budget: int | None = None
    fix: bool = False
    max_new_tokens: int = 256
    batch: int = 32
    seed: int = 0
    broken: float = 0.2
    engine: ScreeningEngine = "local"
    ray_address: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.broken <= 1:
            raise InvalidArgument(f"The share of broken rows is {self.broken}; it must be between 0 and 1.")
        check_ray_address(self.engine, self.ray_address)

    @property
    def generates(self) -> bool:
        """Whether the model's own answers are needed."""
        return self.method == "difference" or self.fix

    def check_engine(self) -> None:
        """Check that there is such an engine, and something for it to do.

        Raises:
            InvalidArgument: vLLM, where nothing is generated.
            MissingExtra: vLLM is not installed.
        """
        if self.engine != "vllm":
            return
        if not self.generates:
            raise InvalidArgument(
                f"`engine` is vllm, and by `method` {self.method} nothing is generated without `fix`; leave `engine` "
                "out, or use difference as `method`."
            )
        check_generator("vllm")


def check_ray_address(engine: ScreeningEngine, address: str) -> None:
    """Refuse an address that nothing would be done with; that of the environment may be meant for others.

    Raises:
        InvalidArgument: the engine is not ray.
    """
    if address and engine != "ray" and address != os.environ.get("RAY_ADDRESS"):
        raise InvalidArgument(
            f"`ray_address` is {address}, and `engine` is {engine}, which joins no cluster; say `engine` ray, or leave "
            "it out."
        )


class ScreeningRun:
    """What the stages share: the model, its probes, where things are kept.

    Args:
        model: The base model.
        vectors: k of them, of this model.
        out: The folder of the screening.
        plan: How.

    Raises:
        InvalidArgument: two vectors have one name, or an answer as long as asked has no room.
        SaveFailed: the disk refused.
    """

    def __init__(self, model: Model, vectors: Sequence[PersonaVector], out: Path, plan: ScreenSettings) -> None:
        self.model, self.vectors, self.plan, self.folder = model, vectors, plan, out / ".run"
        self.names = tuple(vector.name for vector in vectors)
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise InvalidArgument(f"Two vectors are named {twice[0]}; screen them one after the other, in two folders.")
        self.probes = [vector.at("read", plan.layer).probe for vector in vectors]
        self.answers = self.open_base_answers() if plan.generates else None

    def open_base_answers(self) -> BaseAnswers:
        """The model's own answers, as they are kept."""
        plan = self.plan
        return BaseAnswers(
            self.model, self.folder, max_new_tokens=plan.max_new_tokens, batch=plan.batch, engine=self._generator
        )

    @cached_property
    def _generator(self) -> Engine | None:
        return choose_engine("vllm", self.model) if self.plan.engine == "vllm" else None

    def shard_store(self, data: DataSet, digest: str) -> ShardStore:
        """Where the data's windows are kept. Those of ΔP serve the other methods as well."""
        job = _scores_key(data, digest, self.model, self.probes)
        if self.plan.method == "difference":
            generator = "-vllm" if self.plan.engine == "vllm" else ""
            return ShardStore(self.folder / f"{job[:16]}-own{self.plan.max_new_tokens}{generator}", job)
        full = sorted(self.folder.glob(f"{job[:16]}-own*"), key=lambda path: len(list(path.glob("part-*.npz"))))
        return ShardStore(self.folder / job[:16], job, beside=ShardStore(full[-1], job) if full else None)

    def score_data(self, data: DataSet, digest: str, rejections: Rejections, what: str) -> AnswerScores:
        """Every answer of the data, from what is kept and, where nothing is, from the model.

        Raises:
            InvalidData: too many rows are broken; what was scored is kept.
        """
        shards = self.read_shards(data, digest, what)
        return collect_scores(_check_broken_share(shards, rejections), self.plan.method, len(self.probes))

    def read_shards(self, data: DataSet, digest: str, what: str) -> Iterator[Shard]:
        """The windows of the data in order, from what is kept and, where nothing is, from the model."""
        answers = self.answers if self.plan.method == "difference" else None
        store = self.shard_store(data, digest)
        cache = ReadingCache(self.folder, store.folder.name, self.model, self.probes)
        with track(what, total=data.count() if data.files else None) as advance:
            if self.plan.engine == "ray":
                from poise.screen.ray_backend import score_shards_on_ray as spread

                address = self.plan.ray_address
                shards = spread(store, data, self.model, self.probes, answers, cache=cache, address=address)
            else:
                shards = score_shards(store, data, self.model, self.probes, answers, cache)
            for shard in shards:
                yield shard
                advance(shard.rows)

    def measure_reach(self, data: DataSet, digest: str) -> list[DetectorReach]:
        """How far the data lie from what the detectors were fitted on; kept, as some rows are read for it."""
        detectors = [v.at("read", self.plan.layer).detector for v in self.vectors]
        if not any(detector and detector.seen for detector in detectors):
            return []
        seed = self.plan.seed
        key = content_key(
            scores=_scores_key(data, digest, self.model, self.probes),
            seen=[d.facts.seen.model_dump(mode="json") if d and d.facts.seen else None for d in detectors],
            names=self.names,
            seed=seed,
        )
        path = self.folder / f"reach-{key[:16]}.json"
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # one that was cut off is measured again
            return [DetectorReach.model_validate(one) for one in json.loads(path.read_text(encoding="utf-8"))]
        reach = measure_reach(data, self.vectors, self.model, layer=self.plan.layer, seed=seed)
        with saving(path) as temporary:
            temporary.write_text(json.dumps([one.model_dump(mode="json") for one in reach]), encoding="utf-8")
        return reach


def _check_broken_share(parts: Iterable[Shard], rejections: Rejections) -> Iterator[Shard]:
    """The parts, while no more rows are broken than may be."""
    waiting: deque[Shard] = deque()

    def rows() -> Iterator[Conversation | RejectedRow]:
        first = 0
        for part in parts:
            waiting.append(part)
            bad = {row.index: row for row in part.rejected}
            yield from (bad.get(index, USABLE_ROW) for index in range(first, first + part.rows))
            first += part.rows

    for _ in rejections.sift(rows()):
        while waiting:
            yield waiting.popleft()
    yield from waiting


def _scores_key(data: DataSet, digest: str, model: Model, probes: Sequence[Probe]) -> str:
    """What determines the scores: not the rule, and not the method."""
    return content_key(
        data=digest,
        shapes=[[part.name, str(part.shape)] for part in data.parts],
        model=asdict(model.fingerprint),
        dtype=str(model.lm.dtype),
        device=model.device.type,
        directions=[[p.layer, hashlib.sha256(p.direction.numpy().tobytes()).hexdigest()] for p in probes],
        window=windows.ROWS_PER_SHARD,
        **data.part_key,
    )
