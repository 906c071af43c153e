"""Data files as conversations: chat logs, question and answer tables, instruction sets, plain text.

Rows stream in the data's order, one :class:`Conversation` each; a row that cannot be used is a :class:`RejectedRow`
with its place and the reason, never an exception. Knows nothing of models.

    messages       the values, and a conversation's turns
    columns        names of columns, and how one is found among them
    recognition    what a row is, or why it is refused
    preferences    two answers to one prompt, or answers with a verdict
    preference_rows  a row with two answers as a pair
    preference_data  files of pairs as one data set
    shapes         the shape of a file, recognised or stated
    readers        a recognised row to messages
    row_extras     what stands beside the turns: loss masks, a thought, tools
    turn_parsing   one turn, in any form: text, thought, tool calls
    tool_calls     calls of tools, from keys, JSON or marks in a text
    encoded_cells  turns and parts that a cell keeps as JSON text or as a repr
    chat_markup    chats kept as one marked-up text
    markup_styles  the marks of templates and makers
    media_columns  images, audio and video, which are counted
    loss_marks     marks of what is not to be learnt
    input_files    a path, a member of a zip archive or an address, unpacked
    row_values     what a row is while it is read
    formats        JSON Lines, JSON, CSV and plain text, a row at a time
    tables         Parquet and Arrow, whose rows can leave as they came
    hub            data sets of the Hugging Face library, from a folder or the hub
    addresses      ``s3://``, ``hf://``, ``https://`` and the like
    stdin          standard input, kept so that it can be read again
    locate         what a name of data stands for
    dataset        all of these as one ``DataSet``
    repeats        conversations that say again what another one says
    left_out       what of a row is not read, counted by kind
    row_files      rows written as they came
    rejected       rows that cannot be used and why, and when that is too much
"""

from __future__ import annotations

from poise.data.dataset import DataSet, InputRow, data_from_rows, open_data
from poise.data.drawing import draw_conversations
from poise.data.left_out import count_left_out, describe_left_out
from poise.data.messages import (
    AnswerPart,
    Conversation,
    Message,
    Need,
    RejectedRow,
    Turn,
    conversation_key,
    last_user,
    turns,
)
from poise.data.preference_data import PreferenceData, open_preferences
from poise.data.preference_rows import PreferencePair
from poise.data.rejected import Rejections
from poise.data.repeats import describe_repeats, repeated_conversations

__all__ = [
    "AnswerPart",
    "Conversation",
    "DataSet",
    "InputRow",
    "Message",
    "Need",
    "PreferenceData",
    "PreferencePair",
    "RejectedRow",
    "Rejections",
    "Turn",
    "conversation_key",
    "count_left_out",
    "data_from_rows",
    "describe_left_out",
    "describe_repeats",
    "draw_conversations",
    "last_user",
    "open_data",
    "open_preferences",
    "repeated_conversations",
    "turns",
]
