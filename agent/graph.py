"""The order of an investigation, as a LangGraph graph. No checkpointer: a killed unit restarts and replays from caches.

A second abstention after a first draft (in a revision) still scores that draft: what was submitted stands.
"""

import os

os.environ.setdefault("LANGSMITH_TRACING", "false")   # langsmith comes with langgraph; nothing leaves this machine

from langgraph.graph import END, START, StateGraph  # noqa: E402

from ..store.records import Record  # noqa: E402
from ..tools.units import UnitId  # noqa: E402
from .nodes import Investigator, after_plan, after_submit  # noqa: E402
from .state import State  # noqa: E402


def investigate(unit: UnitId, by: Investigator) -> list[Record]:
    """Runs one unit to its end and returns what is to be remembered. Raises what a step raised."""
    graph = StateGraph(State)
    for name in ("observe", "plan", "act", "submit", "revise", "score", "explain_output", "decide", "record"):
        graph.add_node(name, getattr(by, name))
    graph.add_edge(START, "observe")
    graph.add_edge("observe", "plan")
    graph.add_conditional_edges("plan", _after_plan, ["act", "submit", "score", "explain_output"])
    graph.add_edge("act", "plan")
    graph.add_conditional_edges("submit", lambda state: after_submit(state, by.budget.revisions), ["revise", "score"])
    graph.add_edge("revise", "plan")
    graph.add_edge("score", "explain_output")
    graph.add_edge("explain_output", "decide")
    graph.add_edge("decide", "record")
    graph.add_edge("record", END)
    limit = 4 * (by.budget.steps + by.budget.revisions) + 20
    final = graph.compile().invoke({"unit": unit}, config={"recursion_limit": limit})
    records: list[Record] = final["records"]
    return records


def _after_plan(state: State) -> str:
    chosen = after_plan(state)
    return "score" if chosen == "explain_output" and state.get("drafts") else chosen
