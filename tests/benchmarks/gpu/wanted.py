"""What we want of a GPU, beside what was measured."""

from __future__ import annotations

from typing import Any

from gpu.setting import Figures

NOT_MEASURED = "not measured"


def wanted(result: Figures) -> list[Figures]:
    """The figures that were aimed at: what each is, the aim, and what was found."""

    def of(part: str, *names: str) -> Any:
        found = result["parts"].get(part, {}).get("figures", {})
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return None if result["toy"] else found

    ours, peer, dense = ("step_160", "unet"), ("nnssl_160", "unet"), ("dense_160", "unet")
    rows = [
        ("step of `unet` at 160³, of nnssl's time", "at most", 0.33, ratio(of(*ours, "ms"), of(*peer, "ms"))),
        ("its memory, of nnssl's", "at most", 0.35, ratio(of(*ours, "peak_mib"), of(*peer, "peak_mib"))),
        (
            "crops a second of `unet` at 160³, of a dense MAE's",
            "at least",
            2.0,
            ratio(of(*ours, "crops_per_second"), of(*dense, "crops_per_second")),
        ),
        ("share of a step without kernels, `light`", "at most", 0.1, of("kernels", "light", "share_without_kernels")),
        ("the same, `unet`", "at most", 0.1, of("kernels", "unet", "share_without_kernels")),
        ("ms of the host for a new mask in a step, `light`", "at most", 2.0, of("geometry", "light", "step_ms")),
        ("the same, `unet`", "at most", 2.0, of("geometry", "unet", "step_ms")),
        ("waits of the host in a step, `light`", "at most", 1, of("waits", "pretraining light", "waits")),
    ]
    return [
        {"figure": figure, "wanted": f"{how} {aim:g}", "found": NOT_MEASURED if found is None else round(found, 4)}
        for figure, how, aim, found in rows
    ]


def ratio(one: float | None, other: float | None) -> float | None:
    """One number over another, where both are known.

    Example:
        >>> ratio(1.0, 4.0), ratio(1.0, None)
        (0.25, None)
    """
    return None if one is None or not other else one / other


def table(result: Figures) -> str:
    """What was wanted and found, and what each part says, in Markdown."""
    rows = [f"| {one['figure']} | {one['wanted']} | {one['found']} |" for one in result["wanted"]]
    parts = [f"- {name} ({part['seconds']:.0f} s): {part['said']}" for name, part in result["parts"].items()]
    return "\n".join(["| figure | wanted | found |", "|---|---|---|", *rows, "", *parts])
