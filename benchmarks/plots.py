"""Plots as SVG files beside the report. Without Matplotlib, which is optional, none are drawn."""

from pathlib import Path

from .result import Curve, Result


def name_of(result: Result, curve: Curve) -> str:
    """Return the path of a curve's file, relative to the report."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in curve.title.lower())
    return f"plots/{result.name}-{letters.strip('-')[:40]}.svg"


def draw(result: Result, folder: Path) -> None:
    """Draw the curves of a result."""
    if not result.curves:
        return
    try:
        import matplotlib as mpl  # optional
    except ImportError:
        return
    mpl.use("svg")
    # The same picture is the same file: it has no date and no random ids.
    mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 9})
    (folder / "plots").mkdir(exist_ok=True)
    for curve in result.curves:
        _draw(curve, folder / name_of(result, curve))


def _draw(curve: Curve, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for label, points in curve.lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=label)
    if curve.logarithmic:
        axes.set_xscale("log")
    axes.set(xlabel=curve.x, ylabel=curve.y, title=curve.title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(curve.lines) > 1:
        axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
