"""The page of a scan: self-contained, for somebody who looks at the head and wants to know how far to believe it."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sa_swin.app.derivatives import INTERVALS
from sa_swin.app.pictures import FAINT, LIMIT, PicturedHead, place_figure, plane_figure
from sa_swin.report.html import coverage_sentence, note, picture, short, table_html, whole_page, words
from sa_swin.report.page import PLANE

Figures = Mapping[str, Any]


def person_page(name: str, images: Sequence[str], figures: Figures, head: PicturedHead) -> str:
    """The page of a scan, as HTML.

    Args:
        name: of the scan.
        images: it was read from, relative to their dataset.
        figures: of its summary.
        head: for the pictures.
    """
    parts = [note("From " + html.escape(", ".join(images)) + ". Sides are the patient's.")]
    for section in (plane_section, asymmetry_section, lesion_section, class_section, weights_section):
        parts += section(figures, head)
    return whole_page(name, parts)


def plane_section(figures: Figures, head: PicturedHead) -> Iterator[str]:
    """The midsagittal plane, and how far it can be trusted."""
    plane = figures["plane"]
    yield "<h2>Midsagittal plane</h2>"
    if plane["reason"]:
        yield (
            f'<p class="warn">This plane cannot be trusted: {html.escape(plane["reason"])}. Sides, counterparts and '
            "the map rest on it.</p>"
        )
    yield picture(plane_figure(head), "the head with its plane, aligned, and its mirrored counterpart")
    yield note("The cyan line is the plane. Both circles are at one place: what lies there, and what lies opposite it.")
    known = {PLANE[key]: short(plane[key]) for key in PLANE if plane.get(key) is not None}
    yield table_html([{"plane": plane["source"], **known}])


def asymmetry_section(figures: Figures, head: PicturedHead) -> Iterator[str]:
    """The map through each place of interest, and the figures of its peak."""
    found = figures.get("asymmetry", {})
    threshold, unit = found.get("threshold"), found.get("unit", "")
    limit = threshold / FAINT if threshold else LIMIT
    yield "<h2>Asymmetry</h2>" if found else "<h2>Three planes</h2>"
    if found:
        yield table_html([shown_peak(found)])
    for what, place in head.places.items():
        yield f"<h3>Through {what}</h3>"
        yield picture(place_figure(head, place, limit, threshold, unit), f"three planes through {what}")
    if found:
        yield note(
            "Each place is compared with the most alike one near its counterpart. The scale is the same on all pages. "
            + ("Colours begin at the threshold of the norm, the black mark on the bar. " if threshold else "")
            + "Where one of two places is the stranger for its brightness, it is red, and the other blue. "
            "Else the side is undecided, and both are red."
        )
    if head.lesion is not None:
        yield note("The green line is the outline of the predicted mask.")


def shown_peak(found: Figures) -> dict[str, str]:
    """The peak of a map, as a row."""
    place = ", ".join(str(found[axis]) for axis in ("x_mm", "y_mm", "z_mm"))
    voxel = ", ".join(str(found[axis]) for axis in ("voxel_i", "voxel_j", "voxel_k"))
    row = {"peak": short(found["peak"]), "side": found["side"], "world mm (RAS)": place, "voxel of the file": voxel}
    if "alarm" in found:
        row |= {"threshold of the norm": short(found["threshold"]), "alarm": "yes" if found["alarm"] else "no"}
    return row


def lesion_section(figures: Figures, head: PicturedHead) -> Iterator[str]:
    """Volumes and sides of what was segmented."""
    if "lesions" in figures:
        yield "<h2>Lesions</h2>" + table_html(_rows(figures["lesions"]))
        if figures["findings"]:
            yield "<h3>Findings</h3>" + table_html(_rows(figures["findings"]))
        yield note("Volumes in ml; asymmetry index: (right - left) / (right + left).")
        yield from doubts(figures["lesions"])


def class_section(figures: Figures, head: PicturedHead) -> Iterator[str]:
    """Probabilities of the classes, and what they rest on."""
    if classes := figures.get("classes"):
        shares = {name: f"{share:.3f}" for name, share in classes["probability"].items()}
        doubt = {name: classes[name] for name in INTERVALS if name in classes}
        yield "<h2>Classes</h2>" + table_html([shares | doubt])
        yield from doubts([classes])
        yield note(f"Probabilities, {html.escape(classes['basis'])}.")


def doubts(rows: Sequence[Figures]) -> Iterator[str]:
    """What cannot be told, and what the intervals and sets beside figures mean, where there are any."""
    for row in rows:
        if row.get("cannot_tell"):
            of = f"{row['class']}: " if "class" in row else ""
            yield f'<p class="warn">Cannot tell: {html.escape(of + row["cannot_tell"])}.</p>'
    if "coverage" in rows[0]:
        yield note(coverage_sentence(rows[0]["coverage"]))


def short_digest(digests: Sequence[str]) -> str:
    """The beginnings of the SHA-256 of weights."""
    return " ".join(digest[:12] for digest in digests)


def weights_section(figures: Figures, head: PicturedHead) -> Iterator[str]:
    """What the results rest on: weights, what they were trained on, the norm."""
    yield "<h2>What this rests on</h2>"
    rows = [
        {
            "for": model["task"],
            "weights (SHA-256)": short_digest(model["sha256"]),
            "trained on": "; ".join(model["trained_on"]),
            "input": ", ".join(f"{words(name)} {value}" for name, value in model["settings"].items()),
        }
        for model in figures["weights"]
    ]
    yield table_html(rows) if rows else note("No trained weights: the plane and the map need none.")
    if norm := figures.get("asymmetry", {}).get("norm"):
        yield note(f"Norm of healthy heads: {norm}.")


def _rows(rows: Sequence[Figures]) -> list[dict[str, str]]:
    return [{name: short(value) for name, value in row.items()} for row in rows]
