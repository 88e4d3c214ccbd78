"""Operators for other frameworks; each module needs its framework, and uses nothing of trtseg but its public names."""
