"""The figures of the benchmarks. ``python -m benchmarks.figures`` draws them again from the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from graphs.draw.colours import line_style

__all__ = ["compact", "convergence", "mlp", "quality", "scale", "speed"]

# The colours of Okabe and Ito. A solver has the same colour in all figures.
COLOURS = {
    "power": "#000000",
    "gauss-seidel": "#D55E00",
    "aitken": "#999999",
    "quadratic": "#56B4E9",
    "gauss-seidel-quadratic": "#8C510A",
    "anderson": "#009E73",
    "gmres": "#0072B2",
    "bicgstab": "#CC79A7",
    "sweep": "#E69F00",
}
# One for each number of tokens in a pass.
TOKEN_COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.bbox": "tight",
}
# The scores of the multilayer perceptrons that are drawn; the table has all.
SCORES = {
    "random": "#999999",
    "norm (L1)": "#000000",
    "activation": "#56B4E9",
    "wanda-sp (L1)": "#009E73",
    "flap": "#CC79A7",
    "weighted PageRank": "#E69F00",
    "forward-backward PageRank, gamma 1": "#D55E00",
}
RESULTS = Path(__file__).parent / "results"


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    plt.close(figure)
    return path


def _shown(values: Iterable[float]) -> Any:
    """Return values for a logarithmic axis, with zeros moved to its lower end."""
    return np.maximum(np.asarray(list(values), dtype=float), 1e-17)


def convergence(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw all figures of the convergence benchmark."""
    with mpl.rc_context(STYLE):
        return [
            _solvers(results, folder / "convergence_solvers.png"),
            _axes_of_one(results, folder / "convergence_axes.png"),
            _shapes(results, folder / "convergence_shapes.png"),
            _ranks(results, folder / "convergence_ranks.png"),
            _exactness(results, folder / "convergence_layered.png"),
            _floors(results, folder / "convergence_float32.png"),
            _thinning(results, folder / "convergence_thinning.png"),
        ]


def _solvers(results: dict[str, Any], path: Path) -> Path:
    graphs = list(dict.fromkeys(row["graph"] for row in results["solvers"]))
    gammas = sorted({row["gamma"] for row in results["solvers"]})
    figure, grid = plt.subplots(
        len(graphs), len(gammas), figsize=(3.6 * len(gammas), 3.0 * len(graphs)), sharey=True, squeeze=False
    )
    for row in results["solvers"]:
        ax = grid[graphs.index(row["graph"])][gammas.index(row["gamma"])]
        colour = COLOURS[row["solver"]]
        ax.loglog(row["products"], _shown(row["error"]), "-o", ms=2.5, lw=1.2, color=colour, label=row["solver"])
        if row["solver"] in ("power", "gauss-seidel"):
            ax.loglog(row["products"], _shown(row["bound"]), ":", lw=1.0, color=colour)
    for i, graph in enumerate(graphs):
        for j, gamma in enumerate(gammas):
            grid[i][j].set(title=f"{graph} graph, $\\gamma$ = {gamma}", ylim=(1e-16, 5))
            grid[i][j].set_xlabel("block products" if i == len(graphs) - 1 else "")
            grid[i][j].xaxis.set_minor_formatter(NullFormatter())
        grid[i][0].set_ylabel("true L1 error")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), bbox_to_anchor=(0.5, -0.04))
    figure.suptitle("Solid: true error. Dotted: the proven bound that the solver reports.", fontsize=9)
    figure.tight_layout()
    return _save(figure, path)


def _axes_of_one(results: dict[str, Any], path: Path) -> Path:
    rows = [row for row in results["solvers"] if row["graph"] == "residual" and row["gamma"] == 0.85]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.1), sharey=True)
    for row in rows:
        colour = COLOURS[row["solver"]]
        across = (range(1, len(row["error"]) + 1), row["products"], [1e3 * s for s in row["seconds"]])
        for ax, x in zip(axes, across, strict=True):
            ax.semilogy(x, _shown(row["error"]), "-", lw=1.3, color=colour, label=row["solver"])
    for ax, label in zip(axes, ("steps", "block products", "milliseconds, setting up included"), strict=True):
        ax.set(xlabel=label, xscale="log", ylim=(1e-16, 5))
    axes[0].set_ylabel("true L1 error")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=7, bbox_to_anchor=(0.5, -0.08))
    figure.suptitle("The residual graph at $\\gamma$ = 0.85 against three measures of work", fontsize=9)
    figure.tight_layout()
    return _save(figure, path)


