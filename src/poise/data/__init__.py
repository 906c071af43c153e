"""Data files as conversations: chat logs, question and answer tables, instruction sets, plain text.

Rows stream in the data's order, one :class:`Conversation` each; a row that cannot be used is a :class:`Rejected`
with its place and the reason, never an exception. Knows nothing of models.

    conversation   the values, and a conversation's turns
    shapes         which columns hold what: found in the first rows, or said
    files          JSON Lines, JSON, CSV and Parquet, compressed or not, a row at a time
    hub            data sets of the Hugging Face library, from a folder or the hub
    source         files, folders, globs and names to one ``DataSet``
    rejections     what was left out and why, and when that is too much
"""

from __future__ import annotations

from poise.data.dataset import DataSet, open_data
from poise.data.messages import Conversation, Message, Need, Rejected, Turn, last_user, turns
from poise.data.rejected import Rejections

__all__ = [
    "Conversation",
    "DataSet",
    "Message",
    "Need",
    "Rejected",
    "Rejections",
    "Turn",
    "last_user",
    "open_data",
    "turns",
]
