"""Where neurons, heads and the residual stream live in each architecture, and the identities that prove it.

A row of `LAYOUTS` is a claim about module names. It is believed only after `identities` has held on the loaded
weights: support is proved per model, never listed. A model type without a row tries the rows whose modules it has.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..store.records import Refused
from .tries import Joint, Trie


@dataclass(frozen=True)
class Layout:
    """Dotted module names, below the causal LM or (indented below) below one block.

    `heads` and `neurons` are the linear maps whose INPUT is the per-head output z and the neuron vector;
    `attention` and `mlp` compute those; `attention_write` and `mlp_write` are what is added to the stream; `mlp_norm`
    gives what the MLP reads.
    """

    blocks: str
    norm: str
    heads: str
    neurons: str
    attention: str
    mlp: str
    attention_write: str
    mlp_write: str
    mlp_norm: str


_GPT2 = Layout(
    "transformer.h", "transformer.ln_f", "attn.c_proj", "mlp.c_proj", "attn", "mlp", "attn", "mlp", "ln_2"
)
_LLAMA = Layout(
    "model.layers", "model.norm", "self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp", "self_attn", "mlp",
    "post_attention_layernorm",
)
_GEMMA = Layout(
    "model.layers", "model.norm", "self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp",
    "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm",
)
_NEOX = Layout(
    "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense", "mlp.dense_4h_to_h",
    "attention", "mlp", "attention", "mlp", "post_attention_layernorm",
)
LAYOUTS = {
    "gpt2": _GPT2,
    "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA,
    "gemma2": _GEMMA, "gemma3_text": _GEMMA,
    "gpt_neox": _NEOX,
}  # fmt: skip
# Where a block can be read and edited, in the order a pass meets them, with the module (a field of Layout) and whether
# the place is its input or its output: heads' outputs z, what attention writes, what enters the MLP, the neurons, what
# the MLP writes, the stream behind the block.
PLACES = {
    "attn": ("heads", "input"),
    "attn_out": ("attention_write", "output"),
    "mlp_in": ("mlp", "input"),
    "mlp": ("neurons", "input"),
    "mlp_out": ("mlp_write", "output"),
    "resid": (None, "output"),
}
MISS = 1e6   # a relative error that no tolerance passes, and that JSON can hold


def unwrap(output: Any) -> Tensor:
    """The tensor in a module's output; attention modules return (output, weights), blocks a bare tensor."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


