"""sae_eval: a perfect dictionary scores 1, a useless one below 0, and the losses are those of a plain pass."""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamplighter.store.records import Refused
from lamplighter.tools.features import Coder, make_coder
from lamplighter.tools.sae_eval import sae_eval
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Read

D = 24


def documents(subject: Any, count: int = 12, length: int = 70) -> list[Read]:
    """Texts that the model itself would write, so that ablation costs it something."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((count, 1), subject.sink)
    for _ in range(length):
        logits = subject.run(rows, logits=True).logits[:, -1].clone()
        logits[:, subject.sink] = -torch.inf
        rows = torch.cat([rows, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
    return [Read(SimpleNamespace(id=str(n)), "score", n, row[1:]) for n, row in enumerate(rows.tolist())]


def dictionary(kept: int, hook: str = "blocks.0.hook_resid_post", bias: float = 0.0, d: int = D) -> Any:
    """Features ±e_i for the first `kept` dimensions: they rebuild these exactly, and nothing else."""
    eye = torch.eye(d, dtype=torch.float64)[:kept]
    both = torch.cat([eye, -eye])
    config = {"architecture": "standard", "d_in": d, "d_sae": len(both), "dtype": "float64",
              "apply_b_dec_to_input": False, "metadata": {"hook_name": hook}}  # fmt: skip
    tensors = {"W_enc": both.T.contiguous(), "W_dec": both, "b_enc": torch.zeros(len(both)).double(),
               "b_dec": torch.full((d,), bias).double()}  # fmt: skip
    return make_coder("mine", config, tensors)


def judged(subject: Any, coder: Any, texts: list[Read] | None = None) -> dict[str, Any]:
    own = Subject.wrap(subject.model, subject.tokenizer, "own")
    return sae_eval(own, own.attach(coder), texts or documents(subject))


def values(found: dict[str, Any]) -> dict[str, Any]:
    return {row["metric"]: row["value"] for row in found["rows"]}


@pytest.mark.parametrize("hook", ["hook_resid_post", "attn.hook_z", "hook_attn_out", "hook_mlp_out"])
def test_a_dictionary_that_rebuilds_everything_scores_one(tiny: Any, hook: str) -> None:
    found = judged(tiny, dictionary(D, f"blocks.0.{hook}"))
    known = values(found)
    assert known["mse"] < 1e-20 and known["l0"] == pytest.approx(D)
    ones = [k for k in known if k.startswith(("fve", "ce_rec", "kl_rec", "shrink")) and known[k] is not None]
    assert len(ones) >= 6 and [known[k] for k in ones] == pytest.approx([1.0] * len(ones), abs=1e-6)
    assert found["dead"] == 0 and found["tokens"] == 12 * 70 and found["features"] == 2 * D


def test_half_a_dictionary_is_worth_what_by_hand_it_leaves(llama: Any) -> None:
    """FVE against numpy on the plain model's streams; about zero and not the mean, as once in SAELens, it is more."""
    texts = documents(llama)
    found = values(judged(llama, dictionary(D // 2), texts))
    streams = []
    for read in texts:
        for window in read.windows:
            done = llama.run([[llama.sink, *window]], read=["0-resid"])
            streams.append(done.readings["0-resid"][0, 1:].numpy())
    y = np.concatenate(streams) + np.zeros(1)
    left = y.copy()
    left[:, : D // 2] = 0
    spread = np.square(y - y.mean(axis=0)).sum()
    assert found["fve"] == pytest.approx(1 - np.square(left).sum() / spread)
    assert found["mse"] == pytest.approx(np.square(left).sum(axis=1).mean())
    each = np.square(left).sum(axis=1) / np.square(y - y.mean(axis=0)).sum(axis=1)
    assert found["fve_by_token"] == pytest.approx(1 - each.mean())
    naive = 1 - np.square(left).sum() / np.square(y).sum()
    assert naive > found["fve"] + 0.01


def test_losses_are_those_of_a_plain_pass(tiny: Any) -> None:
    """Brute force: the stream is set by a hook of its own, and the library's logits are used."""
    texts, coder = documents(tiny, 9, 40), dictionary(D // 2)
    found = values(judged(tiny, coder, texts))
    sums: dict[str, list[float]] = {"clean": [], "sae": [], "zero": []}
    for read in texts:
        row = torch.tensor([[tiny.sink, *read.ids]])
        for name, total in sums.items():
            total += plain_losses(tiny, row, name)
    means = {name: float(np.mean(total)) for name, total in sums.items()}
    assert found["ce_clean"] == pytest.approx(means["clean"]) and found["ce_sae"] == pytest.approx(means["sae"])
    share = (means["zero"] - means["sae"]) / (means["zero"] - means["clean"])
    assert found["ce_recovered_zero"] == pytest.approx(share)


def plain_losses(subject: Any, row: Tensor, name: str) -> list[float]:
    def change(value: Tensor) -> Tensor:
        value = value.clone()
        if name == "zero":
            value[:, 1:] = 0
        if name == "sae":
            value[:, 1:, D // 2 :] = 0
        return value

    handle = subject.adapter.hook(0, "resid", change)
    with torch.inference_mode():
        p = subject.model(input_ids=row).logits[0, 1:-1].log_softmax(-1)
    handle.remove()
    return (-p.gather(1, row[0, 2:, None])[:, 0]).tolist()


def test_an_empty_dictionary_is_worse_than_none_and_is_not_clipped(llama: Any) -> None:
    coder = dictionary(1, bias=9.0)
    coder.tensors["W_dec"].zero_()
    found = values(judged(llama, coder))
    assert found["fve"] < 0
    assert found["ce_recovered_mean"] < 0 and found["kl_recovered_mean"] < 0


def test_loud_tokens_do_not_decide_the_typical_one(llama: Any) -> None:
    """One token's stream is made 100 times as long and rebuilt exactly: it carries the variance and looks well."""
    model = copy.deepcopy(llama.model)
    model.model.embed_tokens.weight.data[7] = 0
    model.model.embed_tokens.weight.data[7, 0] = 3000.0
    texts = documents(llama)
    texts = [replace(t, ids=[7 if n % 29 == 3 else max(8, i) for n, i in enumerate(t.ids)]) for t in texts]
    own = Subject.wrap(model, llama.tokenizer, "own")
    found = values(sae_eval(own, own.attach(dictionary(D // 4)), texts))
    assert found["fve"] > 0.9 and found["fve_typical"] < 0.6


def test_a_transcoder_is_judged_by_what_the_mlp_writes(llama: Any) -> None:
    """One that writes the MLP's mean explains none of the variance, and recovers nothing over mean ablation."""
    texts = documents(llama)
    outs = []
    handle = llama.adapter.hook(0, "mlp_out", lambda value: outs.append(value[0, 1:]) or value)
    for read in texts:
        for window in read.windows:
            llama.run([[llama.sink, *window]], logits=True)
    handle.remove()
    mean = torch.cat(outs).mean(dim=0)
    config = {"architecture": "transcoder", "d_in": D, "d_out": D, "d_sae": 3, "dtype": "float64", "metadata": {
        "hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}}  # fmt: skip
    tensors = {"W_enc": torch.zeros(D, 3), "W_dec": torch.zeros(3, D), "b_enc": torch.zeros(3), "b_dec": mean.clone()}
    found = values(judged(llama, make_coder("mine", config, tensors), texts))
    assert found["fve"] == pytest.approx(0, abs=1e-6) and found["l0"] == 0
    assert found["kl_recovered_mean"] == pytest.approx(0, abs=1e-6)


def test_dead_and_dense_features_are_counted(llama: Any) -> None:
    coder = dictionary(D)
    coder.tensors["b_enc"][:5] = -1e6      # never on
    coder.tensors["b_enc"][5:9] = 1e6      # always on
    found = judged(llama, coder)
    assert found["dead"] == pytest.approx(5 / (2 * D)) and found["dense"] >= 4 / (2 * D)


def test_what_costs_nothing_to_ablate_recovers_nothing_that_could_be_told(llama: Any) -> None:
    model = copy.deepcopy(llama.model)
    model.lm_head.weight.data.zero_()
    own = Subject.wrap(model, llama.tokenizer, "own")
    found = values(sae_eval(own, own.attach(dictionary(3)), documents(llama)))
    assert found["ce_recovered_zero"] is None and found["kl_recovered_mean"] is None
    assert found["fve"] is not None


def test_no_text_is_refused(llama: Any) -> None:
    own = Subject.wrap(llama.model, llama.tokenizer, "own")
    with pytest.raises(Refused, match="there is no text"):
        sae_eval(own, own.attach(dictionary(3)), [])


def test_lower_precision_judges_alike(tiny: Any, lowered: Any) -> None:
    texts = documents(tiny)
    exact, lower = (values(judged(subject, dictionary(D // 2), texts)) for subject in (tiny, lowered(tiny)))
    assert exact.keys() == lower.keys()
    for name in ("fve", "fve_typical", "l0", "ce_recovered_mean", "kl_recovered_mean"):
        assert lower[name] == pytest.approx(exact[name], rel=lowered.near, abs=lowered.near), name


# A planted dictionary: 40 atoms of length 1 in 20 dimensions, each on at one token in twenty, and a bias

ATOMS, WIDTH, SHARE = 40, 20, 0.05


@dataclass(frozen=True, eq=False)
class Oracle(Coder):
    """Knows of each token the stream [V, d] and the codes [V, m] that this was made of."""

    streams: Tensor | None = None
    codes: Tensor | None = None

    def encode(self, x: Tensor) -> Tensor:
        assert self.streams is not None and self.codes is not None
        return self.codes[torch.cdist(x, self.streams.expand(*x.shape[:-2], -1, -1)).argmin(dim=-1)]


@pytest.fixture(scope="module")
def planted(llama: Any) -> Any:
    """A GPT-2 whose stream behind block 0 is, by token, codes @ atoms + bias, and texts that it would write."""
    from transformers import GPT2Config, GPT2LMHeadModel

    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(ATOMS, WIDTH, generator=generator, dtype=torch.float64)
    atoms /= atoms.norm(dim=1, keepdim=True)
    sizes, draws = torch.rand(2, 320, ATOMS, generator=generator, dtype=torch.float64)
    codes, bias = (0.5 + sizes) * (draws < SHARE), 0.3 * torch.randn(WIDTH, generator=generator).double()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=128, n_embd=WIDTH, n_layer=2, n_head=4, n_inner=40, bos_token_id=0,
                        eos_token_id=0, initializer_range=0.5, tie_word_embeddings=False)  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    streams = codes @ atoms + bias
    model.transformer.wte.weight.data = streams.clone()
    mute = model.transformer.h[0]
    for weight in (model.transformer.wpe.weight, mute.attn.c_proj.weight, mute.mlp.c_proj.weight):
        weight.data.zero_()
    subject = Subject.wrap(model, llama.tokenizer, "planted")
    return SimpleNamespace(
        subject=subject, texts=documents(subject, 12, 60), atoms=atoms, codes=codes, bias=bias, streams=streams
    )


def holding(planted: Any, kept: int) -> Oracle:
    """The dictionary of the first `kept` atoms and the bias, with the codes that were planted."""
    config = {"architecture": "standard", "d_in": WIDTH, "d_sae": ATOMS, "dtype": "float64",
              "metadata": {"hook_name": "blocks.0.hook_resid_post"}}  # fmt: skip
    tensors = {"W_enc": planted.atoms.T.contiguous(), "W_dec": planted.atoms, "b_enc": torch.zeros(ATOMS),
               "b_dec": planted.bias}  # fmt: skip
    made = make_coder("mine", config, tensors)
    return Oracle(**vars(made), streams=planted.streams, codes=planted.codes * (torch.arange(ATOMS) < kept))


def put_in(planted: Any, table: Tensor) -> float:
    """CE of the library's own logits with `table` [V, d] of each token in the stream's place, the sink's left."""
    found: list[float] = []
    for read in planted.texts:
        row = torch.tensor([[planted.subject.sink, *read.ids]])
        value = torch.cat([planted.streams[row[:, :1]], table[row[:, 1:]]], dim=1)
        handle = planted.subject.model.transformer.h[0].register_forward_hook(lambda *_, value=value: value)
        with torch.inference_mode():
            p = planted.subject.model(input_ids=row).logits[0, 1:-1].log_softmax(-1)
        handle.remove()
        found += (-p.gather(1, row[0, 2:, None])[:, 0]).tolist()
    return float(np.mean(found))


def test_all_planted_atoms_recover_everything(planted: Any) -> None:
    known = values(judged(planted.subject, holding(planted, ATOMS), planted.texts))
    for metric in ("fve", "fve_typical", "fve_by_token", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_mean"):
        assert known[metric] == pytest.approx(1, abs=1e-9), metric
    on = [(planted.codes[list(read.ids)] > 0).sum(dim=1).double() for read in planted.texts]
    assert known["mse"] < 1e-20 and known["l0"] == pytest.approx(float(torch.cat(on).mean()))


@pytest.mark.parametrize("kept", [ATOMS // 2, 0])
def test_part_of_the_planted_atoms_is_worth_what_it_is_by_hand(planted: Any, kept: int) -> None:
    """From the planted codes and the library's logits alone. With none of them the bias is still written."""
    known = values(judged(planted.subject, holding(planted, kept), planted.texts))
    ids = np.concatenate([read.ids for read in planted.texts])
    streams = planted.streams
    rebuilt = planted.codes[:, :kept] @ planted.atoms[:kept] + planted.bias
    y, left = streams[ids].numpy(), (streams - rebuilt)[ids].numpy()
    lost, mean = np.square(left).sum(), y.mean(axis=0)
    assert known["fve"] == pytest.approx(1 - lost / np.square(y - mean).sum(), abs=1e-9)
    naive = 1 - lost / np.square(y).sum()          # as SAELens once had it: the mean's own square counts as explained
    assert naive > known["fve"] + 0.05
    tables = {"clean": streams, "sae": rebuilt, "zero": torch.zeros_like(streams)}
    tables["mean"] = torch.from_numpy(mean).expand_as(streams)
    ce = {name: put_in(planted, table) for name, table in tables.items()}
    for name in ("zero", "mean"):
        share = (ce[name] - ce["sae"]) / (ce[name] - ce["clean"])
        assert ce[name] > ce["clean"] and known[f"ce_recovered_{name}"] == pytest.approx(share, abs=1e-9)
    if kept:
        assert 0 < known["fve"] < 1 and 0 < known["ce_recovered_mean"] < 1
    else:
        assert known["l0"] == 0 and known["fve"] < 0
        assert known["ce_recovered_mean"] < 0 and known["kl_recovered_mean"] < 0
