"""This package with limits raised for records of 256 MiB."""

from functools import partial

from benchmarks.systems import ours

LARGEST = 256 * 2**20

_settings = ours.config(LARGEST)
receive = partial(ours.receive, settings=_settings)
flood = partial(ours.flood, settings=_settings)
