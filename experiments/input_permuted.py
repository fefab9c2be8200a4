"""The floor of floors: a model whose weights mean nothing goes through the same pipeline. What of it is accepted?"""

from collections import Counter
from functools import cache
from pathlib import Path

import torch

from ..agent import verdict
from ..agent.config import MASKED_LM
from ..store.records import Score
from ..tools.floors import MakeRule, floor_rules
from ..tools.induce import induce
from ..tools.masked import MaskedLM
from ..tools.rules import Rule
from ..tools.score_input import score_input
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.units import UnitId
from .by_planner import playbook_rule
from .by_unit import by_unit
from .input_real import MODEL, real_units
from .report import Part, Progress, at_most


def permuted(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Verdicts on as many units, drawn the same way as in `real`, of the model with permuted weights."""
    subject, masked = permuted_subject(Subject.load(MODEL), seed), MaskedLM.load(MASKED_LM)
    sweep, units = real_units(subject, folder, seed, size, progress)

    @cache
    def other(unit: UnitId) -> Rule | None:
        return induce(subject, sweep, unit, reads=0).rule

    def end(unit: UnitId) -> tuple[str, list[Score]]:
        rule = playbook_rule(subject, sweep, masked, unit)
        return ("abstained", []) if rule is None else ("submitted", _scores(subject, sweep, unit, rule, other))

    file = folder / "units" / "permuted"
    ended = by_unit(end, tuple[str, list[Score]], sweep, units, file, progress)
    decided = [what for what, _, _ in verdict.conclude(ended)]
    counts = Counter(decided)
    rows = [{"verdict": what, "units": n} for what, n in counts.most_common()]
    claims = [at_most("units of the permuted model accepted", counts["accepted"] / len(units), 0.05, len(units))]
    return {"permuted": rows}, claims


def permuted_subject(subject: Subject, seed: int) -> Subject:
    """The model with the entries of each weight matrix in another order; norms, biases and the tokenizer stay.

    Changes the model that `subject` holds. Each matrix keeps its entries' distribution, and so the scale of what it
    gives, and loses all else.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for parameter in subject.model.parameters():
            if parameter.dim() > 1 and parameter.data_ptr() not in done:      # tied ones once
                done.add(parameter.data_ptr())
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return Subject.wrap(subject.model, subject.tokenizer, f"{subject.name}-permuted")


def _scores(subject: Subject, sweep: Sweep, unit: UnitId, rule: Rule, other: MakeRule) -> list[Score]:
    floors = floor_rules(subject, sweep, unit, other)
    return score_input(subject, sweep, unit, rule, hypothesis=str(unit), claim=lambda _: True, floor_rules=floors)


__all__ = ["permuted", "permuted_subject"]
