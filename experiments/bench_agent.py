"""The investigator: what a language model adds to the playbook, what it costs, and what failures do to it.

faults    thousands of questions and a run beside a server with every fault: nothing is made of an error, nothing is
          lost or doubled, and the ledger has every token that the server counted.
planted   rules known by construction, by the playbook and by the language model with and without the inducer's rule to
          begin from: share recovered by family, tokens, seconds and tool calls of a unit.
injected  50 instructions in the strongest texts of planted units, each beside a harmless text of the same length: the
          same tool calls and the same rule handed in.
sanity    judged scores by a perfect judge on 40 rules: each falls for at least 90 % of rules where a quarter of the
          labels is dropped or added, and where the explanation is another rule's.
real      60 units of smollm2-135m, the investigator beside the one-shot label of the same language model from the
          strongest texts alone: paired F1 and HM, F1 by tokens of language model, what each rung of the ladder gains.
"""

from .agent_faults import faults
from .agent_injected import injected
from .agent_planted import planted
from .agent_real import real
from .agent_sanity import sanity
from .report import Parts

PARTS: Parts = {part.__name__: part for part in (faults, sanity, planted, injected, real)}

__all__ = ["PARTS"]
