"""Suites about a node: rendering, planning, applying, the balancer and the agent."""
