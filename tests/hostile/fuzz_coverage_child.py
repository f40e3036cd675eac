"""One target under atheris: ``python -m tests.hostile.fuzz_coverage_child TARGET [OPTION OF LIBFUZZER ...]``.

A module of its own, since what is to guide the fuzzer must be imported within ``instrument_imports``. The reference
and its decoder are among that: they are plain Python, where the package leaves MessagePack to C, which shows nothing.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ipc_twisted", "tests"]):
    from tests.hostile.fuzz_targets import TARGETS


def main(name: str, *options: str) -> None:
    """Does not return."""
    target = TARGETS[name]()

    def change(data: bytes, longest: int, seed: int) -> bytes:
        changed = target.change(data, seed) if seed % 2 else data
        return changed if changed != data and len(changed) <= longest else bytes(atheris.Mutate(data, longest))

    atheris.Setup([name, *options], target, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
