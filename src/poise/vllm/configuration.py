"""Configurations of vLLM under which somebody would go unsteered or unread: refused when the engine is made."""

from __future__ import annotations

import functools
from typing import Any

from poise.errors import InvalidArgument
from poise.storage.content_hash import content_key

__all__ = ["install_configuration", "unsupported"]

BLOCK_OP = "poise::block_work"


def unsupported(config: Any) -> list[str]:
    """What of a ``VllmConfig`` the plugin cannot work under, each with its remedy."""
    parallel, compilation = config.parallel_config, config.compilation_config
    graphs = str(getattr(compilation.cudagraph_mode, "name", compilation.cudagraph_mode))
    faults = {
        "the V2 model runner; set VLLM_USE_V2_MODEL_RUNNER=0": config.use_v2_model_runner,
        "speculative decoding; leave speculative_config out": config.speculative_config is not None,
        "pipelines of several stages; use pipeline_parallel_size=1": parallel.pipeline_parallel_size > 1,
        "tensor parallelism; use tensor_parallel_size=1": parallel.tensor_parallel_size > 1,
        "data parallelism in one server; start one server for each": parallel.data_parallel_size > 1,
        "transfer of cached tokens between engines; leave kv_transfer_config out": config.kv_transfer_config
        is not None,
        "routed experts as auxiliary outputs; leave enable_return_routed_experts out": config.aux_output_config.enabled,
        "prompts that skip layers; leave kv_sharing_fast_prefill out": config.cache_config.kv_sharing_fast_prefill,
        "asynchronous scheduling; leave async_scheduling out": config.scheduler_config.async_scheduling is True,
        f"CUDA graphs of whole passes ({graphs}); use cudagraph_mode PIECEWISE or NONE": "FULL" in graphs,
    }
    return [fault for fault, there in faults.items() if there]


def install_configuration() -> None:
    """Patch the configuration of this process."""
    from vllm.config import VllmConfig

    prepare, compute_hash = VllmConfig.__post_init__, VllmConfig.compute_hash

    @functools.wraps(prepare)
    def checked(self: Any) -> None:
        if self.scheduler_config.async_scheduling is None:
            self.scheduler_config.async_scheduling = False
        prepare(self)
        if self.model_config is None:  # a configuration that runs nothing
            return
        if faults := unsupported(self):
            raise InvalidArgument(f"Poise's plugin does not work under {'; nor under '.join(faults)}.")
        graphs, splits = self.compilation_config.cudagraph_mode, self.compilation_config.splitting_ops
        if getattr(graphs, "name", "NONE") != "NONE" and splits is not None and BLOCK_OP not in splits:
            splits.append(BLOCK_OP)  # what a graph holds is not run again, and this differs from pass to pass

    @functools.wraps(compute_hash)
    def hashed(self: Any, *args: Any, **kwargs: Any) -> str:
        # A graph without the operation must not be taken for one that has it; what it does is no part of the graph.
        return content_key(vllm=compute_hash(self, *args, **kwargs), operation=BLOCK_OP)[:10]

    VllmConfig.__post_init__ = checked
    VllmConfig.compute_hash = hashed
