"""The model under study: weights, tokenizer and adapter, with one way to read it and one way to edit it.

Text is seen as ids whose first is the sink (BOS, or what stands for it): without one, first-position activations
are nonsense, and with one they are the sink's own. Rows are right-padded with position ids, which is exact at real
positions; a pass stops after the deepest site that is read and skips the LM head unless logits are asked for.
"""

import difflib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..store.records import Refused
from . import models
from .adapters import PLACES, find_adapter, gap, unembed
from .features import Coder, Point, find_coder
from .pins import Entry
from .pool import Pool
from .tries import Joint, Portion, Trie
from .units import Site, UnitId, parse_site

BATCH_TOKENS = 2048
# Relative error an identity may show; RMSNorm computes in float32 even inside a float64 model.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "float16": torch.float16}
# What each tool's numbers rest on; a tool is offered when its identities held.
NEEDS = {
    "read": ("neurons",),
    "edit": ("neurons", "stream", "restore", "unembed"),
    "project": ("neurons", "stream", "unembed"),
}

Ids = Sequence[int]
Rows = Sequence[Ids] | Tensor
Take = Callable[[Any, Tensor], None]     # is given a site or point and its reading [B, T, width]


@dataclass(frozen=True)
class Edit:
    """Puts `value` in place of what `site`, or a place that holds no units, has, during one pass.

    value: a tensor broadcast to [B, T, K], or a function of the current [B, T, K]; index: the K units (None = all;
    on an attn site a unit is a head, so K counts its columns); where: BoolTensor [B, T] of positions (None = all).
    """

    site: str | Point
    value: Tensor | Callable[[Tensor], Tensor]
    index: tuple[int, ...] | None = None
    where: Tensor | None = None

    @classmethod
    def by_row(cls, site: str, columns: Tensor, values: Tensor, where: Tensor) -> "Edit":
        """Another unit in each row: columns[b, k] of row b become values[b, t, k] where `where` [B, T] says so.

        columns [B, K]; values broadcast to [B, T, K].
        """

        def put(current: Tensor) -> Tensor:
            shape = (*current.shape[:2], columns.shape[1])
            index = columns.to(current.device)[:, None].expand(shape)
            return current.scatter(2, index, values.to(current).expand(shape))

        return cls(site, put, where=where)


@dataclass(frozen=True)
class Pass:
    """What one batch gave: readings [B, T, width] by site or place, logits [B, T, V] or None, mask [B, T] of real
    positions, how many positions each edit changed, and the final norm's output [B, T, d] or None (asked for without
    logits)."""

    readings: dict[Any, Tensor]
    logits: Tensor | None
    mask: Tensor
    fired: list[int]
    normed: Tensor | None = None


class _Deepest(Exception):  # noqa: N818 — it is control flow: the pass has gone as deep as anyone reads
    pass


class _Meter(threading.local):
    """Rows and padded tokens that went through the model for this thread."""

    rows = 0
    tokens = 0


