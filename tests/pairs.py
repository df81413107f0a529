"""A table in which every pair of values of two options, that can stand together, stands in a row, on a
layout where both do something. Every value on every layout is `options.singles`.

python tests/pairs.py    writes pairs.csv anew, after options.py has changed
"""

import csv
import itertools
from collections import Counter
from pathlib import Path

TABLE = Path(__file__).with_name("pairs.csv")


def values(options, layouts) -> dict[str, list[str]]:
    """Every option, the layout among them, and its values."""
    return {"layout": list(layouts)} | {option: list(of) for option, of in options.items()}


def pairs_of(row: dict[str, str]) -> set:
    """The pairs of (option, value) in a row; the layout is no option."""
    return set(itertools.combinations([of for of in row.items() if of[0] != "layout"], 2))


def possible_rows(domain: dict[str, list[str]], works) -> list[dict[str, str]]:
    """Every combination that works."""
    rows = (dict(zip(domain, row, strict=True)) for row in itertools.product(*domain.values()))
    return [row for row in rows if works(row)]


def covering(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Few of the rows that hold all their pairs: again and again the one with most new pairs, of these
    one on the layout that has fewest rows."""
    missing, chosen, taken = set().union(*map(pairs_of, rows)), [], Counter()
    while missing:
        best = max(rows, key=lambda row: (len(pairs_of(row) & missing), -taken[row["layout"]]))
        missing -= pairs_of(best)
        taken[best["layout"]] += 1
        chosen.append(best)
    return chosen


def read_table() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    from options import LAYOUTS, OPTIONS, works

    domain = values(OPTIONS, LAYOUTS)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, domain, lineterminator="\n")
        writer.writeheader()
        writer.writerows(covering(possible_rows(domain, works)))