def _shapes(results: dict[str, Any], path: Path) -> Path:
    shapes = results["shapes"]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2))
    styles = {"residual": "-", "bidirectional": "--"}
    for ax, kind, key in ((axes[0], "depth", "ffns"), (axes[1], "density", "density")):
        for graph, style in styles.items():
            for solver in ("power", "gauss-seidel", "gmres"):
                rows = [r for r in shapes[kind] if r["graph"] == graph and r["solver"] == solver and r["products"]]
                values = [r["products"] for r in rows]
                ax.plot([r[key] for r in rows], values, style, marker="o", ms=3, color=COLOURS[solver])
        ax.set(xscale="log", yscale="log", ylabel="block products to 1e-10")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_xlabel("FFNs in the chain")
    axes[1].set_xlabel("density of the blocks (sparsified by weight share)")
    groups = [(weights, graph) for weights in ("real", "Gaussian", "shuffled") for graph in styles]
    for solver in ("power", "gauss-seidel", "gmres"):
        heights = [
            [r["products"] for r in shapes["controls"] if (r["weights"], r["graph"]) == group and r["solver"] == solver]
            for group in groups
        ]
        for x, values in enumerate(heights):
            axes[2].plot([x] * len(values), values, "o", ms=4, color=COLOURS[solver])
    axes[2].set_xticks(range(len(groups)), [f"{w}\n{g[:5]}." for w, g in groups], fontsize=7)
    axes[2].set(yscale="log", ylabel="block products to 1e-10", xlabel="weights, graph")
    marks = [Line2D([], [], color=COLOURS[s], marker="o", ms=3, label=s) for s in ("power", "gauss-seidel", "gmres")]
    marks += [Line2D([], [], color="grey", ls=style, label=graph) for graph, style in styles.items()]
    figure.legend(handles=marks, loc="lower center", ncols=5, bbox_to_anchor=(0.5, -0.07))
    figure.suptitle("Block products to a true L1 error of 1e-10 at $\\gamma$ = 0.85", fontsize=9)
    figure.tight_layout()
    return _save(figure, path)


def _ranks(results: dict[str, Any], path: Path) -> Path:
    rows = results["ranks"]
    columns = (len(rows) + 1) // 2
    figure, grid = plt.subplots(2, columns, figsize=(3.5 * columns, 5.2), squeeze=False, sharey=True)
    for row, ax in zip(rows, grid.T.ravel(), strict=False):
        steps = range(1, len(row["error"]) + 1)
        ax.semilogy(steps, _shown(1 - np.asarray(row["overlap"])), color="#0072B2", label="share of the set wrong")
        ax.semilogy(steps, _shown((1 - np.asarray(row["tau"])) / 2), color="#009E73", label="pairs out of order")
        ax.semilogy(steps, _shown(row["error"]), color="#000000", lw=1, label="true L1 error")
        ax.axvline(row["steps_until_set_is_final"], color="#0072B2", ls=":", lw=1.2, label="set final")
        if row["steps_until_certified"]:
            ax.axvline(row["steps_until_certified"], color="#D55E00", ls="--", lw=1.2, label="set certified")
        ax.set(title=f"{row['graph']}, {row['solver']}", ylim=(1e-14, 3), xlabel="steps")
    for ax in grid.T.ravel()[len(rows) :]:
        ax.set_visible(False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, bbox_to_anchor=(0.5, -0.05))
    figure.tight_layout()
    return _save(figure, path)


def _exactness(results: dict[str, Any], path: Path) -> Path:
    figure, ax = plt.subplots(figsize=(5.2, 3.2))
    for row, colour in zip(results["exactness"], ("#0072B2", "#D55E00", "#009E73"), strict=True):
        steps = range(1, len(row["error"]) + 1)
        ax.semilogy(steps, _shown(row["error"]), color=colour, label=f"$\\gamma$ = {row['gamma']}, true error")
        ax.semilogy(steps, _shown(np.minimum(row["bound"], 2.0)), ":", color=colour, label="bound")
    ax.axvline(results["exactness"][0]["blocks"], color="grey", lw=1)
    ax.set(
        xlabel="steps of power iteration",
        ylabel="L1 error, worst layer",
        ylim=(1e-17, 5),
        title=f"Layered rank, {results['exactness'][0]['blocks']} blocks: exact at the grey line;\none sweep does it in a step",
    )
    ax.legend(fontsize=7)
    figure.tight_layout()
    return _save(figure, path)


