"""Tiny models of every shape, made here, one with planted effects, and the embedded weights that were pulled."""

import copy
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
# Machines are shared, so that no time is a failure; the same examples everywhere, and others with the profile `search`.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("LAMPLIGHTER_EXAMPLES", "same"))

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


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """No file of this process may grow beyond so many bytes, as on a full disk: writing then fails in mid-line."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


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


WORDS = ["It", "was", "built", "in", "the", "late", "century", "and", "left", "World", "War", "began", "ended",
         "capital", "of", "France", "is", "stop", "cars", "blue", "street"]  # fmt: skip


def said_car() -> Any:
    """60 documents of drawn words, in which "said" is always followed by "car" and never starts a document."""
    from lamplighter.tools.corpus import Corpus, Document

    rng = np.random.default_rng(0)
    documents = []
    for i in range(60):
        words = rng.choice(WORDS, size=40).tolist()
        words[int(rng.integers(5, 35))] = "said car"
        documents.append(Document(str(i), f"made {i}", " ".join(words)))
    sides = tuple(("explain", "explain", "explain", "tune", "score")[i % 5] for i in range(60))
    return Corpus("made", "made", tuple(documents), tuple(range(60)), sides, {})


def plant_pushers(llama: Any) -> Any:
    """Three neurons of layer 1 read "said": one writes nothing, one the logit of what follows, one against it."""
    from lamplighter.tools.subject import Subject

    model = copy.deepcopy(llama.model)
    subject = Subject.wrap(model, llama.tokenizer, "planted")
    said, car = llama.encode(" said")[-1], llama.encode(" said car")[len(llama.encode(" said"))]
    inputs, hits = [], []
    handle = model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for document in said_car().documents:
        ids = subject.encode(document.text)[:64]
        subject.run([ids])
        hits.append(torch.tensor([i == said for i in ids[1:]], dtype=torch.float64))
    handle.remove()
    x = torch.cat([rows[0, 1:] for rows in inputs])
    hit = torch.cat(hits)[:, None]
    weight = torch.where(hit > 0, (1 / hit.mean()).sqrt(), 1)   # rare as they are, they count as much as the rest
    reader = torch.linalg.lstsq(weight * x, weight * hit).solution[:, 0]
    mlp = model.model.layers[1].mlp
    mlp.down_proj.weight *= 0.1   # the others whisper
    write = model.lm_head.weight[car] / model.model.norm.weight
    for unit, size in ((0, 0.0), (1, 1.0), (2, -1.0)):
        mlp.gate_proj.weight[unit], mlp.up_proj.weight[unit] = 16 * reader, reader
        mlp.down_proj.weight[:, unit] = size * write / write.norm()
    return Subject.wrap(model, llama.tokenizer, "planted")


@pytest.fixture(scope="session")
def pushers(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`subject`, with three planted neurons in 1-mlp, its `corpus`, and its `sweep`."""
    from lamplighter.tools.sweep import make_sweep

    subject, corpus, home = plant_pushers(llama), said_car(), tmp_path_factory.mktemp("home")
    sweep = make_sweep(subject, corpus, ["0-mlp", "1-mlp", "0-resid"], home)
    return SimpleNamespace(subject=subject, corpus=corpus, sweep=sweep)
