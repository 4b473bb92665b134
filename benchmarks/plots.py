"""Draws the results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# Equal results give equal files.
mpl.rcParams["svg.hashsalt"] = "usersvc"

from matplotlib import pyplot as plt  # noqa: E402  # the backend has to be chosen first


def draw(document: Mapping[str, Any], stem: Path) -> None:
    """Write one file with a panel for each measurement of several servers.

    Args:
        document: the results as they are written.
        stem: the path of the file without its suffix.
    """
    by_what: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for figure in document["figures"]:
        by_what.setdefault((figure["what"], figure["unit"]), []).append(figure)
    compared = {what: figures for what, figures in by_what.items() if len(figures) > 1}
    canvas, panels = plt.subplots(len(compared), 1, figsize=(8, 1.1 + 1.5 * len(compared)), layout="constrained")
    for panel, ((what, unit), figures) in zip(panels, compared.items(), strict=True):
        names = [figure["who"] for figure in figures]
        medians = [figure["median"] for figure in figures]
        below = [figure["median"] - min(figure["values"]) for figure in figures]
        above = [max(figure["values"]) - figure["median"] for figure in figures]
        bars = panel.barh(names, medians, xerr=[below, above], color="#4477aa", ecolor="#222222", capsize=3)
        panel.bar_label(bars, labels=[f" {median:,.2f}" if median < 100 else f" {median:,.0f}" for median in medians])
        panel.invert_yaxis()
        panel.set_title(f"{what} ({unit}; median, least and most)", fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.15)
    conditions = document["conditions"]
    canvas.suptitle(f"usersvc beside its peers, {conditions['date']}, {conditions['cores']} cores", fontsize=11)
    canvas.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    plt.close(canvas)
