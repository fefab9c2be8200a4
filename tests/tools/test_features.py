"""SAEs and transcoders: read as sae-lens reads them, edited with what they leave out left alone, refused by name."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lamplighter.store.records import Refused
from lamplighter.tools.ablate import ablate
from lamplighter.tools.adapters import PLACES, gap
from lamplighter.tools.attribute import attribute, norm_scale
from lamplighter.tools.features import EMBEDDED, Coder, Point, every_coder, find_coder, load_coder, make_coder
from lamplighter.tools.lens import by_path, lens
from lamplighter.tools.patch import patch
from lamplighter.tools.patch_grid import patch_grid
from lamplighter.tools.path_patch import path_patch
from lamplighter.tools.rebuild import fit_scales, rebuild
from lamplighter.tools.rules import Rule
from lamplighter.tools.score_output import Pushes, score_output
from lamplighter.tools.steer import steer
from lamplighter.tools.subject import Edit, Subject
from lamplighter.tools.sweep import make_sweep
from lamplighter.tools.toolbox import Toolbox
from lamplighter.tools.units import UnitId

D, M = 24, 60
CLOSE = 1e-9
ARCHITECTURES = ("standard", "jumprelu", "topk", "batchtopk", "gated", "transcoder", "skip_transcoder",
                 "jumprelu_transcoder", "jumprelu_skip_transcoder")  # fmt: skip
SAES = ARCHITECTURES[:5]
NORMS = ("none", "constant_norm_rescale", "layer_norm")


def parts(architecture: str, *, d: int = D, hook: str = "blocks.0.hook_resid_post", dtype: str = "float64",
          seed: int = 0, **more: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:  # fmt: skip
    """A random coder of an architecture, as configuration and tensors."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64).to(getattr(torch, dtype))

    crosses = "transcoder" in architecture
    config: dict[str, Any] = {"architecture": architecture, "d_in": d, "d_sae": M, "dtype": dtype, "metadata": {
        "hook_name": "blocks.0.mlp.hook_in" if crosses else hook, "sae_lens_version": "6.54.12"}}  # fmt: skip
    tensors = {"W_enc": drawn(d, M), "W_dec": drawn(M, d), "b_dec": drawn(d)}
    if architecture == "gated":
        tensors |= {"b_gate": drawn(M), "r_mag": drawn(M), "b_mag": drawn(M)}
    else:
        tensors["b_enc"] = drawn(M)
    if "jumprelu" in architecture:
        tensors["threshold"] = drawn(M).abs()
    if architecture == "batchtopk":
        tensors["topk_threshold"] = drawn(1)[0].abs()
    if architecture == "topk":
        config["k"] = 7
    if crosses:
        config |= {"d_out": d, "apply_b_dec_to_input": False}
        config["metadata"]["hook_name_out"] = "blocks.0.hook_mlp_out"
    if "skip" in architecture:
        tensors["W_skip"] = drawn(d, d)
    return config | more, tensors


def coder(architecture: str = "standard", name: str = "mine", **more: Any) -> Coder:
    return make_coder(name, *parts(architecture, **more))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_coder(subject: Any, made: Coder) -> Subject:
    """The same model, with the coder attached to nobody else's subject."""
    own = Subject.wrap(subject.model, subject.tokenizer, "own")
    own.attach(made)
    return own


def ids(subject: Any) -> Tensor:
    rows = torch.randint(1, 320, (3, 9), generator=torch.Generator().manual_seed(3))
    return torch.cat([torch.full((3, 1), subject.sink), rows], dim=1)


