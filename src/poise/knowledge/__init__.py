"""Answers grounded in documents: files to passages, questions to passages, and passages to answers that cite them.

documents, reading       files to blocks and chunks (``markdown``, ``web_pages``, ``office_files``)
instructions             text in documents that reads as an instruction to a model
encoders                 texts to vectors
store                    what a store can do (``lance_store``, ``exact_store``, ``qdrant_store``); fusion
header, building         a knowledge base and its builds
searching                questions to passages
reranking                passages scored again, also by a ``cross_encoder``
follow_ups               questions that follow others
prompting, answering     passages and a question to an answer, by ``answer_writers``
citations                each sentence of an answer against its passages
"""

from poise.knowledge.answer_writers import EndpointAnswerWriter, LocalAnswerWriter
from poise.knowledge.answering import AnswerSettings, GroundedAnswer, answer_facts, answer_question, model_scores
from poise.knowledge.building import BuildSettings, BuildSummary, build_knowledge
from poise.knowledge.citations import CitedSentence, GroundingScores
from poise.knowledge.encoders import BundledEncoder, EndpointEncoder, StaticEncoder, text_encoder
from poise.knowledge.reranking import TextReranker, text_reranker
from poise.knowledge.searching import Knowledge, RetrievedPassage
from poise.knowledge.store import ChunkFilter

__all__ = [
    "AnswerSettings",
    "BuildSettings",
    "BuildSummary",
    "BundledEncoder",
    "ChunkFilter",
    "CitedSentence",
    "EndpointAnswerWriter",
    "EndpointEncoder",
    "GroundedAnswer",
    "GroundingScores",
    "Knowledge",
    "LocalAnswerWriter",
    "RetrievedPassage",
    "StaticEncoder",
    "TextReranker",
    "answer_facts",
    "answer_question",
    "build_knowledge",
    "model_scores",
    "text_encoder",
    "text_reranker",
]
