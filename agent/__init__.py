"""Decides: the planner, the investigation graph, budgets, the overnight loop and the command line."""
