"""The whole life of a model as one path: what it is as files, what is recorded of it, and where a use case stands.

weight_headers   tensors as the headers of weight files describe them
pickle_scan      what loading a pickle or unpacking an archive would do
model_notes      what the settings beside the weights say
model_files      a model's files: parts, sizes, vocabulary, template, licence, hashes
token_counts     a text as a model's tokens
registry         records of what was made and their stages: registry_records, registry_check, registry_diff, signing
registry_mirror  a registry that is at an address
hub_exchange     what is on record to the hub or an address, and back
artefacts        what lies at a path, for a record
cards, annex     a record's card, and its documentation in the order of the EU AI Act
project          a use case; project_status says where it stands
choice           candidates side by side, by candidate_measures and endpoint_candidate; choice_page as a page
bias             differences between groups; bias_sets has groups and prompts, bias_labels what is right or wrong

It strings together what other rooms compute, and keeps what they say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise._lazy import lazy_names

if TYPE_CHECKING:
    from poise.lifecycle.model_files import ModelInspection, inspect_model
    from poise.lifecycle.pickle_scan import FileFinding
    from poise.lifecycle.token_counts import TokenCounts, count_tokens

__all__ = ["FileFinding", "ModelInspection", "TokenCounts", "count_tokens", "inspect_model"]

__getattr__, __dir__ = lazy_names(
    "poise.lifecycle",
    {
        "FileFinding": "lifecycle.pickle_scan",
        "ModelInspection": "lifecycle.model_files",
        "TokenCounts": "lifecycle.token_counts",
        "count_tokens": "lifecycle.token_counts",
        "inspect_model": "lifecycle.model_files",
    },
)
