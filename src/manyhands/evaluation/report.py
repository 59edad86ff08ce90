"""The report of a run, read from its folder: one HTML file that opens from disk."""

from __future__ import annotations

import base64
import html
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from manyhands.evaluation import figures
from manyhands.plan import size_text

if TYPE_CHECKING:
    from pathlib import Path

    from manyhands.journal import Round, RunFolder

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; background: white; border-radius: 6px }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem }
dt { opacity: .7; font-size: .85rem }
dd { margin: 0; font-size: 1.4rem }
.scroll { overflow-x: auto }
.warn { border-left: 4px solid #c60; padding-left: 1rem }
"""


def versions() -> dict[str, str]:
    """What the run was made with."""
    names = ("manyhands", "torch", "diffusers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write(folder: RunFolder) -> None:
    """Write report.html from report.json, the journal and the figures."""
    rounds = folder.rounds
    by_silo: dict[str, list[tuple[int, float]]] = {}
    for done in rounds:
        for silo, loss in done.losses.items():
            by_silo.setdefault(silo, []).append((done.number + 1, loss))
    if by_silo:
        figures.losses(folder.figures / "loss.png", by_silo)
    folder.write("report.html", page(folder.recipe, folder.report, rounds, folder.figures))


def page(recipe: dict[str, Any], facts: dict[str, Any], rounds: list[Round], pictures: Path) -> str:
    """The page as text."""
    title = html.escape(str(recipe.get("name", "run")))
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} - Manyhands</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{title}</h1>{_headline(facts)}{_warnings(facts, rounds)}
{_picture(pictures / "samples.png", "Samples", "Images drawn from the trained generator; a column is a class.")}
{_picture(pictures / "loss.png", "Training", "The loss of each silo (thin) and their mean, by round.")}
{_picture(pictures / "partition.png", "Who holds what", "Images of each class at each silo.")}
{_silos(facts, rounds)}
<h2>Recipe</h2><div class="scroll"><table>{_flat(recipe)}</table></div>
<h2>Versions</h2><p>{html.escape(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))}</p>
</body></html>"""


def _headline(facts: dict[str, Any]) -> str:
    shown = {
        "method": facts["method"],
        "silos": len(facts["silos"]),
        "rounds": facts["rounds"],
        "seconds": f"{facts['seconds']:.0f}",
        "images seen": f"{facts['images_seen']:,}",
        "parameters": f"{facts['parameters']:,}",
        "sent up": size_text(facts["bytes_up"]),
        "sent down": size_text(facts["bytes_down"]),
    }
    return (
        "<dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{html.escape(str(value))}</dd></div>" for name, value in shown.items())
        + "</dl>"
    )


def _warnings(facts: dict[str, Any], rounds: list[Round]) -> str:
    missing = [f"round {done.number + 1}: {silo}: {why}" for done in rounds for silo, why in done.missing.items()]
    lines = [f"skipped: {name}" for name in facts["skipped"]] + facts["problems"] + missing
    if not lines:
        return ""
    more = f"<li>and {len(lines) - 20} more</li>" if len(lines) > 20 else ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:20])
    return f'<section class="warn"><h2>Warnings</h2><ul>{items}{more}</ul></section>'


def _picture(path: Path, title: str, alt: str) -> str:
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{title}</h2><p>{alt}</p><img alt="{alt}" src="data:image/png;base64,{data}">'


def _silos(facts: dict[str, Any], rounds: list[Round]) -> str:
    last: dict[str, float] = {}
    for done in rounds:
        last.update(done.losses)
    rows = "".join(
        f'<tr><td>{html.escape(silo)}</td><td class="n">{images:,}</td>'
        f'<td class="n">{f"{last[silo]:.4f}" if silo in last else "-"}</td></tr>'
        for silo, images in facts["silos"].items()
    )
    head = '<tr><th>silo</th><th class="n">images</th><th class="n">last loss</th></tr>'
    return f'<h2>Silos</h2><div class="scroll"><table>{head}{rows}</table></div>'


def _flat(value: Any, where: str = "") -> str:
    if isinstance(value, dict):
        return "".join(_flat(inner, f"{where}.{key}".strip(".")) for key, inner in value.items())
    return f"<tr><td>{html.escape(where)}</td><td>{html.escape(str(value))}</td></tr>"