def _floors(results: dict[str, Any], path: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
    graphs = list(dict.fromkeys(row["graph"] for row in results["floors"]))
    for row in results["floors"]:
        ax = axes[graphs.index(row["graph"])]
        # float32 follows float64 until it stops. Its line is wide and pale, with a cross where it ends.
        wide = row["dtype"] == "float32"
        look = (
            {"lw": 5.0, "alpha": 0.35, "marker": "x", "markevery": [-1], "ms": 8, "zorder": 1} if wide else {"lw": 1.2}
        )
        label = f"{row['solver']}, {row['dtype']}"
        steps = range(1, len(row["error"]) + 1)
        ax.loglog(steps, _shown(row["error"]), color=COLOURS[row["solver"]], label=label, **look)
    for ax, graph in zip(axes, graphs, strict=True):
        ax.set(title=f"{graph} graph, $\\gamma$ = 0.85", xlabel="steps", ylim=(1e-16, 5))
    axes[0].set_ylabel("true L1 error")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=7, bbox_to_anchor=(0.5, -0.07)
    )
    figure.tight_layout()
    return _save(figure, path)


def _thinning(results: dict[str, Any], path: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for by, colour in (("weight_share", "#0072B2"), ("top_k", "#D55E00"), ("threshold", "#009E73")):
        rows = sorted((r for r in results["thinning"] if r["by"] == by), key=lambda r: r["kept"])
        kept = [100 * r["kept"] for r in rows]
        axes[0].loglog(kept, _shown(r["error"] for r in rows), "-o", ms=3, color=colour, label=f"{by}: true error")
        axes[0].loglog(kept, _shown(r["bound"] for r in rows), ":", color=colour, label="bound")
        axes[1].semilogx(kept, [100 * r["same_neurons_go"] for r in rows], "-o", ms=3, color=colour, label=by)
    axes[0].set(xlabel="edges kept, %", ylabel="L1 error, worst layer", ylim=(1e-5, 3))
    axes[1].set(xlabel="edges kept, %", ylabel="same removed neurons, %", ylim=(0, 102))
    axes[0].legend(fontsize=7)
    axes[1].legend(fontsize=7)
    figure.suptitle(
        "Sparsifying the graph: layered weighted rank, $\\gamma$ = 0.5, 30 % of the hidden neurons removed", fontsize=9
    )
    figure.tight_layout()
    return _save(figure, path)


def speed(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the time to the true error that each case shows, ours and the peers'."""
    with mpl.rc_context(STYLE):
        cases = results["cases"]
        columns = min(4, len(cases))
        rows_of_axes = -(-len(cases) // columns)
        figure, axes = plt.subplots(rows_of_axes, columns, figsize=(3.6 * columns, 3.7 * rows_of_axes), squeeze=False)
        for ax in axes.flat[len(cases) :]:
            ax.set_axis_off()
        for case, ax in zip(cases, axes.flat, strict=False):
            rows = [row for row in case["rows"] if row["target"] == case["shown_target"] and row["reached"]]
            rows.sort(key=lambda row: row["build_seconds"] + row["solve_seconds"], reverse=True)
            for y, row in enumerate(rows):
                ours = row["library"] == "llmrank"
                colour = "#D55E00" if ours else "#0072B2"
                total = row["build_seconds"] + row["solve_seconds"]
                ax.barh(y, total, color=colour, alpha=0.35)
                ax.barh(y, row["solve_seconds"], color=colour, height=0.5)
            ax.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
            ax.set(xscale="log", xlabel="seconds", title=f"{case['name']}, to {case['shown_target']:.0e}")
            # One scale for all panels: on a logarithmic axis the left end decides how long a bar looks.
            ax.set_xlim(1e-3, 30)
        figure.suptitle("Dark: solving. Light: building the graph and solving. Orange: llmrank.", fontsize=9)
        figure.tight_layout()
        return [_save(figure, folder / "speed.png")]


def scale(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw seconds and memory against edges."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.0, 3.1))
        for dtype, colour in (("float32", "#0072B2"), ("bfloat16", "#D55E00")):
            rows = [row for row in results["rows"] if row["dtype"] == dtype]
            edges = [row["edges"] for row in rows]
            axes[0].loglog(
                edges, [row["warm_seconds"] for row in rows], "-o", ms=4, color=colour, label=f"{dtype}, warm"
            )
            axes[0].loglog(edges, [row["cold_seconds"] for row in rows], ":o", ms=3, color=colour, label="cold")
            own = [row["resident_beyond_page_cache"] / 1e9 for row in rows]
            axes[1].loglog(edges, own, "-o", ms=4, color=colour, label=f"{dtype}: process's own")
            axes[1].loglog(edges, [row["file_bytes"] / 1e9 for row in rows], ":", color=colour, label="weights on disk")
        axes[0].set(xlabel="edges", ylabel="seconds, weights to ranks")
        axes[1].set(xlabel="edges", ylabel="GB")
        axes[1].axhline(4, color="grey", lw=1, label="4 GB")
        for ax in axes:
            ax.legend(fontsize=7)
        figure.tight_layout()
        return [_save(figure, folder / "scale.png")]


# The rows of the quality benchmark that are drawn, by panel: key -> label.
CURVES = {
    "as cut": {
        "ffn | weighted pagerank | isolated | sensitivity | {amount} | none": "llmrank, sensitivity budget",
        "ffn | weighted pagerank | isolated | local | {amount} | none": "llmrank, local budget",
        "peer | optipfair, MAW with data |  | local | {amount} | none": "optipfair, with data",
        "peer | Torch-Pruning, Taylor |  | local | {amount} | none": "Torch-Pruning, Taylor",
        "ffn | wanda-sp (L1) | isolated | local | {amount} | none": "Wanda-sp",
        "ffn | flap | isolated | global | {amount} | none": "FLAP without its bias",
        "ffn | activation | isolated | global | {amount} | none": "activation alone, our budget",
    },
    "repaired": {
        "ffn | weighted pagerank | isolated | sensitivity | {amount} | lstsq": "llmrank, sensitivity budget",
        "ffn | weighted pagerank | isolated | local | {amount} | lstsq": "llmrank, default",
        "peer | optipfair, MAW with data |  | local | {amount} | lstsq": "optipfair, with our least squares",
        "peer | Torch-Pruning, Taylor |  | local | {amount} | lstsq": "Torch-Pruning, with our least squares",
        "ffn | wanda-sp (L1) | isolated | global | {amount} | lstsq": "Wanda-sp, with our budget and least squares",
        "ffn | flap | isolated | global | {amount} | bias": "FLAP, with its bias",
    },
}


def quality(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw perplexity against the share removed and the parameters left, as cut and repaired."""
    dense, rows = results["dense"]["test"], results["rows"]
    amounts = sorted({row["amount"] for row in rows.values()})
    if len(amounts) < 2:  # no curve
        return []
    size = results["size"]

    def parameters(share: Any) -> Any:
        # In a gated FFN without biases every hidden neuron has the same number of parameters.
        return (size["parameters"] - np.asarray(share) * size["ffn_parameters"]) / 1e6

    def share(millions: Any) -> Any:
        return (size["parameters"] - np.asarray(millions) * 1e6) / size["ffn_parameters"]

    with mpl.rc_context(STYLE):
        # Each panel has its own scale: on the scale of the first the repaired curves would coincide.
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4))
        for ax, (title, curves) in zip(axes, CURVES.items(), strict=True):
            for position, (key, label) in enumerate(curves.items()):
                known = [amount for amount in amounts if key.format(amount=amount) in rows]
                if not known:
                    continue
                values = [rows[key.format(amount=amount)]["test"] / dense for amount in known]
                ax.plot([0.0, *known], [1.0, *values], lw=1.3, ms=4, label=label, **line_style(position))
            ax.set(yscale="log", xlabel="share of hidden neurons removed", title=title)
            ax.set_xticks([0.0, *amounts], [f"{amount:.0%}" for amount in (0.0, *amounts)])
            highest = max((value for line in ax.lines for value in np.asarray(line.get_ydata())), default=1.0)
            ticks = (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8) if highest < 2 else (1, 1.25, 1.5, 2, 3, 5, 10)
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.set_ylim(0.97, 1.3 * highest)
            ax.yaxis.set_minor_formatter(NullFormatter())
            if ax.lines:
                ax.legend(fontsize=7, loc="upper left")
            top = ax.secondary_xaxis("top", functions=(parameters, share))
            top.set_xlabel("parameters of the model, millions")
        axes[0].set_ylabel("perplexity / dense perplexity, test")
        figure.tight_layout()
        return [_save(figure, folder / "quality.png")]


def _promise(rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Return percent removed and promised speed-up, by Amdahl's law with the share of the work that a row implies."""
    row = max(rows, key=lambda row: float(row["removed"]))
    share = (1.0 - 1.0 / row["promised"]) / row["removed"]
    removed = np.linspace(0.0, row["removed"], 50)
    return 100 * removed, 1.0 / (1.0 - share * removed)


def compact(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the speed-up of compact models against the share removed, and what the multiply-adds promise."""
    with mpl.rc_context(STYLE):
        cases = results["cases"]
        figure, axes = plt.subplots(len(cases), 3, figsize=(10.2, 3.4 * len(cases)), squeeze=False)
        for case, line in zip(cases, axes, strict=True):
            for ax, (what, title) in zip(
                line, {"ffn": "FFNs alone", "forward": "whole model", "generation": "generation"}.items(), strict=True
            ):
                chosen = sorted(
                    (row for row in case["rows"] if row["what"] == what), key=lambda row: float(row["removed"])
                )
                for tokens, colour in zip(dict.fromkeys(row["tokens"] for row in chosen), TOKEN_COLOURS, strict=False):
                    even, odd = (
                        [row for row in chosen if row["tokens"] == tokens and (row["multiple_of"] == 1) is apart]
                        for apart in (False, True)
                    )
                    percent = [100 * row["removed"] for row in even]
                    low, high = ([row["quartiles"][k] for row in even] for k in (0, 1))
                    label = f"{tokens} tokens" if tokens > 1 else "1 token"
                    ax.plot(percent, [row["speedup"] for row in even], "-o", ms=3.5, color=colour, label=label)
                    ax.fill_between(percent, low, high, color=colour, alpha=0.15, lw=0)
                    ax.plot([100 * r["removed"] for r in odd], [r["speedup"] for r in odd], "x", ms=5, color=colour)
                    if what != "ffn" or tokens == chosen[0]["tokens"]:
                        # All FFNs have one promise; that of the whole model depends a little on the length.
                        ax.plot(*_promise([*even, *odd]), ":", color="#000000" if what == "ffn" else colour, lw=1.2)
                ax.axhline(1.0, color="grey", lw=0.8)
                ax.set(title=f"{title}, {case['device']}, {case['dtype']}", xlabel="hidden neurons removed, %")
                ax.legend(fontsize=7)
            line[0].set_ylabel("dense time / compact time")
        figure.suptitle(
            "Dotted: promised by multiply-adds. Dots: widths of a multiple of 64, with quartiles; crosses: other widths.",
            fontsize=9,
        )
        figure.tight_layout()
        return [_save(figure, folder / "compact.png")]


def mlp(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the test accuracy of multilayer perceptrons against the share removed, under the local budget, without repair."""
    amounts = [0.0, *results["protocol"]["amounts"]]
    data = list(dict.fromkeys(row["data"] for row in results["dense"]))
    networks = list(dict.fromkeys(row["network"] for row in results["dense"]))
    with mpl.rc_context(STYLE):
        size = (2.9 * len(networks), 2.5 * len(data) + 0.5)
        figure, axes = plt.subplots(len(data), len(networks), figsize=size, sharex=True, squeeze=False)
        for dense in results["dense"]:
            ax = axes[data.index(dense["data"]), networks.index(dense["network"])]
            for name, colour in SCORES.items():
                row = next(
                    row
                    for row in results["rows"]
                    if all(row[key] == dense[key] for key in ("data", "network"))
                    and (row["scorer"], row["pruner"], row["repair"]) == (name, "local", "none")
                )
                ax.plot(amounts, [dense["test"], *row["test"]], "-o", ms=3, lw=1.2, color=colour, label=name)
            ax.set(title=f"{dense['data']}, {dense['network']}")
        for ax in axes[-1]:
            ax.set(xlabel="share of hidden neurons removed")
        for ax in axes[:, 0]:
            ax.set(ylabel="test accuracy")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.tight_layout(rect=(0, 0.0, 1, 0.9))
        figure.legend(handles, labels, loc="upper center", ncols=4, fontsize=8)
        return [_save(figure, folder / "mlp.png")]


def main() -> None:
    for draw in (convergence, speed, scale, compact, quality, mlp):
        name = draw.__name__
        path = RESULTS / f"{name}.json"
        if path.is_file():
            for figure in draw(json.loads(path.read_text(encoding="utf-8")), RESULTS):
                print(f"wrote {figure}")


if __name__ == "__main__":
    main()
