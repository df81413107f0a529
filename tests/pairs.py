"""A table in which every pair of values of two options, that can stand together, stands in a row.

python tests/pairs.py    writes pairs.csv anew, after options.py has changed
"""

import csv
import itertools
from pathlib import Path

TABLE = Path(__file__).with_name("pairs.csv")


def values(options, layouts) -> dict[str, list[str]]:
    """Every option, the layout among them, and its values."""
    return {"layout": list(layouts)} | {option: list(of) for option, of in options.items()}


def pairs_of(row: dict[str, str]) -> set:
    """The pairs of (option, value) in a row."""
    return set(itertools.combinations(row.items(), 2))


def possible_rows(domain: dict[str, list[str]], works) -> list[dict[str, str]]:
    """Every combination that works."""
    rows = (dict(zip(domain, row, strict=True)) for row in itertools.product(*domain.values()))
    return [row for row in rows if works(row)]


def covering(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Few of the rows that hold all their pairs: again and again the one with most new pairs."""
    missing, chosen = set().union(*map(pairs_of, rows)), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs_of(row) & missing)))
        missing -= pairs_of(chosen[-1])
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