class Subject:
    """A causal language model that can be read and edited at its sites. Make one with `load` or `wrap`."""

    def __init__(self, model: Any, tokenizer: Any, name: str, sink: int | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.sink = _sink(model, tokenizer, name) if sink is None else sink
        self.config = model.config.get_text_config()
        self.context = int(self.config.max_position_embeddings)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.special = frozenset({self.sink, *tokenizer.all_special_ids})
        self.meter = _Meter()
        self.passed = 0                  # tokens that went through the model, for all threads
        self.turn = threading.RLock()    # one pass at a time: hooks sit on the modules that every thread shares
        self._pool = Pool(self)
        self.coders: dict[str, Coder] = {}
        self.find_coder: Callable[[str], Coder] = find_coder    # asked for one that is named and not attached
        self._pieces: dict[int, str] = {}
        generator = torch.Generator().manual_seed(0)
        probe = torch.randint(self.vocabulary, (2, min(12, self.context)), generator=generator)
        self.adapter, self.checks = find_adapter(model, probe.to(self.device))
        self.n_layers = len(self.adapter.blocks)

    @classmethod
    def load(cls, ref: str | Path, device: str | None = None, dtype: str | torch.dtype | None = None) -> "Subject":
        """Loads an embedded name, a local folder or a hub id: safetensors only, no code from the model.

        dtype defaults to float32; device to CUDA where there is one. Raises Refused with the way out.
        """
        place = _find_weights(str(ref))
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype or torch.float32
        if kind is None:
            raise Refused(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
        if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", target):
            raise Refused(f"device {target!r} is unknown; choose cpu or cuda (cuda:1 for the second).")
        model, tokenizer = _from_pretrained(place, kind)
        try:
            model = model.to(target)
        except (RuntimeError, AssertionError) as error:
            said = str(error).splitlines()[0]
            raise Refused(f"the model cannot be put on device {target!r} ({said}); choose cpu.") from error
        return cls(model, tokenizer, str(ref), sink=_embedded_sink(str(ref), tokenizer))

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, name: str, sink: int | None = None) -> "Subject":
        """Takes a Hugging Face causal LM already in memory; `sink` names the first token where there is no BOS."""
        return cls(model, tokenizer, name, sink)

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @cached_property
    def digest(self) -> str:
        """sha256 over every weight's name, shape and bytes: equal digests read equal."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        words = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr((words, self.sink)).encode()).hexdigest()

    def holds(self, need: str) -> bool:
        """Whether the identities behind `need` (a key of NEEDS) hold on these weights within the dtype's tolerance."""
        return all(map(self._proved, NEEDS[need]))

    @property
    def shares(self) -> bool:
        """Whether rows that begin alike may be read through a trie: a way to save passes that no tool needs."""
        return self._proved("share")

    def _proved(self, identity: str) -> bool:
        error = self.checks[identity]
        return error is not None and error <= TOLERANCE[self.dtype]

    # Text

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with the sink in front, once. Special-token strings in the text stay plain text."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused("the text holds half a character (a lone surrogate); leave it out.") from None
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [self.sink, *ids]

    def take(self, text: str | None, ids: Ids | None) -> list[int]:
        """The ids of an experiment's input, `text` or `ids` (whose first is the sink).

        Raises Refused if both or neither are given, nothing follows the sink, an id is unknown, or the context ends.
        """
        if (text is None) == (ids is None):
            raise Refused("give either text or ids, and not both.")
        row = self.encode(text) if text is not None else [int(i) for i in ids or ()]
        if len(row) < 2 or (text is not None and not text.strip()):
            raise Refused("the text is empty; give at least one token after the sink.")
        bad = [i for i in row if not 0 <= i < self.vocabulary]
        if bad:
            raise Refused(f"token id {bad[0]} is outside the vocabulary of {self.name} (0 to {self.vocabulary - 1}).")
        if len(row) > self.context:
            raise Refused(f"the text has {len(row)} tokens and {self.name} sees {self.context}; shorten it.")
        return row

    def piece(self, token: int) -> str:
        """The string that a token adds to a text; a special token shows as its name, part of a character as �."""
        if token not in self._pieces:
            # Decoded behind an anchor, because some tokenizers drop the first token's leading space.
            anchor = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
            decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)
            head, both = decode(anchor), decode([*anchor, token])
            self._pieces[token] = both.removeprefix(head)
        return self._pieces[token]

    def pieces(self, ids: Ids) -> list[str]:
        return [self.piece(int(i)) for i in ids]

    def text(self, ids: Ids) -> str:
        """The text of `ids`, special tokens left out."""
        return "".join(self.piece(int(i)) for i in ids if int(i) not in self.special)

    def alike(self, ids: Ids) -> Tensor:
        """How near each token of the vocabulary [V] is to the mean of these: the cosine of input embeddings, less their
        mean over the vocabulary, × a factor that is the same for all."""
        table, (centre, length) = self.model.get_input_embeddings().weight, self._embedded
        with torch.inference_mode():
            wanted = table[list(ids)].mean(0) - centre
            scores: Tensor = (table @ wanted - centre @ wanted) / length
            return scores

    @cached_property
    def _embedded(self) -> tuple[Tensor, Tensor]:
        """The mean of the input embeddings [d], and how far from it each token's is [V]."""
        table = self.model.get_input_embeddings().weight
        with torch.inference_mode():
            centre = table.mean(0)
            length = (table - centre).norm(dim=1)
            return centre, length.clamp_min(torch.finfo(length.dtype).tiny)

    # Sites

    def attach(self, coder: Coder) -> str:
        """Makes the features of an SAE or a transcoder units of this subject, and returns their site.

        Raises Refused where its places or widths are not this model's, or its name is another's.
        """
        for point, side in ((coder.reads, "W_enc"), (coder.writes, "W_dec")):
            if point.layer >= self.n_layers:
                raise Refused(
                    f"{coder.name} was trained at block {point.layer}, and {self.name} has blocks 0 to "
                    f"{self.n_layers - 1}; it belongs to another model."
                )
            width = self._place_width(point.layer, point.place)
            its = int(coder.tensors[side].shape[0 if side == "W_enc" else 1])
            if its != width:
                raise Refused(
                    f"{coder.name} takes {its} numbers at {point} where {self.name} has "
                    f"{width}; it belongs to another model."
                )
        # TransformerLens centres what is written to the stream only where the norms that read it centre as well.
        centring = self.adapter.final_norm()[1]
        own = replace(coder, centres=coder.centres and centring)
        if own.bare(centring):
            if not self._proved("normed"):
                raise Refused(f"{coder.name} reads the norm before the MLP of {self.name}, which is not known there.")
            own = own.behind(*self.adapter.mlp_norm(own.reads.layer))
        known = self.coders.get(coder.name)
        if known is not None and known.digest != own.digest:
            raise Refused(f"another SAE is called {coder.name!r} already; give this one another name.")
        self.coders[coder.name] = own.to(self.device)
        return coder.site

    def width(self, site: str) -> int:
        """Number of columns at `site`: neurons, heads × head size, the stream's width, or features."""
        where = self._layer(site)
        return self.coder(site).width if where.coder else self._place_width(where.layer, where.kind)

    def _place_width(self, layer: int, place: str) -> int:
        if place in ("mlp", "attn"):
            return int(self.adapter.linear(layer, "neurons" if place == "mlp" else "heads")[0].shape[0])
        return int(self.config.hidden_size)

    def count(self, site: str) -> int:
        """Number of units at `site`; on an attn site these are heads."""
        return int(self.config.num_attention_heads) if parse_site(site).holds == "attn" else self.width(site)

    def coder(self, site: str) -> Coder:
        """The SAE or transcoder whose features are the units of `site`, attached when first asked for.

        Raises Refused where there is none of that name, or it is at another site.
        """
        name = parse_site(site).coder
        if name not in self.coders:
            self.attach(self.find_coder(name))
        if self.coders[name].site != site:
            raise Refused(f"{name} is at {self.coders[name].site}, not at {site}.")
        return self.coders[name]

    def doubts(self, site: str) -> list[str]:
        """What to say of `site` beside what is read there: that its SAE names another model than this one."""
        said = self.coder(site).doubt(self.name) if parse_site(site).coder else None
        return [said] if said else []

    def site_digest(self, site: str) -> str:
        """Equal digests read equal at `site`: that of the weights, and of the SAE where the units are features."""
        return f"{self.digest} {self.coder(site).digest}" if parse_site(site).coder else self.digest

    def check(self, unit: UnitId) -> None:
        """Raises Refused unless the unit is one of this model's."""
        last = self.count(unit.site) - 1
        if unit.index > last:
            raise Refused(f"{unit} is out of range: {unit.site} of {self.name} has units 0 to {last}.")

    def columns(self, site: str | Point, index: Sequence[int]) -> list[int]:
        """The columns that units occupy: themselves, or a head's slice of z."""
        if isinstance(site, Point) or parse_site(site).holds != "attn":
            return [int(i) for i in index]
        size = self.width(site) // self.count(site)
        return [h * size + k for h in index for k in range(size)]

    def writes_at(self, site: str | Point) -> Point:
        """Where changing a unit of `site` changes the pass."""
        if isinstance(site, Point):
            return site
        where = self._layer(site)
        return self.coder(site).writes if where.coder else Point(where.layer, where.kind)

    def _reads_at(self, site: str | Point) -> Point:
        if isinstance(site, Point):
            return site
        where = self._layer(site)
        return self.coder(site).reads if where.coder else Point(where.layer, where.kind)

    def write_rows(self, site: str) -> Tensor:
        """What one unit of activation of each unit of `site` adds to the block's write, or the stream [units, d].

        Rows of the down projection, or of an SAE's decoder, through the projection behind it where it writes neurons
        or z; the scale of an SAE's own norm is left out. Raises Refused for heads and dimensions of the stream.
        """
        holds, point = self._layer(site).holds, self.writes_at(site)
        if holds not in ("mlp", "feature"):
            raise Refused(f"the units of {site} have no write directions; name MLP neurons, as in 5-mlp/511.")
        rows = self.coder(site).rows() if holds == "feature" else None
        if point.place not in ("mlp", "attn"):
            assert rows is not None
            return rows
        weight = self.adapter.linear(point.layer, "neurons" if point.place == "mlp" else "heads")[0]
        return weight if rows is None else rows @ weight.to(rows.dtype)

    def write_direction(self, unit: UnitId) -> Tensor:
        """What one unit of activation adds [d], by the unit's sign: its row of `write_rows`, or a basis vector.

        Float32 at least. Raises Refused for a head.
        """
        self.check(unit)
        if unit.kind == "attn":
            raise Refused(f"{unit} has no single write direction; name an MLP neuron, as in 5-mlp/511.")
        kind = torch.promote_types(self.dtype, torch.float32)
        if unit.kind != "resid":
            return unit.sign * self.write_rows(unit.site)[unit.index].to(kind)
        basis = torch.zeros(self.width(unit.site), dtype=kind, device=self.device)
        basis[unit.index] = unit.sign
        return basis

    def writes_to_stream(self, site: str) -> bool:
        """Whether what units of `site` write reaches the stream by itself, and not through an MLP that reads it."""
        return self.writes_at(site).place != "mlp_in"

    def norm_behind(self, site: str) -> tuple[Tensor, bool] | None:
        """Gain and centring of the norm between what units of `site` write and the stream (Gemma); None without one.

        Raises Refused for features that write into an MLP's input: what they add reaches the stream through it alone.
        """
        point = self.writes_at(site)
        if not self.writes_to_stream(site):
            raise Refused(f"features of {site} write into an MLP, and have no direct path to the logits; ablate them.")
        inner = {"mlp": "mlp", "attn": "attention"}.get(point.place)
        return self.adapter.write_norm(point.layer, inner) if inner else None

    def likeness(self, unit: UnitId) -> Tensor:
        """Cosine of what each unit of the site writes with what `unit` writes [units], signs left out.

        Dimensions of the stream are all at right angles, so there it is that of the logits that each moves directly:
        of their columns of the output embeddings. Raises Refused for a head.
        """
        self.check(unit)
        head: Tensor = self.model.get_output_embeddings().weight
        rows = (head.T if unit.kind == "resid" else self.write_rows(unit.site)).float()
        return torch.nn.functional.cosine_similarity(rows, rows[unit.index, None], dim=1)

    def _layer(self, site: str) -> Site:
        where = parse_site(site)
        if where.layer >= self.n_layers:
            raise Refused(f"site {site!r} is out of range: {self.name} has layers 0 to {self.n_layers - 1}.")
        return where

    # Passes

    def run(
        self, rows: Rows, read: Sequence[str | Point] = (), edits: Sequence[Edit] = (), logits: bool = False,
        normed: bool = False, take: Take | None = None, start: Mapping[Any, Tensor] | None = None,
    ) -> Pass:  # fmt: skip
        """One forward pass over one batch of rows, right-padded.

        Readings are taken after the edits at their own site. Each edit's count of changed positions comes back in
        `fired`: an edit that did not happen shows as 0. `logits`, `normed`: what Pass gives besides. `take` gets each
        reading as it is made, and Pass none: readings of many sites are then not held at a time. `start`: readings of
        these rows without the edits; if they hold the stream `before` the edits' sites, the pass begins with it.
        """
        ids, mask = self._pad(rows)
        ragged = not bool(mask.all())
        positions = torch.arange(ids.shape[1], device=self.device).expand_as(ids)
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask.long() if ragged else None,
                  "use_cache": False}  # fmt: skip
        self.meter.rows += ids.shape[0]
        self.meter.tokens += mask.numel()
        return self._forward(inputs, mask, read, edits, logits, normed, take, start or {})

    def before(self, sites: Iterable[str | Point]) -> list[Point]:
        """The last stream that edits of `sites` leave as it is: read in one pass, it is what others can `start` from.

        None in front of the first block, without sites, and where the identity `resume` fails.
        """
        points = [point for site in sites for point in (self._reads_at(site), self.writes_at(site))]
        layer = min((point.layer - (point.place != "resid") for point in points), default=-1)
        return [Point(layer, "resid")] if layer >= 0 and self._proved("resume") else []

    def _forward(
        self, inputs: dict[str, Any], mask: Tensor, read: Sequence[str | Point], edits: Sequence[Edit], logits: bool,
        normed: bool, take: Take | None, start: Mapping[Any, Tensor],
    ) -> Pass:  # fmt: skip
        readings: dict[Any, Tensor] = {}
        sums: dict[Any, Tensor] = {}
        fired = [0] * len(edits)
        wanted = [self._reads_at(site) for site in read]
        points = dict.fromkeys([*wanted, *(self._reads_at(edit.site) for edit in edits)])
        points |= dict.fromkeys(self.writes_at(edit.site) for edit in edits)
        deepest = None if logits or normed or not read else max(wanted, key=_depth)
        shifts: dict[Point, list[Tensor]] = {point: [] for point in points}
        with self.turn, torch.inference_mode(), ExitStack() as stack:
            self.passed += mask.numel()
            for point in self.before(edit.site for edit in edits):
                if point in start and all(_depth(point) <= _depth(other) for other in wanted):
                    stack.enter_context(self.adapter.begin(point.layer, start[point]))

            def taken(site: str | Point, value: Tensor) -> None:
                sums[site] = _row_sums(value)
                (take or readings.__setitem__)(site, value)

            for point in points:
                visit = self._visitor(point, read, edits, mask, taken, fired, shifts, point == deepest)
                stack.callback(self.adapter.hook(point.layer, point.place, visit).remove)
            try:
                whole = self.model if logits else self.model.base_model
                output = whole(**inputs)
            except _Deepest:
                output = None
        last = output.last_hidden_state if normed and not logits else None
        said = output.logits if logits else None
        ends = {"what the final norm gives": last, "the logits": said}
        sums |= {name: _row_sums(value) for name, value in ends.items() if value is not None}
        self._require_finite(sums, mask)
        self._require_reached(read, edits, sums, fired, mask)
        return Pass(readings, said, mask, fired, last)

    def _require_finite(self, sums: Mapping[Any, Tensor], mask: Tensor) -> None:
        """Raises Refused naming the first place at which a real position holds a number that is not finite."""
        sound = [torch.where(mask, total, 0).isfinite().all() for total in sums.values()]
        if sound and not bool(torch.stack(sound).all()):     # one question to the device for all of them
            kind = str(self.dtype).removeprefix("torch.")
            half = self.dtype in (torch.float16, torch.bfloat16)
            way = "load it in float32" if half else "its weights, or what was put in, are not finite"
            place = next(place for place, good in zip(sums, sound, strict=True) if not bool(good))
            raise Refused(f"{self.name} gives numbers that are not finite in {kind} at {place}; {way}.")

    def _require_reached(
        self, read: Sequence[str | Point], edits: Sequence[Edit], sums: Mapping[Any, Tensor], fired: Sequence[int],
        mask: Tensor,
    ) -> None:  # fmt: skip
        """Raises Refused naming a place to read or to edit that the pass never came to."""
        missed = [site for site in read if site not in sums]
        for edit, changed in zip(edits, fired, strict=True):
            if not changed and (edit.where is None or bool((edit.where.to(mask.device) & mask).any())):
                missed.append(edit.site)
        if missed:
            raise Refused(f"the pass of {self.name} never came to {missed[0]}; nothing was read or changed there.")

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits [N, V] from the final norm's output [N, d], float32 at least.

        With `run(…, normed=True)` they are had at the positions that are needed: for a whole batch they are B × T × V
        numbers, and the head takes as long as several blocks. Raises Refused where the identity `unembed` fails, and
        where half precision overflows.
        """
        if not self._proved("unembed"):
            error = self.checks["unembed"]
            raise Refused(f"final norm and output embeddings of {self.name} do not give its logits (error {error}).")
        with torch.inference_mode():
            found = unembed(self.model, normed).to(torch.promote_types(self.dtype, torch.float32))
        if self.dtype == torch.float16:      # elsewhere what is finite up to here stays so, and looking takes time
            self._require_finite({"the logits": _row_sums(found)}, torch.ones_like(found[..., 0], dtype=torch.bool))
        return found

    def next_token_logits(
        self, rows: Rows, places: Sequence[tuple[int, int]], edits: Sequence[Edit] = (),
        start: Mapping[Any, Tensor] | None = None,
    ) -> tuple[Tensor, list[int]]:  # fmt: skip
        """Logits [N, V] of what follows each place (row, position) of one batch, and each edit's changed positions.

        start: as in `run`.
        """
        done = self.run(rows, edits=edits, normed=True, start=start)
        assert done.normed is not None
        line, position = torch.tensor(list(places), device=self.device).unbind(1)
        return self.unembed(done.normed[line, position]), done.fired

    def _pad(self, rows: Rows) -> tuple[Tensor, Tensor]:
        if isinstance(rows, Tensor):
            ids = rows.to(self.device)
            return ids, torch.ones_like(ids, dtype=torch.bool)
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.sink)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.as_tensor(row)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return ids.to(self.device), mask.to(self.device)

    def _visitor(
        self, point: Point, read: Sequence[str | Point], edits: Sequence[Edit], mask: Tensor,
        take: Take, fired: list[int], shifts: dict[Point, list[Tensor]], stop: bool,
    ) -> Callable[[Tensor], Tensor]:  # fmt: skip
        """What happens at a point: edits of the place itself, then of features, and only then is the place read.

        `shifts`: what features that were changed before a point write there. `stop` ends the pass.
        """
        sites = dict.fromkeys(s for s in (*(edit.site for edit in edits), *read) if self._reads_at(s) == point)
        own = [site for site in sites if isinstance(site, Point) or not parse_site(site).coder]

        def edited(site: str | Point, value: Tensor) -> Tensor:
            for number, edit in enumerate(edits):
                if edit.site == site:
                    value, changed = self._apply(edit, value, mask)
                    fired[number] += changed
            return value

        def visit(value: Tensor) -> Tensor:
            for shift in shifts[point]:
                value = value + shift.to(value.dtype)
            for site in own:
                value = edited(site, value)
            for site in sites:
                if site not in own:
                    coder = self.coder(str(site))
                    before = coder.encode(value)
                    after = edited(site, before)
                    if site in read:
                        take(site, after)
                    if after is not before:
                        shift = coder.shift(value, before, after)
                        if coder.writes == point:
                            value = value + shift.to(value.dtype)
                        else:
                            shifts[coder.writes].append(shift)
            for site in own:
                if site in read:
                    take(site, value)
            if stop:
                raise _Deepest
            return value

        return visit

    def _apply(self, edit: Edit, value: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        index = None if edit.index is None else self.columns(edit.site, edit.index)
        current = value if index is None else value[..., index]
        new = edit.value(current) if callable(edit.value) else edit.value.to(value)
        where = mask if edit.where is None else edit.where.to(mask.device) & mask
        new = torch.where(where[..., None], new.expand_as(current), current)
        if index is None:
            return new, int(where.sum())
        value = value.clone()
        value[..., index] = new
        return value, int(where.sum())

    def batches(self, rows: Rows, tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
        """Indices of rows in batches of at most `tokens` padded tokens, shortest rows first.

        Rows longer than a sliding window are not padded: padding that sees nothing but padding is NaN, and spreads.
        """
        batch: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            size = len(rows[i])
            ragged = bool(batch) and size != len(rows[batch[0]])
            if batch and ((len(batch) + 1) * size > tokens or (ragged and size > self.sees)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def activations(self, ids: Ids | Rows, units: Sequence[UnitId]) -> Tensor:
        """Raw activations [B, T, U] of `units` (their signs not applied), NaN where a shorter row is padded.

        `ids`: one row or several, each with the sink first. Float32, or float64 for a float64 model.
        """
        given: Any = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        several = bool(given) and isinstance(given[0], Sequence | Tensor)
        rows = [[int(i) for i in row] for row in (given if several else [given])]
        if not all(rows):
            raise Refused("there is nothing to read; give rows of ids, each with the sink first.")
        for unit in units:
            self.check_readable(unit)
        sites = list(dict.fromkeys(unit.site for unit in units))
        kind = torch.promote_types(self.dtype, torch.float32)
        result = torch.full((len(rows), max(map(len, rows)), len(units)), torch.nan, dtype=kind)
        for batch in self.batches(rows):
            done = self.run([rows[i] for i in batch], read=sites)
            picked = torch.stack([done.readings[u.site][..., u.index] for u in units], dim=-1).to(kind)
            picked[~done.mask] = torch.nan
            result[batch, : picked.shape[1]] = picked.cpu()
        return result

    def readings(self, rows: Sequence[Ids], unit: UnitId) -> Tensor:
        """sign × activation of one unit at the last token of each row [N]; `Reader` is for rows that begin alike."""
        self.check_readable(unit)
        result = torch.empty(len(rows), dtype=torch.promote_types(self.dtype, torch.float32))
        for batch in self.batches(rows):
            done = self.run([rows[i] for i in batch], read=[unit.site])
            last = torch.tensor([len(rows[i]) - 1 for i in batch], device=self.device)
            line = torch.arange(len(batch), device=self.device)
            result[batch] = done.readings[unit.site][line, last, unit.index].to(result.dtype).cpu()
        return unit.sign * result

    def pass_nodes(self, trie: Trie, read: Sequence[str]) -> dict[str, Tensor]:
        """Readings [n, width] of sites at the next nodes of a trie; what other threads ask for may share the pass."""
        return self._pool.read(trie, read)

    def run_nodes(self, portions: Sequence[Portion], read: Sequence[str]) -> list[dict[str, Tensor]]:
        """Readings [n, width] of sites at the new nodes of each of several tries, in one pass."""
        joint = Joint(portions, self.device, self.dtype)
        real = torch.ones_like(joint.inputs["input_ids"], dtype=torch.bool)
        done = self._forward(joint.inputs, real, read, edits=(), logits=False, normed=False, take=None, start={})
        joint.keep()
        return [{site: values[0, here] for site, values in done.readings.items()} for here in joint.spans]

    @cached_property
    def sees(self) -> int:
        """Tokens that every layer sees at once: the context, or a window of attention that slides over it."""
        return min(self.context, getattr(self.config, "sliding_window", None) or self.context)

    def check_readable(self, unit: UnitId) -> None:
        """Raises Refused unless the unit is one of this model's and has one activation a token."""
        self.check(unit)
        if unit.kind == "attn":
            raise Refused(f"{unit} is a head, which has no single activation; name an mlp or resid unit.")

    @contextmanager
    def metered(self) -> Iterator[dict[str, float]]:
        """Fills the yielded dict at the end with the rows, padded tokens and seconds that this thread spent inside."""
        cost: dict[str, float] = {}
        rows, tokens, start = self.meter.rows, self.meter.tokens, time.perf_counter()
        yield cost
        cost["forward_rows"] = self.meter.rows - rows
        cost["forward_tokens"] = self.meter.tokens - tokens
        cost["backward"] = 0
        cost["seconds"] = round(time.perf_counter() - start, 3)


