"""Passages scored again: by a cross-encoder, by yes or no, and by how likely a question is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import InvalidArgument, JudgeUnavailable
from poise.judge.yes_no import LocalYesNo, YesNo
from poise.knowledge import AnswerSettings, ChunkFilter, Knowledge, answer_question, text_reranker
from poise.knowledge.cross_encoder import CrossEncoderReranker
from poise.knowledge.reranking import LikelihoodReranker, YesNoReranker
from test_knowledge import WordEncoder, built, docs
from test_knowledge_answers import Scripted

__all__ = ["docs"]

QUESTION = "what does a berth cost"
PASSAGES = ["the tide turns at six", "a berth costs twelve euros a night " * 9, "gulls eat chips", ""]
WORDS = sorted({word for text in (QUESTION, *PASSAGES) for word in text.split()})


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A random cross-encoder with a tokenizer of whole words."""
    vocab = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


class TestCrossEncoder:
    @pytest.mark.parametrize("labels", [1, 2])
    def test_scores_pairs_as_the_model_does_one_by_one(self, labels: int, tmp_path: Path) -> None:
        folder = cross_encoder(tmp_path / "ce", labels)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        expected = []
        for passage in PASSAGES:
            pair = tokenizer([QUESTION], [passage], truncation="only_second", max_length=32, return_tensors="pt")
            logits = model(**pair).logits[0].detach()
            expected.append(float(logits[0] if labels == 1 else logits[1] - logits[0]))
        reranker = text_reranker(str(folder))
        assert isinstance(reranker, CrossEncoderReranker)
        assert reranker.name == "ce"
        assert reranker(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-5)
        assert len(set(expected)) == len(PASSAGES)
        assert reranker(QUESTION * 500, PASSAGES[:1])
        assert reranker(QUESTION, []) == []

    def test_that_is_none_is_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="has 3 classes; a cross-encoder has one score"):
            CrossEncoderReranker(str(cross_encoder(tmp_path / "three", 3)))
        with pytest.raises(InvalidArgument, match=r"there is no cross-encoder \("):
            CrossEncoderReranker(str(tmp_path / "nowhere"))
        (tmp_path / "lm").mkdir()
        (tmp_path / "lm" / "config.json").write_text(
            json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        )
        with pytest.raises(InvalidArgument, match="no cross-encoder but LlamaForCausalLM; write model:"):
            CrossEncoderReranker(str(tmp_path / "lm"))


class ScriptedYesNo:
    """Says yes to what has a word; nothing to an empty passage."""

    name = "scripted"

    def __call__(self, prompts: Sequence[str]) -> list[YesNo]:
        assert all(f"\n\nQuestion: {QUESTION}\n\n" in prompt for prompt in prompts)
        return [YesNo.of(0.9, 0.1) if "berth costs" in prompt else YesNo(None, 0.0) for prompt in prompts]


class TestLanguageModels:
    def test_are_asked_yes_or_no(self) -> None:
        reranker = YesNoReranker(ScriptedYesNo())
        assert reranker(QUESTION, PASSAGES) == [0, pytest.approx(0.9), 0, 0]
        assert reranker.name == "yes from scripted"

    def test_find_a_question_likely(self) -> None:
        model = tiny.model("llama", max_position_embeddings=4096)
        scores = LikelihoodReranker(model)(QUESTION, PASSAGES[:2])
        for passage, score in zip(PASSAGES, scores, strict=False):
            prompt = f"Passage: {passage}\n\nWrite a question that this passage answers."
            text = model.encode([{"role": "user", "content": prompt}], QUESTION)
            with torch.no_grad():
                chances = model.lm(torch.tensor([text.ids])).logits[0].float().log_softmax(-1)
            tokens = range(text.start, text.end)
            assert score == pytest.approx(
                sum(float(chances[t - 1, text.ids[t]]) for t in tokens) / len(tokens), abs=1e-3
            )

    def test_read_the_beginning_of_what_is_longer_than_their_window(self) -> None:
        model = tiny.model("llama", max_position_embeddings=256)
        (score,) = LikelihoodReranker(model)(QUESTION, ["word " * 5000])
        assert score < 0

    def test_are_named(self) -> None:
        loaded: list[str] = []

        def load(name: str) -> object:
            loaded.append(name)
            return tiny.model("llama")

        assert isinstance(text_reranker("likelihood:m", load), LikelihoodReranker)  # type: ignore[arg-type]
        reranker = text_reranker("model:n", load)  # type: ignore[arg-type]
        assert isinstance(reranker, YesNoReranker)
        assert isinstance(reranker.reader, LocalYesNo)
        assert loaded == ["m", "n"]
        with pytest.raises(InvalidArgument, match="'model:' without a name; write model:NAME"):
            text_reranker("model:")

    def test_behind_an_endpoint_that_is_down_are_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        with pytest.raises(JudgeUnavailable, match=r"'m' at .* does not answer"):
            text_reranker("endpoint:m")(QUESTION, PASSAGES[:1])