class Adapter:
    """One model's blocks and maps, found by its layout."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.layout = layout
        self.model = model
        self.blocks: list[nn.Module] = list(attrgetter(layout.blocks)(model))
        self.norm: nn.Module = attrgetter(layout.norm)(model)
        for block in self.blocks:
            for name in (layout.heads, layout.neurons, layout.attention_write, layout.mlp_write):
                attrgetter(name)(block)

    def module(self, layer: int, part: str) -> nn.Module:
        """The module that `part`, a field of Layout, names in block `layer`."""
        return attrgetter(getattr(self.layout, part))(self.blocks[layer])  # type: ignore[no-any-return]

    def linear(self, layer: int, part: str) -> tuple[Tensor, Tensor | None]:
        """Weight [in, out] and bias [out] of the `heads` or `neurons` map; GPT-2's Conv1D is stored that way round."""
        module = self.module(layer, part)
        weight: Tensor = module.weight  # type: ignore[assignment]
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        return (weight.T if isinstance(module, nn.Linear) else weight), bias

    def final_norm(self) -> tuple[Tensor, bool]:
        """The final norm's gain γ [d] and whether it centres its input."""
        gain, _, centres = _probe(self.norm)
        return gain, centres

    def write_norm(self, layer: int, part: str = "mlp") -> tuple[Tensor, bool] | None:
        """The same of the norm between a block's `mlp` or `attention` and the stream (Gemma), None without one."""
        own, written = self.module(layer, part), self.module(layer, f"{part}_write")
        if written is own:
            return None
        gain, _, centres = _probe(written)
        return gain, centres

    def mlp_norm(self, layer: int) -> tuple[Tensor, Tensor]:
        """Gain γ and shift β [d] of the norm whose output a block's MLP reads."""
        gain, shift, _ = _probe(self.module(layer, "mlp_norm"))
        return gain, shift

    def hook(self, layer: int, place: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Has `change` see, and give back, what every pass holds at `place`, one of PLACES, of block `layer`."""
        part, side = PLACES[place]
        module = self.blocks[layer] if part is None else self.module(layer, part)

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (change(inputs[0]), *inputs[1:])

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            value = change(unwrap(output))
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return module.register_forward_pre_hook(before) if side == "input" else module.register_forward_hook(after)

    @contextmanager
    def begin(self, layer: int, stream: Tensor) -> Iterator[None]:
        """Passes inside do not compute blocks 0 to `layer`: `stream` [B, T, d] is what comes out of them."""
        skipped = [block.__dict__ for block in self.blocks[: layer + 1]]
        known = [own.get("forward") for own in skipped]     # some libraries set one on the instance too
        for own in skipped:
            own["forward"] = lambda *_, **__: stream
        try:
            yield
        finally:
            for own, before in zip(skipped, known, strict=True):
                own.pop("forward") if before is None else own.update(forward=before)


def _probe(norm: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """A norm's gain γ [d], its shift β [d] (0 without one) and whether it centres, all found by calling it.

    For x = (c, −c, c, …) both LayerNorm and RMSNorm give ±γ + β, whatever way the gain is stored (Gemma stores
    γ − 1); c is so large that their ε does not show. A norm that centres maps a constant vector to β.
    """
    weight: Tensor = norm.weight  # type: ignore[assignment]
    ones = torch.full_like(weight, 100.0)
    flip = ones.clone()
    flip[1::2] *= -1
    with torch.inference_mode():
        up, down, flat = (norm(v[None, None])[0, 0] for v in (flip, -flip, ones))
    gain, shift = (up - down) / 2 * flip.sign(), (up + down) / 2
    return gain, shift, bool((flat - shift).abs().max() < 0.1 * gain.abs().max())


def find_adapter(model: nn.Module, ids: Tensor) -> tuple[Adapter, dict[str, float | None]]:
    """The adapter whose identities hold best on `ids` [B, T], with their errors. Raises Refused if none fits."""
    kind = str(model.config.model_type)  # type: ignore[union-attr]
    rows: Iterable[Layout] = [LAYOUTS[kind]] if kind in LAYOUTS else dict.fromkeys(LAYOUTS.values())
    tried: list[tuple[Adapter, dict[str, float | None]]] = []
    for layout in rows:
        try:
            adapter = Adapter(model, layout)
        except AttributeError:
            continue  # this layout names a module that the model does not have
        tried.append((adapter, identities(adapter, ids)))
    if not tried:
        raise Refused(f"the architecture {kind!r} has no known place for its neurons; known: {', '.join(LAYOUTS)}.")
    return min(tried, key=lambda pair: sum(e for e in pair[1].values() if e is not None))


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted value; 0 where both are zero, MISS where the shapes differ."""
    if found.shape != wanted.shape:
        return MISS
    scale = wanted.abs().max().item()
    difference = (found - wanted).abs().max().item()
    return difference / scale if scale else difference


def identities(adapter: Adapter, ids: Tensor) -> dict[str, float | None]:
    """Relative errors of the equations that make this adapter true, on `ids` [B, T].

    stream: x_0 + Σ attention writes + Σ MLP writes = x_L.  heads: z W_O + b = the attention's output.
    neurons: a W_down + b = the MLP's output.  unembed: softcap(head(norm(x_L))) = logits.  restore: another text
    with the stream after the first block put back gives the first text's logits.  groups: changing one key/value
    head moves exactly its query heads (None where the attention has no separate value projection).  share: rows that
    begin alike, read as one trie, give the last neurons that each gives alone.  resume: another text whose pass begins
    with this one's stream behind a middle block gives this one's logits.  normed: what the norm before the MLP gives is
    what the MLP reads (None where a block has no such norm).
    """
    model, layers = adapter.model, range(len(adapter.blocks))
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def keep(layer: int, part: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[layer, part] = (inputs[0] if inputs else unwrap(output), unwrap(output))

        return hook

    normed = all(hasattr(block, adapter.layout.mlp_norm) for block in adapter.blocks)
    parts = ["heads", "neurons", "attention", "mlp", "attention_write", "mlp_write", *["mlp_norm"] * normed]
    watched = {(i, part): adapter.module(i, part) for i in layers for part in parts}
    watched |= {(i, "block"): block for i, block in enumerate(adapter.blocks)} | {(-1, "norm"): adapter.norm}
    handles = [module.register_forward_hook(keep(*place)) for place, module in watched.items()]
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()

    def pair(layer: int, inner: str, outer: str) -> tuple[Tensor, Tensor]:
        return seen[layer, inner][0], seen[layer, outer][1]

    last = seen[-1, "norm"][0]
    stream = seen[0, "block"][0] + sum(seen[i, p][1] for i in layers for p in ("attention_write", "mlp_write"))
    with torch.inference_mode():
        return {
            "stream": gap(stream, last),
            "heads": max(_linear_gap(adapter, i, "heads", *pair(i, "heads", "attention")) for i in layers),
            "neurons": max(_linear_gap(adapter, i, "neurons", *pair(i, "neurons", "mlp")) for i in layers),
            "unembed": gap(unembed(model, seen[-1, "norm"][1]), logits),
            "restore": _restore_gap(adapter, ids, seen[0, "block"][1], logits),
            "groups": _group_errors(adapter, ids, seen[0, "heads"][0]),
            "share": _share_gap(adapter, ids, seen[len(layers) - 1, "neurons"][0]),
            "resume": _resume_gap(adapter, ids, seen[(len(layers) - 1) // 2, "block"][1], logits),
            "normed": max(gap(*pair(i, "mlp", "mlp_norm")) for i in layers) if normed else None,
        }


def _linear_gap(adapter: Adapter, layer: int, part: str, inputs: Tensor, output: Tensor) -> float:
    weight, bias = adapter.linear(layer, part)
    return gap(inputs @ weight + (0 if bias is None else bias), output)


def unembed(model: Any, normed: Tensor) -> Tensor:
    """Logits [..., V] of normed streams [..., d]: the output embeddings, then the soft cap where there is one."""
    logits: Tensor = model.get_output_embeddings()(normed)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _restore_gap(adapter: Adapter, ids: Tensor, clean: Tensor, logits: Tensor) -> float:
    other = ids.roll(1, dims=1)

    def put_back(_: nn.Module, __: Any, output: Any) -> Any:
        return (clean, *output[1:]) if isinstance(output, tuple) else clean

    handle = adapter.blocks[0].register_forward_hook(put_back)
    try:
        return gap(adapter.model(input_ids=other, use_cache=False).logits, logits)
    finally:
        handle.remove()


def _resume_gap(adapter: Adapter, ids: Tensor, stream: Tensor, logits: Tensor) -> float:
    """MISS where the model does not take a block's output as this adapter knows it."""
    try:
        with adapter.begin((len(adapter.blocks) - 1) // 2, stream):
            return gap(adapter.model(input_ids=ids.roll(1, dims=1), use_cache=False).logits, logits)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return MISS


def _share_gap(adapter: Adapter, ids: Tensor, neurons: Tensor) -> float:
    """Error of the deepest neurons [B, T, m] read through two tries, whose nodes share passes.

    One has first rows that part from `ids` half-way, and then `ids`; the other has its last row, a piece at a time.
    MISS where the model takes no such mask or cache.
    """
    model, half = adapter.model, ids.shape[1] // 2
    tries = Trie(4 * ids.numel()), Trie(ids.shape[1])
    found: list[tuple[Tensor, Joint]] = []
    joint: Joint
    module = adapter.module(len(adapter.blocks) - 1, "neurons")
    handle = module.register_forward_hook(lambda _, inputs, __: found.append((inputs[0], joint)))
    ends, last = [0], 0
    try:
        for rows, end in ((torch.cat([ids[:, :half], ids[:, half:].flip(0)], dim=1), 2), (ids, ids.shape[1])):
            ends = [tries[0].add(row) for row in rows.tolist()]
            last = tries[1].add(ids[-1, :end].tolist())
            joint = Joint([trie.portion() for trie in tries], ids.device, next(model.parameters()).dtype)
            model.base_model(**joint.inputs)  # type: ignore[operator]
            joint.keep()
    except (TypeError, ValueError, RuntimeError):
        return MISS
    finally:
        handle.remove()
    each = [torch.cat([values[0, joint.spans[b]] for values, joint in found]) for b in range(2)]
    return max(gap(each[0][ends], neurons[:, -1]), gap(each[1][[last]], neurons[-1:, -1]))


def _group_errors(adapter: Adapter, ids: Tensor, z: Tensor) -> float | None:
    """Number of query heads that react wrongly when value head 0 of block 0 is moved."""
    config: Any = adapter.model.config
    value = getattr(adapter.module(0, "attention"), "v_proj", None)
    groups = getattr(config, "num_key_value_heads", None)
    if value is None or not groups:
        return None
    heads, size = config.num_attention_heads, value.out_features // groups
    moved: list[Tensor] = []

    def push(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., :size] += 1
        return output

    handles = [
        value.register_forward_hook(push),
        adapter.module(0, "heads").register_forward_hook(lambda _, inputs, __: moved.append(inputs[0])),
    ]
    try:
        adapter.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    change = (moved[0] - z).abs().reshape(*z.shape[:2], heads, -1).amax(dim=(0, 1, 3))
    expected = torch.arange(heads, device=change.device) < heads // groups
    return float(((change > 0.5) != expected).sum().item())
