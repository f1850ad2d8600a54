"""The results as a table for people and as a plot (SVG, written by hand: no plotting library)."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

MIB = 1024 * 1024
Result = dict[str, Any]


def seconds(value: float) -> str:
    """A duration that can be read at a glance."""
    return f"{value * 1000:.0f} ms" if value < 1.0 else f"{value:.2f} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(results: dict[str, list[Result]]) -> str:
    """All tables, as Markdown."""
    parts = []
    if small := results.get("small"):
        head = [
            "1 KiB array, 2 nodes",
            "round, median",
            "worst",
            "rounds",
            "first round after `flwr run`",
            "on a fresh federation",
        ]
        rows = [
            [
                one["setup"],
                seconds(one["median"]),
                seconds(one["worst"]),
                str(one["rounds"]),
                seconds(one["second_run_first_round_after_submit"]),
                seconds(one["first_run_first_round_after_submit"]),
            ]
            for one in small
        ]
        parts.append(_table(head, rows))
    for one_size in sorted({one["bytes"] for one in results.get("model", [])}):
        same = [one for one in results["model"] if one["bytes"] == one_size]
        head = [
            f"{one_size // MIB} MiB down and up, 2 nodes",
            "median",
            "first",
            "SuperLink's growth over idle",
            "its CPU per round",
            "CPU of all per round",
            "load",
        ]
        rows = [
            [
                one["setup"],
                seconds(one["median"]),
                seconds(one["first"]),
                f"{one['superlink_growth_bytes'] / MIB:.0f} MiB",
                seconds(one["superlink_cpu_seconds_per_round"]),
                seconds(one["cpu_seconds_per_round"]),
                f"{one['load']:.1f}",
            ]
            for one in same
        ]
        parts.append(_table(head, rows))
        head = ["when each hop moved its bytes", *(one["setup"] for one in same)]
        names = [hop["hop"] for hop in same[0]["hops"]]
        hops = [{hop["hop"]: hop for hop in one["hops"]} for one in same]
        parts.append(_table(head, ([name, *(_span(one.get(name)) for one in hops)] for name in names)))
    if waiting := results.get("waiting"):
        head = ["stock nodes, 1 KiB array", "round, median", "outside of the nodes, down", "up", "rounds"]
        rows = [
            [
                one["setup"],
                seconds(one["median"]),
                f"{seconds(one['down_median'])} (worst {seconds(one['down_worst'])})",
                f"{seconds(one['up_median'])} (worst {seconds(one['up_worst'])})",
                str(one["rounds"]),
            ]
            for one in waiting
        ]
        parts.append(_table(head, rows))
    if idle := results.get("idle"):
        head = ["idle nodes", "nodes", "share of a core", "SuperLink's memory"]
        rows = [
            [one["setup"], str(one["nodes"]), f"{one['core_share']:.1%}", f"{one['superlink_bytes'] / MIB:.0f} MiB"]
            for one in idle
        ]
        parts.append(_table(head, rows))
    for one in results.get("credentials", []):
        checks = (
            ("token_rs256", "an account's access token (RS256)"),
            ("signature_p256", "a SuperNode's signature, P-256"),
            ("signature_p384", "a SuperNode's signature, P-384"),
        )
        rows = [[label, f"{one[check] * 1000:.3f} ms"] for check, label in checks]
        parts.append(_table([f"what a call costs more, median of {one['calls']:,}", f"load {one['load']:.1f}"], rows))
    for one in results.get("containers", []):
        if one["what"] == "rounds":
            head = ["1 KiB array, 2 nodes", "round, median", "worst", "rounds of each", "ratio", "load"]
            rows = [
                [
                    label,
                    seconds(one[f"{kind}_median"]),
                    seconds(one[f"{kind}_worst"]),
                    str(one["rounds"]),
                    ratio,
                    f"{one['load']:.1f}",
                ]
                for kind, label, ratio in (
                    ("processes", "processes, no TLS", ""),
                    ("containers", "containers, TLS", f"{one['ratio']:.2f}"),
                )
            ]
        else:
            head = ["`docker compose up --wait`, images built", "median", "each", "load"]
            each = ", ".join(map(seconds, one["seconds"]))
            rows = [["eight containers", seconds(one["median"]), each, f"{one['load']:.1f}"]]
        parts.append(_table(head, rows))
    return "\n\n".join(parts)


def _span(hop: Result | None) -> str:
    return "-" if hop is None else f"{hop['from']:.2f}-{hop['to']:.2f} s ({hop['share']:.0%})"


WIDTH, LABEL, BAR, GAP = 760, 200, 18, 6
COLOURS = ("#1f6f54", "#b7c4bf")  # ours, stock's


def plot(results: dict[str, list[Result]]) -> str:
    """Bars of the medians, one chart for each measurement, each with a scale of its own."""
    charts: list[tuple[str, list[tuple[str, float, str]]]] = []
    if small := results.get("small"):
        charts.append(
            ("Round with a 1 KiB array", [(one["setup"], one["median"], seconds(one["median"])) for one in small])
        )
    for size in sorted({one["bytes"] for one in results.get("model", [])}):
        same = [one for one in results["model"] if one["bytes"] == size]
        title = f"{size // MIB} MiB down and up"
        charts.append((title, [(one["setup"], one["median"], seconds(one["median"])) for one in same]))
        growth = [(one["setup"], one["superlink_growth_bytes"] / MIB) for one in same]
        charts.append(
            (f"SuperLink's memory over idle, {title}", [(name, mib, f"{mib:.0f} MiB") for name, mib in growth])
        )
    if waiting := results.get("waiting"):
        charts.append(
            ("Round with stock nodes", [(one["setup"], one["median"], seconds(one["median"])) for one in waiting])
        )
    if idle := results.get("idle"):
        shares = [(one["setup"], one["core_share"]) for one in idle]
        charts.append(
            (f"{idle[0]['nodes']} idle nodes: share of a core", [(name, one, f"{one:.1%}") for name, one in shares])
        )
    body, y = [], 10
    for title, bars in charts:
        y += 20
        body.append(f'<text x="10" y="{y}" font-weight="bold">{escape(title)}</text>')
        most = max(max(value for _, value, _ in bars), 1e-9)
        for name, value, text in bars:
            y += GAP
            length = max(1.0, value / most * (WIDTH - LABEL - 110))
            colour = COLOURS[0] if "trellis" in name else COLOURS[1]
            body.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            body.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            body.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{escape(text)}</text>')
            y += BAR
        y += 12
    size = f'width="{WIDTH}" height="{y + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>\n"])
