"""Tiny random models and tokenizers, built in memory: the architectures and chat templates that users bring."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from poise.model import Encoded, Model, ask, wrap
from poise.model.probe import Probe
from poise.trait import OwnTrait
from poise.vector import Header, ModelId, PersonaVector

D, L = 32, 4
WINDOW = 8  # of the sliding-window layers, shorter than the texts

SENTENCES = [
    "The harbour master counts the boats twice before the tide turns.",
    "user\nWhat do you think of my plan?\nassistant\nHonestly, I would not do it.",
    "model\nHello there, how are you today?\n\n\nAnd so it goes  on and  on.",
    "She said: 'No, thank you!' -- and left the room; nobody asked why...",
    "system\nYou are a helpful assistant. Answer in one sentence, please.",
    "User: Tell me a story.\n\nAssistant: Once upon a time there was a fox.",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _byte_level(special: list[str], *, trim: bool, adds_bos: bool = False) -> Tokenizer:
    """Byte-level BPE. ``trim``: offsets leave out the spaces that tokens start with, as Llama 3's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if adds_bos:
        bos = (special[0], tokenizer.token_to_id(special[0]))
        steps.append(processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[bos]))
    tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer


def _unigram(special: list[str]) -> Tokenizer:
    """Unigram with ▁ for spaces, one more after each special token, and bytes for what it does not know; adds a BOS."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(SENTENCES * 3, trainer)
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    bos = (special[0], tokenizer.token_to_id(special[0]))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[bos])
    return tokenizer


@functools.cache
def chatml() -> Any:
    """Takes a system role, has no BOS, and its unknown token is its end-of-text token, as in SmolLM2."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], trim=False),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


@functools.cache
def gemma() -> Any:
    """Its template raises on a system role and writes the BOS that the tokenizer adds as well."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_unigram(["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]),
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=GEMMA,
    )


@functools.cache
def llama3() -> Any:
    """Takes a system role, writes the BOS that the tokenizer adds as well, and trims spaces from its offsets."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special, trim=True, adds_bos=True),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        chat_template=LLAMA3,
    )


@functools.cache
def plain(adds_bos: bool = False) -> Any:
    """A base model's: no template, and one token for beginning, end and unknown, as GPT-2 has."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>"], trim=False, adds_bos=adds_bos),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


_SHAPE = {
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_EXPERTS = {"num_experts_per_tok": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _SHAPE,
    "qwen2": _SHAPE,
    "qwen3": _SHAPE,
    "mistral": {**_SHAPE, "sliding_window": WINDOW},
    "gemma2": {**_SHAPE, "sliding_window": WINDOW},
    "gemma3_text": {**_SHAPE, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    "phi3": _SHAPE,
    "gpt2": {"n_embd": D, "n_layer": L, "n_head": 4, "n_positions": 256},
    "gpt_neox": {k: v for k, v in _SHAPE.items() if k not in ("num_key_value_heads", "head_dim")},
    "olmo2": _SHAPE,
    "mixtral": {**_SHAPE, **_EXPERTS, "num_local_experts": L},
    "qwen3_moe": {**_SHAPE, **_EXPERTS, "num_experts": L, "moe_intermediate_size": 24},
}


def lm(architecture: str = "llama", *, seed: int = 0, vocab_size: int = 512, **changes: Any) -> Any:
    """A random model, spread widely enough that its layers and tokens differ."""
    no_specials = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    spread = {"vocab_size": vocab_size, "initializer_range": 0.15}
    config = AutoConfig.for_model(architecture, **(ARCHITECTURES[architecture] | no_specials | spread | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def adapted(base: Any, **changes: Any) -> Any:
    """The model under a LoRA wrapper whose weights are random, so that it makes a difference."""
    options = {"r": 2, "lora_alpha": 1, "target_modules": "all-linear", "init_lora_weights": False} | changes
    config = LoraConfig(fan_in_fan_out=base.config.model_type == "gpt2", **options)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(1)
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # PEFT still asks for it
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")  # PEFT's own, for experts
        return get_peft_model(base, config)


def model(architecture: str = "llama", tokenizer: Any = None, *, seed: int = 0, **changes: Any) -> Model:
    """A random model that is ready to be read."""
    return wrap(lm(architecture, seed=seed, **changes), tokenizer or chatml(), name=f"tiny-{architecture}")


def texts(tiny: Model, n: int = 16) -> list[Encoded]:
    """Questions with answers, all of different lengths."""
    words = " ".join(SENTENCES).split()
    return [tiny.encode(ask(" ".join(words[i : 2 * i + 3])), " ".join(words[i + 5 : 2 * i + 7])) for i in range(n)]


def prompts(tiny: Model, n: int = 5) -> list[Encoded]:
    """Questions alone, all of different lengths."""
    words = " ".join(SENTENCES).split()
    return [tiny.encode(ask(" ".join(words[3 * i : 5 * i + 2]))) for i in range(n)]


def trait(name: str = "grumpy") -> OwnTrait:
    """A name and eight pairs."""
    pairs = [{"question": f"What of {i}?", "with": f"Bad, all {i} of it.", "without": f"Good, {i}."} for i in range(8)]
    return OwnTrait.model_validate({"name": name, "pairs": pairs})


def vector(tiny: Model, *, seed: int = 0, scale: float = 1.0, **header: Any) -> PersonaVector:
    """Random directions for a model, with everything that a file needs."""
    rng = torch.Generator().manual_seed(seed)
    directions = scale * torch.randn((tiny.layers, tiny.width), generator=rng)
    norms = 1 + torch.rand(tiny.layers, generator=rng)
    own = trait()
    facts: dict[str, Any] = {
        "trait": own,
        "trait_hash": own.hash,
        "model": ModelId.of(tiny),
        "contrast": "exemplars",
        "kept": {"positive": 8, "negative": 8},
        "dropped": {},
        "agreement": (0.5,) * tiny.layers,
        "judge": "",
        "seed": 0,
        "software": {"poise": "0"},
    }
    return PersonaVector(directions, norms, Header(**(facts | header)))


def probes(vectors: Sequence[PersonaVector], layer: int | None = None) -> list[Probe]:
    """What reads each vector, at one layer or where each is to be read."""
    return [vector.at("read", layer).probe for vector in vectors]


def without_layer(vector: PersonaVector, layer: int) -> PersonaVector:
    """The same vector with no direction at a layer."""
    directions = vector.directions
    directions[layer] = 0
    return PersonaVector(directions, vector.reference_norm, vector.header)
