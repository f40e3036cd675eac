"""Mutants of the security code: each takes one check away or weakens it, and the suite must notice every one.

``python -m tests.mutants`` tries them. The tables are our own rather than a tool's: what a tool makes of every operator
is mostly noise, while these are the mistakes that a change could really bring in, each with its meaning in words.
"""
