"""``python -m tests.model``: search with another bound, or another design."""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.design import NEEDED, REAL, SPARE
from tests.model.rules import Rules
from tests.model.search import search
from tests.model.setting import Setting
from tests.model.trace import trace

DESIGNS = {"real": (), **NEEDED, **SPARE}


def main(arguments: list[str]) -> int:
    """Print what was searched and found; 1 if there is an attack."""
    own = Setting()
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Search the handshake for attacks.")
    parser.add_argument(
        "--sessions", type=int, nargs=2, default=(own.clients, own.servers), metavar=("CLIENTS", "SERVERS")
    )
    parser.add_argument("--ports", type=int, default=own.ports)
    parser.add_argument("--services", type=int, default=own.services)
    parser.add_argument("--records", type=int, default=own.records, help="that each completed end sends")
    parser.add_argument("--design", choices=DESIGNS, default="real", help="the real one, or what is weakened in it")
    parser.add_argument("--first", action="store_true", help="stop at the first attack")
    chosen = parser.parse_args(arguments)
    clients, servers = chosen.sessions
    setting = Setting(clients, servers, chosen.ports, chosen.services, chosen.records)
    design = REAL.without(*DESIGNS[chosen.design])
    began = time.perf_counter()
    report = search(design, setting, until=lambda _: chosen.first)
    seconds = time.perf_counter() - began
    print(f"design: {chosen.design}; {', '.join(f'{key} {value}' for key, value in setting._asdict().items())}")
    print(f"{report.states} states, {report.completed} with a completed end, {seconds:.1f} s")
    for state in dict.fromkeys(report.attacks.values()):
        print(*[f"\n{attack}" for attack, shown_by in report.attacks.items() if shown_by == state], sep="")
        for step in trace(Rules(design, setting), state):
            print(f"  {step.text}")
    print("no attack" if not report.attacks else f"\n{len(report.attacks)} kinds of attack")
    return 1 if report.attacks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
