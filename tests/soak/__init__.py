"""Soak scenarios: long runs over real processes that prove, from what both sides wrote down, what the design promises.

``python -m tests.soak --help`` lists them. Each is a function ``run(report, *, …)`` in a module of its own whose
parameters are its options; :mod:`tests.test_soak` calls the same functions with small numbers.
"""