class Contrary:
    """Likes short passages; keeps what it was shown."""

    name = "contrary"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, question: str, passages: Sequence[str]) -> list[float]:
        self.texts = list(passages)
        return [-float(len(passage)) for passage in passages]


class TestSearch:
    def test_is_ordered_by_the_reranker(self, docs: Path, tmp_path: Path) -> None:
        built(docs, tmp_path / "kb")
        plain, reranker = Knowledge(tmp_path / "kb", WordEncoder()), Contrary()
        again = Knowledge(tmp_path / "kb", WordEncoder(), reranker=reranker)
        best = plain.search("spring tides metres", 20)
        passages = again.search("spring tides metres", 2)
        assert len(reranker.texts) == len(best) > 2
        shortest = sorted(best, key=lambda passage: len(f"{passage.heading}\n{passage.text}"))[:2]
        assert [passage.id for passage in passages] == [passage.id for passage in shortest]
        assert passages[0].score == -len(f"{passages[0].heading}\n{passages[0].text}")
        assert again.search("the of", mode="sparse") == []

    def test_shows_the_reranker_no_more_than_the_asker_may_see(self, docs: Path, tmp_path: Path) -> None:
        built(docs, tmp_path / "kb", labels=("crew=*boats*",))
        reranker = Contrary()
        knowledge = Knowledge(tmp_path / "kb", WordEncoder(), reranker=reranker, depth=50)
        knowledge.search("boats counted", where=ChunkFilter(labels=frozenset()))
        assert not any("Boats are counted" in text for text in reranker.texts)
        knowledge.search("boats counted")
        assert any("Boats are counted" in text for text in reranker.texts)

    def test_of_answers_is_reranked_too(self, docs: Path, tmp_path: Path) -> None:
        built(docs, tmp_path / "kb")
        knowledge = Knowledge(tmp_path / "kb", WordEncoder(), reranker=Contrary())
        answer = answer_question(knowledge, "berth", Scripted("x"), AnswerSettings(top=1))
        assert answer.passages == tuple(knowledge.search("berth", 1))

    def test_depth_is_checked(self, docs: Path, tmp_path: Path) -> None:
        built(docs, tmp_path / "kb")
        with pytest.raises(InvalidArgument, match="`depth`"):
            Knowledge(tmp_path / "kb", WordEncoder(), depth=0)


def test_the_command(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(docs, tmp_path / "kb")
    monkeypatch.setattr("poise.knowledge.searching.text_encoder", lambda *_, **__: WordEncoder())
    folder = cross_encoder(tmp_path / "ce")
    command = ["knowledge", "search", str(tmp_path / "kb"), QUESTION, "--json", "--top", "20", "--rerank"]
    done = CliRunner().invoke(app, [*command, str(folder)])
    assert done.exit_code == 0, done.output
    scores = [passage["score"] for passage in json.loads(done.stdout)["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 2
    done = CliRunner().invoke(app, [*command, str(tmp_path / "no-such")])
    assert done.exit_code == 2
    assert "--rerank is" in done.stderr