# What it computes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_is_that_of_sae_lens(architecture: str, norm: str, tmp_path: Path) -> None:
    """Bit-equal, in float32, from the folder that sae-lens wrote itself where it can."""
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install 'lamplighter[sae]'")
    config, tensors = parts(architecture, dtype="float32", normalize_activations=norm)
    name = {"batchtopk": "jumprelu"}.get(architecture, architecture)     # what sae-lens saves a trained one as
    theirs_config = config | {"architecture": name, "device": "cpu"}
    theirs_tensors = dict(tensors)
    if architecture == "batchtopk":
        theirs_tensors["threshold"] = theirs_tensors.pop("topk_threshold") * torch.ones(M)
    (tmp_path / "cfg.json").write_text(json.dumps(theirs_config))
    save_file(theirs_tensors, tmp_path / "sae_weights.safetensors")
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    theirs.save_model(tmp_path / "again")
    x = 3 * drawn(4, 11, D).float()
    with torch.inference_mode():
        z, out = theirs.encode(x), theirs(x)
    for ours in (make_coder("mine", config, tensors), load_coder(tmp_path, "a"), load_coder(tmp_path / "again")):
        assert torch.equal(ours.encode(x), z) and float(z.max()) > 0
        assert torch.equal(ours.decode(ours.encode(x), x), out)


@pytest.mark.parametrize("architecture", SAES)
def test_features_are_the_written_formulas(architecture: str) -> None:
    made, t = coder(architecture), parts(architecture)[1]
    x = drawn(5, D)
    for row, found in zip(x, made.encode(x), strict=True):
        for f in range(M):
            inner = float((row - t["b_dec"]) @ t["W_enc"][:, f])
            assert float(found[f]) == pytest.approx(by_hand(architecture, t, row, f, inner), abs=CLOSE)


