"""Answers grounded in documents: files to passages, questions to passages, and passages to answers that cite them.

documents, reading       files to blocks and chunks (``markdown``, ``web_pages``, ``office_files``)
instructions             text in documents that reads as an instruction to a model
encoders                 texts to vectors
store                    what a store can do (``lance_store``, ``exact_store``), and the fusion of rankings
header, building         a knowledge base and its builds
searching                questions to passages
"""

from poise.knowledge.building import BuildSettings, BuildSummary, build_knowledge
from poise.knowledge.encoders import BundledEncoder, EndpointEncoder, text_encoder
from poise.knowledge.searching import Knowledge, RetrievedPassage
from poise.knowledge.store import ChunkFilter

__all__ = [
    "BuildSettings",
    "BuildSummary",
    "BundledEncoder",
    "ChunkFilter",
    "EndpointEncoder",
    "Knowledge",
    "RetrievedPassage",
    "build_knowledge",
    "text_encoder",
]
