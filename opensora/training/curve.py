"""The loss curve of a training run: a CSV that grows, and a picture of it."""
from __future__ import annotations

import csv
from pathlib import Path


class LossCurve:
    """Appends rows to `loss.csv`; rows after `step` (a run stopped after its checkpoint) are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.file = folder / "loss.csv"
        kept = [r for r in self.rows() if int(r["step"]) <= step]
        self._write(kept)

    def rows(self) -> list[dict[str, str]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="") as f:
            return list(csv.DictReader(f))

    def add(self, row: dict[str, float]) -> None:
        new = {k: f"{v:.6g}" for k, v in row.items()}
        rows = self.rows()
        if rows and set(rows[0]) == set(new):
            with self.file.open("a", newline="") as f:
                csv.DictWriter(f, rows[0].keys()).writerow(new)
        else:  # first row, or a stage with other columns
            self._write([*rows, new])

    def _write(self, rows: list[dict[str, str]]) -> None:
        columns = list(dict.fromkeys(k for r in rows for k in r))
        if columns:
            with self.file.open("w", newline="") as f:
                writer = csv.DictWriter(f, columns, restval="nan")
                writer.writeheader()
                writer.writerows(rows)

    def plot(self) -> Path:
        from matplotlib.figure import Figure  # here: training without a picture needs no matplotlib

        rows = self.rows()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in [c for c in (rows[0] if rows else {}) if c.endswith("loss")]:
            axes.plot([int(r["step"]) for r in rows], [float(r[name]) for r in rows], lw=0.8, label=name)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(self.file.with_suffix(".png"), dpi=120)
        return self.file.with_suffix(".png")