def by_hand(architecture: str, t: dict[str, Tensor], row: Tensor, f: int, inner: float) -> float:
    if architecture == "gated":
        size = inner * float(t["r_mag"][f].exp()) + float(t["b_mag"][f])
        return max(0.0, size) if inner + float(t["b_gate"][f]) > 0 else 0.0
    pre = inner + float(t["b_enc"][f])
    if architecture == "topk":
        every = (row - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
        return max(0.0, pre) if int((every > pre + CLOSE).sum()) < 7 else 0.0
    bar = {"jumprelu": lambda: float(t["threshold"][f]), "batchtopk": lambda: float(t["topk_threshold"])}
    return max(0.0, pre) if pre > bar.get(architecture, lambda: 0.0)() else 0.0


def test_a_reading_at_the_threshold_is_off() -> None:
    config, tensors = parts("jumprelu")
    x = drawn(1, D)
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    tensors["threshold"] = pre[0].clone()
    assert not make_coder("mine", config, tensors).encode(x).any()
    tensors["threshold"] = pre[0] - 1e-12
    assert torch.equal(make_coder("mine", config, tensors).encode(x) > 0, pre > 0)


@pytest.mark.parametrize("architecture", SAES)
def test_a_factor_of_training_is_folded_into_the_weights(architecture: str, tmp_path: Path) -> None:
    plain, tensors = parts(architecture)
    scaled = plain | {"normalize_activations": "expected_average_only_in"}
    (tmp_path / "cfg.json").write_text(json.dumps(scaled))
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(Refused, match="factor that its folder does not hold"):
        load_coder(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    folded, x = load_coder(tmp_path), drawn(6, D)
    inner = make_coder("mine", plain, tensors)
    assert gap(folded.encode(x), inner.encode(2.5 * x)) < CLOSE
    assert gap(folded.decode(folded.encode(x), x), inner.decode(inner.encode(2.5 * x), x) / 2.5) < CLOSE


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_decoder_norms_decide_which_are_on_where_it_was_trained_so(architecture: str) -> None:
    config, tensors = parts(architecture, rescale_acts_by_decoder_norm=True)
    norms = tensors["W_dec"].norm(dim=1)
    plain = {k: v for k, v in config.items() if k != "rescale_acts_by_decoder_norm"}
    folded = {**tensors, "W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms,
              "W_dec": tensors["W_dec"] / norms[:, None]}  # fmt: skip
    one, two, x = make_coder("a", config, tensors), make_coder("b", plain, folded), drawn(6, D)
    assert gap(one.encode(x), two.encode(x)) < CLOSE
    assert gap(one.decode(one.encode(x), x), two.decode(two.encode(x), x)) < CLOSE
    assert gap(one.rows(), two.rows()) < CLOSE


def test_configurations_of_before_version_6_say_the_same() -> None:
    config, tensors = parts("topk")
    old = {"d_in": D, "d_sae": M, "dtype": "torch.float64", "hook_point": "blocks.1.hook_resid_pre",
           "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}, "normalize_activations": False}  # fmt: skip
    one, two = make_coder("mine", config, tensors), make_coder("mine", old, tensors)
    assert one.site == two.site == "0-resid:mine" and one.digest == two.digest


# In the model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_read_in_the_running_model(tiny: Any, architecture: str) -> None:
    made = coder(architecture)
    subject, place = with_coder(tiny, made), "mlp_in" if "transcoder" in architecture else "resid"
    seen: list[Tensor] = []
    handle = tiny.adapter.hook(0, place, lambda value: seen.append(value) or value)
    found = subject.run(ids(tiny), read=[made.site]).readings[made.site]
    handle.remove()
    assert found.shape == (3, 10, M) and gap(found, made.encode(seen[0])) < CLOSE
    unit = UnitId("own", made.site, 5)
    rows = ids(tiny).tolist()
    assert gap(subject.activations(rows, [unit])[..., 0], found[..., 5]) < CLOSE
    assert gap(subject.readings(rows, unit), found[:, -1, 5]) < CLOSE


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_setting_features_to_what_they_are_changes_no_bit(llama: Any, architecture: str, norm: str) -> None:
    made = coder(architecture, normalize_activations=norm)
    subject = with_coder(llama, made)
    clean = subject.run(ids(llama), read=[made.site], logits=True)
    for index in (None, (5, 8)):
        edit = Edit(made.site, lambda current: current.clone(), index)
        again = subject.run(ids(llama), edits=[edit], logits=True)
        assert again.fired == [30] and torch.equal(again.logits, clean.logits)
    off = subject.run(ids(llama), edits=[Edit(made.site, torch.zeros(()))], logits=True)
    assert gap(off.logits, clean.logits) > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_clamped_feature_adds_its_decoder_row_and_nothing_else(tiny: Any, architecture: str) -> None:
    """x + (c − z) D_f, put in by a plain hook, against the edit; the naive way, x̂ in place of x, is far off."""
    made = coder(architecture)
    subject, place = with_coder(tiny, made), "mlp_out" if "transcoder" in architecture else "resid"
    rows, clamp = ids(tiny), 4.0
    z = subject.run(rows, read=[made.site]).readings[made.site]
    row = made.tensors["W_dec"][5]
    where = torch.zeros(rows.shape, dtype=torch.bool)
    where[:, 4:] = True

    def added(value: Tensor) -> Tensor:
        return value + torch.where(where[..., None], (clamp - z[..., 5:6]) * row, 0.0)

    handle = subject.adapter.hook(0, place, added)
    wanted = subject.run(rows, logits=True).logits
    handle.remove()
    done = subject.run(rows, edits=[Edit(made.site, torch.tensor([clamp]).double(), (5,), where)], logits=True)
    assert done.fired == [18] and gap(done.logits, wanted) < 1e-9
    if made.rebuilds:
        naive = made.encode(drawn(2, D))
        assert gap(made.decode(naive, drawn(2, D)), drawn(2, D)) > 0.1     # what it leaves out is not nothing


def test_edits_of_a_place_and_of_its_features_come_in_that_order(llama: Any) -> None:
    made = coder()
    subject, rows = with_coder(llama, made), ids(llama)
    push = Edit("0-resid", lambda current: current + 1.0)
    pushed = subject.run(rows, read=["0-resid"], edits=[push]).readings["0-resid"]
    both = subject.run(rows, read=[made.site], edits=[push]).readings[made.site]
    assert gap(both, made.encode(pushed)) < CLOSE


def test_a_stream_that_was_centred_in_training_is_centred_where_norms_do(tiny: Any) -> None:
    asked = {"hook_name": "blocks.0.hook_resid_post", "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    made, plain = coder(metadata=asked), coder()
    x = drawn(4, D)
    assert made.centres and gap(made.encode(x), plain.encode(x - x.mean(dim=1, keepdim=True))) < CLOSE
    subject = with_coder(tiny, made)
    assert subject.coder(made.site).centres == (tiny.config.model_type in ("gpt2", "gpt_neox"))


@pytest.mark.parametrize("hook", ["attn.hook_z", "hook_attn_out", "mlp.hook_in", "mlp.hook_post", "hook_mlp_out"])
def test_every_place_is_read_and_written(tiny: Any, hook: str) -> None:
    place = {"attn.hook_z": "attn", "hook_attn_out": "attn_out", "mlp.hook_in": "mlp_in", "mlp.hook_post": "mlp"}
    made = coder(d=40 if hook == "mlp.hook_post" else D, hook=f"blocks.1.{hook}")
    subject, rows = with_coder(tiny, made), ids(tiny)
    seen: list[Tensor] = []
    handle = tiny.adapter.hook(1, place.get(hook, "mlp_out"), lambda value: seen.append(value) or value)
    found = subject.run(rows, read=[made.site]).readings[made.site]
    handle.remove()
    assert made.site.startswith("1-attn:" if "attn" in hook else "1-mlp:")
    assert gap(found, made.encode(seen[0])) < CLOSE
    assert subject.count(made.site) == subject.width(made.site) == M     # features, not heads
    assert subject.check_readable(UnitId("own", made.site, M - 1)) is None


NORM_BEFORE = {"gpt2": "ln_2", "llama": "post_attention_layernorm", "gemma2": "pre_feedforward_layernorm",
               "gpt_neox": "post_attention_layernorm"}  # fmt: skip


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("hook", ["ln2.hook_normalized", "mlp.hook_in"])
@pytest.mark.parametrize("architecture", ["jumprelu_transcoder", "skip_transcoder"])
def test_an_mlps_input_before_the_gain_is_what_the_norm_scaled(
    tiny: Any, architecture: str, hook: str, folded: bool
) -> None:
    """Beside the norm's own formula on its own input. Naively taken with the gain in it, it is another feature."""
    metadata = {"hook_name": f"blocks.1.{hook}", "hook_name_out": "blocks.1.hook_mlp_out",
                "model_from_pretrained_kwargs": {"fold_ln": folded}}  # fmt: skip
    made = coder(architecture, metadata=metadata)
    subject, rows = with_coder(tiny, made), ids(tiny)
    centring = tiny.config.model_type in ("gpt2", "gpt_neox")
    seen: list[tuple[Tensor, Tensor]] = []
    norm = getattr(subject.adapter.blocks[1], NORM_BEFORE[tiny.config.model_type])
    handle = norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    site = made.site
    found = subject.run(rows, read=[site, Point(1, "mlp_out")]).readings
    handle.remove()
    x, with_gain = seen[0]
    x = x - x.mean(dim=-1, keepdim=True) if centring else x
    epsilon = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    bare = x / (x.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
    before = folded or (hook == "ln2.hook_normalized" and not centring)
    assert made.bare(centring) == before
    assert gap(found[site], made.encode(bare if before else with_gain)) < 1e-5
    assert gap(found[site], made.encode(with_gain if before else bare)) > 1e-2
    attached = subject.coder(site)
    z = found[site]
    assert gap(attached.decode(z, with_gain), made.decode(z, bare if before else with_gain)) < 1e-5
    off = subject.run(rows, read=[Point(1, "mlp_out")], edits=[Edit(site, torch.zeros(()), (5,))])
    change = off.readings[Point(1, "mlp_out")] - found[Point(1, "mlp_out")]
    assert gap(change, -z[..., 5:6] * made.tensors["W_dec"][5]) < 1e-6


def test_what_cannot_be_told_from_behind_the_gain_is_refused(llama: Any) -> None:
    crossing = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    with pytest.raises(Refused, match="writes before the gain of a norm"):
        with_coder(llama, coder(hook="blocks.1.ln2.hook_normalized"))
    with pytest.raises(Refused, match="writes before the gain of a norm"):
        with_coder(llama, coder("transcoder", metadata={"hook_name": "blocks.0.hook_resid_post",
                                                        "hook_name_out": "blocks.1.ln2.hook_normalized"}))  # fmt: skip
    model = copy.deepcopy(llama.model)
    model.model.layers[1].post_attention_layernorm.weight.data[3] = 0
    own = Subject.wrap(model, llama.tokenizer, "own")
    with pytest.raises(Refused, match="the norm before MLP 1 multiplies by 0"):
        own.attach(coder("transcoder", metadata=crossing))
    own.checks["normed"] = None
    with pytest.raises(Refused, match="the norm before the MLP of own, which is not known there"):
        own.attach(coder("transcoder", metadata=crossing))


def test_places_are_met_in_the_order_they_are_listed(tiny: Any) -> None:
    met: list[str] = []
    handles = [tiny.adapter.hook(1, place, lambda v, p=place: met.append(p) or v) for place in PLACES]
    tiny.run(ids(tiny), logits=True)
    for handle in handles:
        handle.remove()
    assert met == list(PLACES)


@pytest.mark.parametrize("hook", ["hook_resid_post", "mlp.hook_post", "attn.hook_z", "hook_mlp_out"])
def test_write_rows_are_what_a_feature_adds_behind_its_place(llama: Any, hook: str) -> None:
    made = coder(d=40 if hook == "mlp.hook_post" else D, hook=f"blocks.1.{hook}")
    subject, rows = with_coder(llama, made), ids(llama)
    on = Edit(made.site, lambda current: current + 2.0, (5,))
    before, after = (subject.run(rows, read=["1-resid"], edits=e).readings["1-resid"] for e in ([], [on]))
    added = after - before
    if hook == "attn.hook_z":       # the MLP behind it reacts too: its own output is put back
        kept = subject.run(rows, read=["1-mlp"]).readings["1-mlp"]
        held = Edit("1-mlp", kept)
        added = subject.run(rows, read=["1-resid"], edits=[on, held]).readings["1-resid"] - before
    assert gap(added, (2.0 * subject.write_rows(made.site)[5]).expand_as(added)) < 1e-6
    assert torch.equal(subject.write_direction(UnitId("own", made.site, 5, -1)), -subject.write_rows(made.site)[5])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("hook", ["hook_resid_post", "attn.hook_z", "hook_mlp_out"])
def test_the_direct_contribution_is_that_of_what_the_feature_really_writes(tiny: Any, hook: str, norm: str) -> None:
    """Beside the final norm, frozen, of what decoding writes with the feature and without it."""
    made = coder(hook=f"blocks.1.{hook}", normalize_activations=norm)
    subject, row = with_coder(tiny, made), ids(tiny)[0].tolist()
    top = Point(1, "resid")
    done = subject.run([row], read=[made.site, made.reads, top], logits=True, normed=False)
    z, x = done.readings[made.site][0, -1], done.readings[made.reads][0, -1]
    unit = UnitId("own", made.site, int(z.argmax()))
    without = z.clone()
    without[unit.index] = 0
    write = made.shift(x[None], without[None], z[None])[0]
    if hook == "attn.hook_z":
        write = write @ subject.adapter.linear(1, "heads")[0]
    found = attribute(subject, unit, ids=row, answer=subject.piece(45), foil=subject.piece(46))
    if hook == "attn.hook_z" and subject.norm_behind(made.site) is not None:
        return                                   # Gemma's norm between: what attribute freezes is tested on heads
    gain, centres = subject.adapter.final_norm()
    scale = norm_scale(subject.adapter.norm, done.readings[top][0, -1], gain, centres)
    head = subject.model.get_output_embeddings().weight
    write = write - write.mean() if centres else write
    by_hand = float((write * gain / scale) @ (head[45] - head[46]))
    assert found.rows[0]["contribution"] == pytest.approx(by_hand, rel=1e-5)
    if norm != "none":
        naive = z[unit.index] * subject.write_rows(made.site)[unit.index]
        naive = naive - naive.mean() if centres else naive
        assert abs(float((naive * gain / scale) @ (head[45] - head[46])) - by_hand) > 1e-3 * abs(by_hand)


@pytest.mark.parametrize("hook", ["hook_resid_post", "attn.hook_z", "hook_attn_out", "mlp.hook_in", "hook_mlp_out"])
def test_experiments_on_the_output_side_work_on_features(tiny: Any, hook: str) -> None:
    made = coder(hook=f"blocks.0.{hook}")
    subject = with_coder(tiny, made)
    clean = [0, 11, 21, 31, 41, 51]
    text, corrupt = subject.text(clean), subject.text([*clean[:3], 61, *clean[4:]])
    z = subject.run([clean], read=[made.site]).readings[made.site][0, -1]
    unit = UnitId("own", made.site, int(z.argmax()))
    nothing: Any = None
    asked = {"text": text, "corrupt": corrupt, "answer": subject.piece(45), "foil": subject.piece(46)}
    patched = patch(subject, nothing, nothing, unit, **asked)
    grid = patch_grid(subject, nothing, nothing, unit, **asked)
    paths = path_patch(subject, nothing, nothing, unit, **asked)
    assert patched.rows[0]["clean"] == pytest.approx(float(z[unit.index]), rel=1e-6)
    total, direct, *through = paths.rows
    assert total["metric"] == pytest.approx(patched.rows[0]["metric"], abs=1e-6) and len(grid.rows) > 0
    if hook == "mlp.hook_in":     # it reaches the stream through the MLP of its block alone
        assert direct["carried"] == pytest.approx(0, abs=1e-9) and ("MLP", 0) in {
            (row["receiver"], row["layer"]) for row in through
        }
        for tool in (lens, partial(attribute, text=text)):
            with pytest.raises(Refused, match="write into an MLP, and have no direct path to the logits"):
                tool(subject, unit)
        assert by_path(subject, unit) == []
    else:
        assert lens(subject, unit).ok and attribute(subject, unit, text=text).ok and by_path(subject, unit)


def test_a_feature_that_is_a_neuron_does_what_the_neuron_does(pushers: Any, tmp_path: Path) -> None:
    """Feature f is neuron f where that is positive; what it leaves out, the negative side, stays in every tool."""
    eye, zeros = torch.eye(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
    config = {"architecture": "standard", "d_in": 40, "d_sae": 40, "dtype": "float64",
              "metadata": {"hook_name": "blocks.1.mlp.hook_post"}}  # fmt: skip
    made = make_coder("same", config, {"W_enc": eye, "W_dec": eye, "b_enc": zeros, "b_dec": zeros})
    subject = Subject.wrap(pushers.subject.model, pushers.subject.tokenizer, "planted")
    sweep = make_sweep(subject, pushers.corpus, [subject.attach(made), "1-mlp"], tmp_path)
    feature, neuron = UnitId("planted", made.site, 1), UnitId("planted", "1-mlp", 1)
    both = [ablate(subject, sweep, unit, kind="zero", equivalence=False) for unit in (feature, neuron)]
    assert both[0].rows[0] == pytest.approx(both[1].rows[0], abs=1e-6) and both[0].checks["effect"] == "shown"
    assert both[0].checks["pushed"][0][0] == both[1].checks["pushed"][0][0] == " car"
    with pytest.raises(Refused, match="1- is never positive on the explain side; sweep more text"):
        ablate(subject, sweep, replace(feature, sign=-1))
    together = ablate(subject, sweep, neuron, also=[f"{made.site}/2", "1-attn/0"], windows=8)
    assert together.checks["fired"] == together.checks["positions"]
    on = [steer(subject, sweep, unit, prompts=9, tokens=2, strengths=[4.0]).rows[-1] for unit in (feature, neuron)]
    assert on[0]["raises"][0] == on[1]["raises"][0] and on[0]["kl"] == pytest.approx(on[1]["kl"], rel=0.05)
    car, it = (subject.encode(words)[-1] for words in (" said car", "It"))
    scores = [
        score_output(subject, sweep, feature, Pushes((token,)), hypothesis="h", claim=lambda _: True)[0]
        for token in (car, it)
    ]
    assert scores[0].value == scores[0].references["lens"] == 1.0 > scores[1].value
    rule = Rule.from_json({"clauses": [{"at": {"ids": [subject.encode(" said")[-1]]}}]})
    by_feature, by_neuron = (
        rebuild(
            subject, sweep, {unit: rule}, fit_scales(subject, sweep, {unit: rule}), hypothesis="h", claim=lambda _: True
        )[0].details
        for unit in (feature, neuron)
    )
    for way in ("ce_true", "ce_mean", "ce_rebuilt", "kl_mean", "kl_rebuilt"):
        assert by_feature[way] == pytest.approx(by_neuron[way], rel=1e-3)


def test_one_coder_may_be_attached_twice_also_where_it_is_not_centred(llama: Any) -> None:
    asked = {"hook_name": "blocks.0.hook_resid_post", "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    made = coder(metadata=asked)
    subject = with_coder(llama, made)
    assert subject.attach(made) == made.site
    with pytest.raises(Refused, match="another SAE is called 'mine'"):
        subject.attach(coder(metadata=asked, seed=5))


# Names and refusals


def test_a_training_that_has_not_ended_is_no_sae_yet(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "training.json").write_text("{}")
    assert "begun" not in [made.name for made in every_coder([tmp_path])]
    (tmp_path / "broken").mkdir()
    with pytest.raises(Refused, match="holds no cfg.json"):
        every_coder([tmp_path])


def test_a_folder_is_found_by_name(tmp_path: Path, llama: Any) -> None:
    config, tensors = parts("standard")
    (tmp_path / "my-sae").mkdir()
    (tmp_path / "my-sae" / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "my-sae" / "sae_weights.safetensors")
    subject = Subject.wrap(llama.model, llama.tokenizer, "own")
    subject.find_coder = lambda name: find_coder(name, [tmp_path])
    assert subject.width("0-resid:my-sae") == M
    assert subject.site_digest("0-resid:my-sae") != subject.site_digest("0-resid") == subject.digest
    with pytest.raises(Refused, match="my-sae is at 0-resid:my-sae, not at 1-resid:my-sae"):
        subject.width("1-resid:my-sae")
    with pytest.raises(Refused, match=r"no SAE is called 'other' here \(there are: my-sae"):
        subject.width("0-resid:other")
    with pytest.raises(Refused, match="another SAE is called 'my-sae' already"):
        subject.attach(coder(name="my-sae", seed=9))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "temporal"}, "architecture 'temporal', which is unknown"),
    "activation": ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
    "norm": ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
    "width": ({"d_sae": 61}, r"W_enc has the shape \(24, 60\) where cfg.json says \(24, 61\)"),
    "no width": ({"d_in": None}, "W_enc has the shape"),
    "dtype": ({"dtype": "int8"}, "dtype 'int8'"),
    "hook": ({"metadata": {"hook_name": "blocks.3.ln1.hook_scale"}}, "trained at 'blocks.3.ln1.hook_scale'"),
    "embedding": ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "blocks.0.hook_resid_pre"),
    "head": ({"metadata": {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 3}}, "head 3 of"),
    "nothing": ({"metadata": {}}, "trained at 'None'"),
    "k": ({"architecture": "topk", "k": 0}, "k = 0 is no number of features"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    change, said = BAD[case]
    config, tensors = parts("standard")
    with pytest.raises(Refused, match=said):
        make_coder("mine", config | change, tensors)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    config, tensors = parts("standard")
    with pytest.raises(Refused, match="holds no cfg.json"):
        load_coder(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(Refused, match=r"holds no sae_weights\.safetensors"):
        load_coder(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(Refused, match="is damaged"):
        load_coder(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(Refused, match="is no JSON object"):
        load_coder(tmp_path)
    for name, damage, said in (("b_enc", None, "lacks the tensor 'b_enc'"), ("W_dec", torch.nan, "not finite")):
        given = dict(tensors)
        given[name] = given[name] * (damage or 1)
        if damage is None:
            del given[name]
        with pytest.raises(Refused, match=said):
            make_coder("mine", config, given)
    with pytest.raises(Refused, match="scaling_factor"):
        make_coder("mine", config, tensors | {"scaling_factor": torch.full((M,), 2.0)})
    with pytest.raises(Refused, match="no name for an SAE"):
        make_coder("a/b", config, tensors)


def test_another_models_sae_is_refused(llama: Any) -> None:
    with pytest.raises(Refused, match="was trained at block 7, and tiny-llama has blocks 0 to 1"):
        llama.attach(coder(hook="blocks.7.hook_resid_post"))
    with pytest.raises(Refused, match="takes 24 numbers at mlp of block 0 where tiny-llama has 40"):
        llama.attach(coder(hook="blocks.0.mlp.hook_post"))


@pytest.mark.parametrize(
    ("trained_on", "model", "doubted"),
    [("gpt2-small", "pythia-70m", True), ("google/gemma-2-2b", "google/gemma-2-9b", True),
     ("google/gemma-2-2b", "Gemma-2-2B", False), ("gemma-2-2b", "models/gemma-2-2b/", False),
     (None, "pythia-70m", False)],
)  # fmt: skip
def test_another_models_name_is_a_doubt(trained_on: str | None, model: str, doubted: bool) -> None:
    metadata = {"hook_name": "blocks.0.hook_resid_post"} | ({"model_name": trained_on} if trained_on else {})
    for config in ({"metadata": metadata}, metadata):         # of version 6, and of those before
        said = coder(**config).doubt(model)
        assert (said is not None) == doubted
        assert said is None or (str(trained_on) in said and model in said and "\n" not in said)


def test_the_doubt_stands_beside_what_is_read_and_refuses_nothing(llama: Any) -> None:
    made = coder(metadata={"hook_name": "blocks.0.hook_resid_post", "model_name": "pythia-70m"})
    toolbox = Toolbox(with_coder(llama, made), _unswept, _unswept)
    read = toolbox.call("activate", UnitId("own", made.site, 5), {"text": "a car"})
    assert read.ok and any("was trained on pythia-70m, and this is own" in said for said in read.warnings)
    assert toolbox.call("activate", UnitId("own", "0-resid", 5), {"text": "a car"}).warnings == []


def _unswept(*_: Any) -> Any:
    raise Refused("not swept")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["architecture", "d_in", "d_sae", "dtype", "k", "metadata", "hook_name",
                                        "activation_fn", "normalize_activations", "model_from_pretrained_kwargs"]),
                       st.one_of(st.none(), st.booleans(), st.integers(-5, 70), st.text(max_size=8),
                                 st.lists(st.integers(), max_size=2)), max_size=4))  # fmt: skip
def test_any_configuration_is_read_or_refused_in_one_sentence(change: dict[str, Any]) -> None:
    config, tensors = parts("standard")
    try:
        make_coder("mine", config | change, tensors)
    except Refused as refusal:
        assert "\n" not in str(refusal)


# The one that comes with the package

SHIPPED = "smollm2-l8-topk"


def test_the_embedded_sae_is_small_whole_and_better_than_the_five_minute_one() -> None:
    folder = EMBEDDED / SHIPPED
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 12_000_000
    made = find_coder(SHIPPED)
    assert (made.site, made.model, made.architecture) == (f"8-resid:{SHIPPED}", "smollm2-135m", "topk")
    assert (made.width, made.k) == (4608, 32)
    assert torch.allclose(made.tensors["W_dec"].norm(dim=1), torch.ones(4608), atol=2e-3)     # in half precision
    card = json.loads((folder / "card.json").read_text("utf-8"))
    assert card["recipe"]["tokens"] >= 2_000_000 and card["recipe"]["tokens"] <= card["text"]["explain_tokens"]
    short = card["five_minutes"]
    assert short["recipe"]["tokens"] == 379_000 and short["judged"]["tokens"] == card["judged"]["tokens"]
    mine, other = ({row["metric"]: row["value"] for row in one["judged"]["rows"]} for one in (card, short))
    for metric in ("fve", "fve_typical", "fve_by_token", "ce_recovered_mean", "kl_recovered_mean"):
        assert mine[metric] > other[metric], metric


def test_the_embedded_sae_explains_the_stream_and_another_order_of_its_features_does_not(smollm2: Subject) -> None:
    made = find_coder(SHIPPED)
    texts = ["The committee met in the late 19th century to discuss the new railway.", "x = [i for i in range(10)]",
             "Water boils at one hundred degrees when the pressure is that of the sea level."]  # fmt: skip
    read = [smollm2.run([smollm2.encode(t)], read=[made.writes]).readings[made.writes][0, 1:] for t in texts]
    x = torch.cat(read).float()
    z = made.encode(x)
    assert int((z > 0).sum(dim=1).max()) <= 32

    def explained(features: Tensor) -> float:
        left = (x - made.decode(features, x)).square().sum()
        return 1 - float(left / (x - x.mean(dim=0)).square().sum())

    order = torch.randperm(made.width, generator=torch.Generator().manual_seed(0))
    assert explained(z) > 0.6 > 0 > explained(z[:, order])