def _row_sums(value: Tensor) -> Tensor:
    """Sums over the last axis, finite where every number is."""
    return value.sum(dim=-1, dtype=torch.promote_types(value.dtype, torch.float32))


def _depth(point: Point) -> tuple[int, int]:
    return point.layer, list(PLACES).index(point.place)


def _sink(model: Any, tokenizer: Any, name: str) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None and token < model.get_input_embeddings().num_embeddings:
            return int(token)
    raise Refused(f"{name} has no BOS, EOS or PAD token to put first; pass sink=ID to Subject.wrap.")


def embedded_subjects() -> dict[str, Entry]:
    """The subjects that `models pull` can fetch, by name."""
    return {name: row for name, row in models.table().items() if row.role == "subject"}


def _find_weights(ref: str) -> str:
    embedded = embedded_subjects()
    if ref in embedded:
        return str(models.folder(ref))
    if os.path.isdir(ref):
        return ref
    for meant in difflib.get_close_matches(ref, embedded, n=1, cutoff=0.85):
        raise Refused(f"{ref!r} is no model; did you mean {meant}?")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", ref) and not ref.startswith("."):
        return ref
    raise Refused(f"{ref!r} is no model: neither embedded ({', '.join(embedded)}), nor a folder, nor a hub id.")


def _embedded_sink(ref: str, tokenizer: Any) -> int | None:
    row = embedded_subjects().get(ref)
    return int(tokenizer.convert_tokens_to_ids(row.sink)) if row and row.sink else None


def _from_pretrained(place: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    local = os.path.isdir(place)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=local)
        # Scaled-dot-product attention leaves out Gemma 2's soft cap on attention scores.
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, use_safetensors=True, local_files_only=local, attn_implementation=attention
        )
        return model, AutoTokenizer.from_pretrained(place, local_files_only=local)
    except (OSError, ValueError) as error:
        known = ", ".join(embedded_subjects())
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Refused(
            f"the model {place!r} cannot be loaded ({first}); name an embedded one ({known}), a folder with "
            "safetensors weights, or a hub id that this machine can reach."
        ) from error


__all__ = ["Edit", "Pass", "Subject", "TOLERANCE", "gap"]
