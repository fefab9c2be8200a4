"""Turns the embedded subject's GGUF file into a folder that transformers loads in a second: run once, in a child.

`python -m lamplighter.tools.convert SOURCE TARGET`: SOURCE holds one .gguf file; TARGET gets float32 safetensors,
config and tokenizer. The result is loaded again and must equal what was read, weight by weight.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

_SAMPLE = "The 19th century, naïve “quotes” and 你好:\n\n\tx = 3.14  # <|im_start|> 🙂"


def convert(source: Path, target: Path) -> None:
    """De-quantises SOURCE/*.gguf to float32 and writes TARGET; raises RuntimeError unless the round trip is exact."""
    (gguf,) = source.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    target.mkdir()
    # save_pretrained refuses a model that came from a quantised file, though its weights are float32 by now
    del read.config.quantization_config
    read.config.architectures = [type(read).__name__]
    read.config.name_or_path = ""
    read.config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    tied = set(read.all_tied_weights_keys) if read.config.tie_word_embeddings else set()
    weights = {name: value.contiguous() for name, value in read.state_dict().items() if name not in tied}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    _check(read, AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32), len(tokenizer))
    again = AutoTokenizer.from_pretrained(target)(_SAMPLE)["input_ids"]
    _require(again == tokenizer(_SAMPLE)["input_ids"], "the saved tokenizer splits text elsewhere")


def _check(read: Any, loaded: Any, n_tokens: int) -> None:
    """The identity of the conversion: the same weights, tied as before, and the same, finite logits."""
    before, after = read.state_dict(), loaded.state_dict()
    changed = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    _require(before.keys() == after.keys() and not changed, f"weights changed: {changed[:3]}")
    if read.config.tie_word_embeddings:
        shared = [name for name in after if after[name].data_ptr() == loaded.get_input_embeddings().weight.data_ptr()]
        _require(len(shared) > 1, "the output embedding is no longer tied to the input embedding")
    ids = torch.arange(1, 65).remainder(n_tokens).unsqueeze(0)
    with torch.no_grad():
        logits = loaded(ids).logits
        _require(bool(torch.isfinite(logits).all()), "the converted model gives logits that are not finite")
        # equal weights; the last bits of a matrix product depend on how memory is aligned
        close = torch.allclose(logits, read(ids).logits, atol=1e-3)
        _require(close, "the converted model gives other logits than the GGUF file")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
