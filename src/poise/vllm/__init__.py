"""Per-request steering and per-token readings inside an unforked vLLM.

``plugin`` is the entry point that vLLM calls in each of its processes. ``requests`` is what a request may say and
``vector_folder`` what it may name; ``programs`` is what a request does to a forward pass, ``passes`` what all requests
of one pass do, ``block_work`` does it. ``runner``, ``scheduling``, ``front`` and ``http`` hold what touches vLLM, and
``private_names`` everything of vLLM that they rely on.
"""
