"""`python -m tests.bench [NAME …]`: run the benches, print one table, write JSON into bench-results/.

A missed target is told, not punished: the exit status is 1 only when a bench could not be run.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench import bed, builds, environments, forwards, images, logins, menus, relays, uploads
from tests.bench.measure import Comparison, Figure, Result

BENCHES: dict[str, Callable[[bed.Bed], Iterator[Result]]] = {
    "logins": logins.results,
    "forwards": forwards.results,
    "relays": relays.results,
    "uploads": uploads.results,
    "menus": menus.results,
    "environments": environments.results,
    "images": images.results,
    "builds": builds.results,
}


def main(names: Sequence[str]) -> int:
    unknown = set(names) - set(BENCHES)
    if unknown:
        print(f"there is no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    results: list[Result] = []
    before = os.getloadavg()
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ashore-bench-") as directory, bed.made(Path(directory)) as made:
        for name in names or BENCHES:
            print(f"… {name}", file=sys.stderr)
            try:
                results += BENCHES[name](made)
            except Exception:  # one broken bench must not hide what the others found
                traceback.print_exc()
                broken.append(name)
    after = os.getloadavg()
    print(table(results))
    print(f"load of this machine before and after: {before[0]:.1f}, {after[0]:.1f}; cores: {os.cpu_count()}")
    print(f"written: {write(results, broken, [before, after])}")
    if broken:
        print(f"could not be run: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def table(results: Sequence[Result]) -> str:
    head = f"{'Ashore':>9}{'other':>9} {'':6}{'ratio':>6}  {'(single rounds)':15}{'target':>7}"
    lines = [f"{'':42}{head}"]
    for result in results:
        if isinstance(result, Figure):
            wanted = "" if result.most is None else f"   ≤ {result.most:g} {_passed(result.value <= result.most)}"
            lines.append(f"{result.name:42}{result.value:9.1f}{'':9} {result.unit}{wanted}")
            continue
        low, high = result.spread
        target = f"{'≥' if result.at_least else '≤'} {result.target:.1f}"
        lines.append(
            f"{result.name:42}{result.ours:9.1f}{result.theirs:9.1f} {result.unit:6}{result.ratio:6.2f}"
            f"  {f'({low:.2f} … {high:.2f})':15}{target:>7}  {_verdict(result)}  {result.other}"
        )
    return "\n".join(lines)


def _verdict(result: Comparison) -> str:
    """With a question mark where the single rounds do not agree on it."""
    agreed = len({ratio >= result.target for ratio in result.spread}) == 1
    return _passed(result.passed) + (" " if agreed else "?")


def _passed(passed: bool) -> str:
    return "pass" if passed else "MISS"


def write(results: Sequence[Result], broken: Sequence[str], load: Sequence[tuple[float, float, float]]) -> Path:
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cores": os.cpu_count(),
        "load_before_and_after": load, "machine": platform.machine(), "kernel": platform.release(),
        "python": platform.python_version(), "broken": list(broken), "results": [_row(result) for result in results],
    }  # fmt: skip
    path = Path("bench-results") / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return path


def _row(result: Result) -> dict[str, object]:
    row = asdict(result)
    if isinstance(result, Comparison):
        row["pairs"] = result.pairs.rounds
        row |= {"ours": result.ours, "theirs": result.theirs, "ratio": result.ratio, "passed": result.passed}
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
