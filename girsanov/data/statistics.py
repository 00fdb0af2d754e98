"""Numbers of a data set, gathered row by row: how many, of what, how long, and what the labels lean towards."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from girsanov.data.records import Item, Preference


@dataclass
class Moments:
    """Count, mean and range of numbers, without keeping them."""

    n: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, x: float) -> None:
        """One more."""
        self.n, self.total = self.n + 1, self.total + x
        self.low, self.high = min(self.low, x), max(self.high, x)

    def data(self) -> dict[str, float]:
        """n, mean, min and max."""
        return {"n": self.n, "mean": self.total / self.n, "min": self.low, "max": self.high}


@dataclass
class Statistics:
    """What was counted so far; ``add`` every row, then ``data()``."""

    rows: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    items: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    prompts: set[int] = field(default_factory=set)
    pairs: int = 0
    ties: int = 0
    longer: int = 0
    compared: int = 0
    agree: int = 0
    scored: int = 0
    labels: Counter[bool] = field(default_factory=Counter)
    lengths: dict[str, Moments] = field(default_factory=dict)
    scores: dict[str, Moments] = field(default_factory=dict)
    wins: Counter[str] = field(default_factory=Counter)
    played: Counter[str] = field(default_factory=Counter)

    def add(self, p: Preference) -> None:
        """One more row."""
        self.rows += 1
        self.splits[p.split] += 1
        self.sources[p.source or "not said"] += 1
        self.items[len(p.items)] += 1
        self.prompts.add(hash(p.text))
        self._number("prompt", len(p.text), self.lengths)
        for item in p.items:
            self.kinds["pictures" if item.image is not None else "texts"] += 1
            if item.label is not None:
                self.labels[item.label] += 1
            named = dict(item.scores) | ({} if item.score is None else {"score": item.score})
            for name, value in named.items():
                self._number(name, value, self.scores)
        pairs = p.pairs()
        n = len(p.items)
        self.pairs += len(pairs)
        self.ties += n * (n - 1) // 2 - len(pairs) if p.ranked else 0
        for a, b in pairs:
            self._pair(a, b)

    def _number(self, name: str, value: float, group: dict[str, Moments]) -> None:
        group.setdefault(name, Moments()).add(value)

    def _pair(self, a: Item, b: Item) -> None:
        if a.text is not None and b.text is not None:
            self._number("chosen", len(a.text), self.lengths)
            self._number("rejected", len(b.text), self.lengths)
            self.compared += len(a.text) != len(b.text)
            self.longer += len(a.text) > len(b.text)
        if a.rank is not None and a.score is not None and b.score is not None and a.score != b.score:
            self.scored += 1
            self.agree += a.score > b.score
        if a.model and b.model:
            self.wins[a.model] += 1
            self.played.update([a.model, b.model])

    def data(self) -> dict[str, Any]:
        """Everything as plain data; shares are left out where nothing was compared."""
        found: dict[str, Any] = {
            "rows": self.rows,
            "prompts": len(self.prompts),
            "pairs": self.pairs,
            "ties": self.ties,
            "splits": dict(self.splits),
            "sources": dict(self.sources),
            "items of a row": {str(k): v for k, v in sorted(self.items.items())},
            "kinds": dict(self.kinds),
            "characters": {k: m.data() for k, m in self.lengths.items()},
            "scores": {k: m.data() for k, m in self.scores.items()},
        }
        if self.compared:
            found["winner is longer"] = self.longer / self.compared
        if self.scored:
            found["labels agree with scores"] = self.agree / self.scored
        if self.labels:
            found["labelled good"] = self.labels[True] / self.labels.total()
        if self.played:
            found["win share by model"] = {m: self.wins[m] / n for m, n in self.played.most_common()}
        return found
