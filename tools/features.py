"""Sparse autoencoders and transcoders: the features of a place in the model, read by an encoder, written by a decoder.

A coder is a folder of `cfg.json` and `sae_weights.safetensors`, as SAELens writes it. Nothing of it is executed, and
what it says is believed as far as it can be checked: shapes, finite numbers, a place that the subject has.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..store.records import Refused
from .hooks import HOOKS, KINDS
from .units import coder_name

EMBEDDED = Path(__file__).with_name("saes")      # those that come with this package
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
TRAINING = "training.json"           # beside them where the SAE was trained here, and before them
SCALER = "activation_scaler.json"    # where SAELens keeps the factor that training multiplied activations by
EPSILON = 1e-5                       # of SAELens's layer norm

# What each architecture holds besides W_enc, W_dec and b_dec.
TENSORS = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "batchtopk": ("b_enc", "topk_threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold", "W_skip"),
}
SAME = {"matryoshka_batchtopk": "batchtopk"}      # architectures that run as another does
OLDER = {"hook_point": "hook_name", "activation_fn_str": "activation_fn", "hook_point_head_index": "hook_head_index"}
NORMS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
WRITTEN = ("resid", "attn_out", "mlp_out")        # places in the stream's own basis, which TransformerLens may centre


@dataclass(frozen=True)
class Point:
    """A place (of `adapters.PLACES`) of a block."""

    layer: int
    place: str

    def __str__(self) -> str:
        return f"{self.place} of block {self.layer}"


@dataclass(frozen=True, eq=False)
class Coder:
    """One SAE or transcoder: it reads x [..., d_in] at the point `reads`, makes features z [..., m], and `writes` x̂.

    With x̃ = norm(x), less b_dec where it `subtracts`, and pre = x̃ W_enc + b_enc:

        standard, transcoder    z = relu(pre)
        jumprelu, batchtopk     z = relu(pre) where pre > threshold, else 0
        topk                    z = relu(pre) at the k largest pre, else 0
        gated                   z = relu(x̃ (W_enc ⊙ e^r_mag) + b_mag) where x̃ W_enc + b_gate > 0, else 0

    x̂ = norm⁻¹(z W_dec + b_dec), for transcoders z W_dec + b_dec (+ W_skip x). `by_norm`: pre is scaled by ‖W_dec‖, and
    z by its inverse. `centres`: it was trained on a stream less each position's mean, as TransformerLens hands out for
    models whose norms centre. With the tensors `gain` γ and `shift` β, those of the norm before the MLP that it reads,
    x stands for (x − β) / γ throughout (`behind`). Computes in `dtype`, float32 at least. Source of the formulas:
    sae-lens 6.54.
    """

    name: str
    architecture: str
    reads: Point
    writes: Point
    tensors: Mapping[str, Tensor]
    norm: str = "none"
    subtracts: bool = True
    k: int = 0
    by_norm: bool = False
    centres: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str:
        """The site that its features make up, as in 8-resid:my-sae."""
        return f"{self.reads.layer}-{KINDS[self.reads.place]}:{self.name}"

    @property
    def model(self) -> str:
        """The model that it was trained on, by what its configuration says."""
        return str(_flat(self.config).get("model_name") or "unknown")

    def doubt(self, model: str) -> str | None:
        """What to say where its configuration names another model than `model`; None where it names this one, or none.

        Names are compared by their last part and without case, as hub ids and folders differ in the rest. It is no more
        than a doubt: one model has several names, and two models of one shape cannot be told apart otherwise.
        """
        mine, other = (name.rstrip("/").rpartition("/")[2].lower() for name in (self.model, model))
        if mine in ("unknown", other):
            return None
        return f"{self.name} says that it was trained on {self.model}, and this is {model}: fine if both are one model"

    @property
    def width(self) -> int:
        """Number of features m."""
        return int(self.tensors["W_dec"].shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["W_dec"].dtype

    def bare(self, centring: bool) -> bool:
        """Whether it is at an MLP's input as it is before the norm's gain, in a model whose norms centre or do not.

        So TransformerLens hands out `ln2.hook_normalized` of norms that do not centre (RMSNorm; of LayerNorm it is the
        norm's output), and any input of an MLP where it was asked to fold norms into the weights.
        """
        known = _flat(self.config)
        hooks = [str(known.get(key)) for key in ("hook_name", "hook_name_out")]
        normalized = any(hook.endswith(".ln2.hook_normalized") for hook in hooks)
        folded = bool(_processing(known).get("fold_ln"))
        return "mlp_in" in (self.reads.place, self.writes.place) and (folded or (normalized and not centring))

    def behind(self, gain: Tensor, shift: Tensor) -> "Coder":
        """The same, for the output of a norm with this gain and shift [d_in] in place of what it was trained on.

        Raises Refused where that output cannot tell it: a gain of 0; and for what would write there, an SAE.
        """
        if self.rebuilds or self.writes.place == "mlp_in":
            raise Refused(f"{self.name} writes before the gain of a norm, where nothing can be changed here.")
        if not bool(gain.all()):
            raise Refused(f"{self.name} reads what the norm before MLP {self.reads.layer} multiplies by 0.")
        return replace(self, tensors={**self.tensors, "gain": gain.to(self.dtype), "shift": shift.to(self.dtype)})

    @property
    def rebuilds(self) -> bool:
        """Whether it gives back what it read, as an SAE does and a transcoder does not."""
        return "transcoder" not in self.architecture

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that decides its numbers."""
        settings = (self.architecture, self.reads, self.writes, self.norm, self.subtracts, self.k, self.by_norm)
        total = hashlib.sha256(repr((settings, self.centres)).encode())
        for name, tensor in sorted(self.tensors.items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def to(self, device: torch.device) -> "Coder":
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def take(self, x: Tensor) -> Tensor:
        """What it sees of x: in its dtype, and centred, or without the gain of a norm, where it was trained so."""
        x = x.to(self.dtype)
        if "gain" in self.tensors:
            x = (x - self.tensors["shift"]) / self.tensors["gain"]
        return x - x.mean(dim=-1, keepdim=True) if self.centres else x

    def encode(self, x: Tensor) -> Tensor:
        """Features z [..., m] of x [..., d_in]."""
        t = self.tensors
        x = self._normed(self.take(x))
        x = x - t["b_dec"] if self.subtracts else x
        if self.architecture == "gated":
            opened = (x @ t["W_enc"] + t["b_gate"] > 0).to(self.dtype)
            return opened * (x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
        pre = x @ t["W_enc"] + t["b_enc"]
        if self.architecture == "topk":
            return self._top(pre * t["W_dec"].norm(dim=-1) if self.by_norm else pre)
        z = pre.relu()
        return z * (pre > t["threshold"]).to(z.dtype) if "threshold" in t else z

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        """x̂ [..., d_out] from features z of x [..., d_in], which the norm and a skip connection want as well."""
        x = self.take(x)
        written = self._scaled(z) @ self.tensors["W_dec"] + self.tensors["b_dec"]
        if not self.rebuilds:
            return written + x @ self.tensors["W_skip"].T if "W_skip" in self.tensors else written
        written = self._unnormed(written, x)
        return written + x.mean(dim=-1, keepdim=True) if self.norm == "layer_norm" else written

    def rebuild(self, x: Tensor) -> Tensor:
        """What would stand where the coder writes if it explained all of it [..., d_out]: x̂, uncentred again."""
        rebuilt = self.decode(self.encode(x), x)
        return rebuilt + (x.to(self.dtype) - self.take(x)) if self.centres and self.rebuilds else rebuilt

    def shift(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """What changing the features of x from `before` to `after` adds where the coder writes [..., d_out].

        decode(after) − decode(before), over the features that changed alone: what it does not explain of x stays, and
        where nothing was changed this is exactly 0.
        """
        change = self._scaled(after - before)
        moved = (change != 0).flatten(0, -2).any(dim=0).nonzero()[:, 0]
        added = change[..., moved] @ self.tensors["W_dec"][moved]
        return self._unnormed(added, self.take(x)) if self.rebuilds else added

    def scale(self, x: Tensor) -> Tensor:
        """What the norm's inverse multiplies each feature's row by at x [..., d_in]: [..., 1], 1 without a norm."""
        one = torch.ones_like(x[..., :1], dtype=self.dtype)
        return self._unnormed(one, self.take(x)) if self.rebuilds else one

    def rows(self) -> Tensor:
        """What one unit of each feature adds where the coder writes [m, d_out], the norm's scale left out."""
        return self._scaled(torch.ones_like(self.tensors["W_dec"][:, 0]))[:, None] * self.tensors["W_dec"]

    def _scaled(self, z: Tensor) -> Tensor:
        return z * (1 / self.tensors["W_dec"].norm(dim=-1)) if self.by_norm else z

    def _top(self, pre: Tensor) -> Tensor:
        values, places = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, places, values.relu())

    def _normed(self, x: Tensor) -> Tensor:
        if self.norm == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            return x / (x.std(dim=-1, keepdim=True) + EPSILON)
        return x * self._rescale(x) if self.norm == "constant_norm_rescale" else x

    def _unnormed(self, written: Tensor, x: Tensor) -> Tensor:
        """The linear part of the norm's inverse: without the mean that layer norm gives back."""
        if self.norm == "layer_norm":
            return written * (x - x.mean(dim=-1, keepdim=True)).std(dim=-1, keepdim=True)
        return written / self._rescale(x) if self.norm == "constant_norm_rescale" else written

    def _rescale(self, x: Tensor) -> Tensor:
        rescale: Tensor = float(x.shape[-1] ** 0.5) / x.norm(dim=-1, keepdim=True)
        return rescale


# Reading a folder


def load_coder(folder: Path, name: str | None = None) -> Coder:
    """The coder in a folder of `cfg.json` and `sae_weights.safetensors`; `name` defaults to the folder's.

    Raises Refused for what is missing, damaged, unknown or does not fit, naming it.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise Refused(f"{str(folder)!r} holds no {file}; an SAE is a folder of {CONFIG} and {WEIGHTS}.")
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
        scaler = json.loads((folder / SCALER).read_text("utf-8")) if (folder / SCALER).is_file() else {}
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"the SAE in {str(folder)!r} is damaged ({first}); fetch it again.") from error
    if not isinstance(config, dict) or not isinstance(scaler, dict):
        raise Refused(f"{CONFIG} in {str(folder)!r} is no JSON object; an SAE's configuration is one.")
    return make_coder(name or folder.resolve().name, config, tensors, scaler.get("scaling_factor"))


def find_coder(name: str, places: Sequence[Path] = ()) -> Coder:
    """The coder called `name`: a folder of that name in one of `places`, else one that comes with this package."""
    for place in (*places, EMBEDDED):
        if (place / coder_name(name)).is_dir():
            return load_coder(place / name)
    known = _list(sorted(_folders(places))) or "none"
    raise Refused(f"no SAE is called {name!r} here (there are: {known}); add it with `lamplighter saes add`.")


def every_coder(places: Sequence[Path] = ()) -> list[Coder]:
    """The coders of the folders in `places` and of those that come with this package, by name."""
    return [load_coder(folder) for _, folder in sorted(_folders(places).items())]


def _folders(places: Sequence[Path]) -> dict[str, Path]:
    inside = [f for place in (EMBEDDED, *places) if place.is_dir() for f in place.iterdir()]
    return {f.name: f for f in inside if not f.name.startswith(".") and not _in_training(f)}


def _in_training(folder: Path) -> bool:
    """Whether it is the folder of a training that has written no SAE yet."""
    return (folder / TRAINING).is_file() and not (folder / CONFIG).is_file()


def make_coder(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], scale: float | None = None
) -> Coder:
    """A coder from the configuration and the tensors that SAELens holds of it, of version 6 or before.

    `scale`: what activations were multiplied by in training, where the configuration says that they were and the
    weights do not hold it yet.
    """
    known = _flat(config)
    architecture = SAME.get(str(known["architecture"]), str(known["architecture"]))
    if architecture not in TENSORS:
        raise Refused(f"{name} has the architecture {architecture!r}, which is unknown here; known: {_list(TENSORS)}.")
    if known.get("activation_fn", "relu") not in ("relu", "topk"):
        raise Refused(f"{name} has the activation function {known['activation_fn']!r}; relu and topk are known here.")
    norm = known.get("normalize_activations") or "none"
    if norm not in NORMS:
        raise Refused(f"{name} normalises activations by {norm!r}, which is unknown here; known: {_list(NORMS)}.")
    taken = _tensors(name, architecture, known, tensors)
    if norm == "expected_average_only_in":
        taken, norm = _folded(name, taken, scale), "none"
    by_norm = bool(known.get("rescale_acts_by_decoder_norm"))
    if architecture == "batchtopk":
        taken, by_norm = _as_jumprelu(taken, by_norm), False
    reads = _point(name, known, "hook_name")
    return Coder(
        name=coder_name(name),
        architecture=architecture,
        reads=reads,
        writes=_point(name, known, "hook_name_out") if "transcoder" in architecture else reads,
        tensors=taken,
        norm=norm,
        subtracts="transcoder" not in architecture and bool(known.get("apply_b_dec_to_input", True)),
        k=_top_k(name, known, taken) if architecture == "topk" else 0,
        by_norm=by_norm,
        centres=reads.place in WRITTEN and bool(_processing(known).get("center_writing_weights")),
        config=dict(config),
    )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of what version 6 keeps under `metadata`, and of what versions before called otherwise."""
    flat = {OLDER.get(key, key): value for key, value in config.items()}
    flat |= config["metadata"] if isinstance(config.get("metadata"), Mapping) else {}
    flat["architecture"] = "topk" if flat.get("activation_fn") == "topk" else flat.get("architecture", "standard")
    if isinstance(flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if flat["normalize_activations"] else "none"
    return flat


def _processing(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """How TransformerLens was asked to change the model's weights before training."""
    given = known.get("model_from_pretrained_kwargs")
    return given if isinstance(given, Mapping) else {}


def _tensors(
    name: str, architecture: str, known: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that the architecture needs, in one dtype, with the shapes and finite numbers that it needs."""
    wanted = ("W_enc", "W_dec", "b_dec", *TENSORS[architecture])
    given = dict(tensors)
    if "log_threshold" in given:
        given["threshold"] = given.pop("log_threshold").exp()
    missing = [t for t in wanted if t not in given]
    if missing:
        raise Refused(f"{name} lacks the tensor {missing[0]!r}, which its architecture {architecture!r} needs.")
    scaling = given.get("scaling_factor")
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise Refused(f"{name} holds a scaling_factor that is not folded into its weights; fold it in with sae-lens.")
    dtype = getattr(torch, str(known.get("dtype", "float32")).removeprefix("torch."), None)
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise Refused(f"{name} has the dtype {known.get('dtype')!r}; float32, float64, bfloat16 and float16 are known.")
    taken = {t: given[t].to(torch.promote_types(dtype, torch.float32)) for t in wanted}
    _check_shapes(name, known, taken)
    for t, tensor in taken.items():
        if not bool(tensor.isfinite().all()):
            raise Refused(f"{name} holds numbers in {t!r} that are not finite; fetch or train it again.")
    return taken


def _check_shapes(name: str, known: Mapping[str, Any], taken: Mapping[str, Tensor]) -> None:
    d_in, m = known.get("d_in"), known.get("d_sae")
    d_out = known.get("d_out", d_in) if "transcoder" in known["architecture"] else d_in
    shapes = {
        "W_enc": (d_in, m), "W_dec": (m, d_out), "b_dec": (d_out,), "topk_threshold": (), "W_skip": (d_out, d_in),
    }  # fmt: skip
    for t, tensor in taken.items():
        wanted = shapes.get(t, (m,))
        if tuple(tensor.shape) != wanted:
            raise Refused(f"{name}: {t} has the shape {tuple(tensor.shape)} where {CONFIG} says {wanted}.")


def _folded(name: str, taken: dict[str, Tensor], scale: float | None) -> dict[str, Tensor]:
    """Weights that take activations as they are, where training multiplied them by `scale`."""
    if not isinstance(scale, int | float) or not scale > 0:
        raise Refused(
            f"{name} was trained on activations multiplied by a factor that its folder does not hold; "
            f'put {{"scaling_factor": …}} into {SCALER} beside {CONFIG}.'
        )
    change = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return {t: tensor * change.get(t, 1.0) for t, tensor in taken.items()}


def _as_jumprelu(taken: dict[str, Tensor], by_norm: bool) -> dict[str, Tensor]:
    """BatchTopK after training: one threshold for every feature, on what decoder rows of length 1 would read."""
    norms = taken["W_dec"].norm(dim=-1).clamp(min=1e-8) if by_norm else torch.ones_like(taken["b_enc"])
    rest = {t: tensor for t, tensor in taken.items() if t != "topk_threshold"}
    return rest | {
        "W_enc": taken["W_enc"] * norms, "b_enc": taken["b_enc"] * norms, "W_dec": taken["W_dec"] / norms[:, None],
        "threshold": taken["topk_threshold"] * torch.ones_like(taken["b_enc"]),
    }  # fmt: skip


def _top_k(name: str, known: Mapping[str, Any], taken: Mapping[str, Tensor]) -> int:
    extra = known.get("activation_fn_kwargs")
    k = known.get("k", extra.get("k") if isinstance(extra, Mapping) else None)
    if not isinstance(k, int) or not 1 <= k <= len(taken["W_dec"]):
        raise Refused(f"{name}: k = {k!r} is no number of features out of {len(taken['W_dec'])}.")
    return k


def _point(name: str, known: Mapping[str, Any], key: str) -> Point:
    hook = str(known.get(key))
    found = re.fullmatch(r"blocks\.(\d{1,4})\.(.+)", hook)
    layer, place = (int(found[1]), found[2]) if found else (0, "")
    if place == "hook_resid_pre" and layer:
        layer, place = layer - 1, "hook_resid_post"       # what enters a block left the one before
    head = known.get("hook_head_index")
    if place not in HOOKS or head is not None:
        what = f"head {head} of {hook!r}" if head is not None else repr(hook)
        raise Refused(
            f"{name} was trained at {what} ({key}), which is no place that can be read here; known are hook_resid_pre "
            f"of a block but the first, and of any block {_list(HOOKS)}."
        )
    return Point(layer, HOOKS[place])


def _list(names: Any) -> str:
    return ", ".join(names)


__all__ = ["CONFIG", "Coder", "Point", "SCALER", "WEIGHTS", "every_coder", "find_coder", "load_coder", "make_coder"]
