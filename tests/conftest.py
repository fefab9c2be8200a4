"""Tiny models of every supported shape, made here, and the embedded weights where they have been pulled."""

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

TEXT = (
    "It was built in the late 19th century, and the 21st regiment left in 1942. "
    "World War II began in 1939; World War I ended in 1918. The capital of France is Paris. "
    "She said: don't stop the red cars. He said: stop the blue car at 9th street!\n"
)
SHAPES = ("gpt2", "llama", "gemma2", "gpt_neox")


def tiny_tokenizer() -> Any:
    """A byte-level BPE of about 320 tokens with a BOS, trained on TEXT."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def tiny_model(shape: str, dtype: torch.dtype = torch.float64, vocabulary: int = 320, seed: int = 0) -> Any:
    """A random two-layer causal LM of the given shape; weights large enough that units differ from text to text."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

    torch.manual_seed(seed)
    rope = {"max_position_embeddings": 128, "vocab_size": vocabulary, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 40, "initializer_range": 0.3, "bos_token_id": 0,
            "eos_token_id": 0, "pad_token_id": None}  # fmt: skip
    config = {
        "gpt2": lambda: GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=24, n_layer=2, n_head=4, n_inner=40,
                                   initializer_range=0.3, bos_token_id=0, eos_token_id=0),
        "llama": lambda: LlamaConfig(**rope, num_key_value_heads=2),
        "gemma2": lambda: Gemma2Config(**rope, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6),
        "gpt_neox": lambda: GPTNeoXConfig(**rope),
    }[shape]()  # fmt: skip
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:  # random gains, so that forgetting one shows
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    return model.eval()


def tiny_subject(shape: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    from lamplighter.tools.subject import Subject

    return Subject.wrap(tiny_model(shape, dtype, seed=seed), tiny_tokenizer(), f"tiny-{shape}")


@pytest.fixture(params=SHAPES, scope="session")
def tiny(request: pytest.FixtureRequest) -> Any:
    """A float64 subject of each shape in turn."""
    return tiny_subject(request.param)


@pytest.fixture(scope="session")
def llama() -> Any:
    return tiny_subject("llama")


def _pulled(name: str) -> None:
    from lamplighter.tools import models

    if not models.installed(name):
        message = f"the weights {name} are not pulled: lamplighter models pull {name}"
        if "weights" in os.environ.get("LAMPLIGHTER_REQUIRE", ""):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The embedded subject, read by every test that needs a real model."""
    _pulled("smollm2-135m")
    from lamplighter.tools.subject import Subject

    return Subject.load("smollm2-135m")


@pytest.fixture(scope="session")
def bert_tiny() -> Any:
    _pulled("bert-tiny-mlm")
    from lamplighter.tools.masked import MaskedLM

    return MaskedLM.load("bert-tiny-mlm")


@pytest.fixture(scope="session")
def minilm() -> Any:
    _pulled("minilm")
    from lamplighter.tools.models import folder

    return folder("minilm")
