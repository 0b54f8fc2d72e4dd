"""A grid of pictures as a PNG: one column a defence, one row an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from secure_triplay.attacks.images import Picture

_SIDE, _GAP, _HEAD, _FONT = 112, 8, 46, 14


def save_grid(path: Path, columns: Sequence[tuple[str, Sequence[Picture]]]) -> None:
    """Write columns of equally many pictures, each under its title (lines parted by a newline)."""
    rows = len(columns[0][1])
    width, height = _SIDE + _GAP, _SIDE + _GAP
    sheet = Image.new("RGB", (len(columns) * width + _GAP, _HEAD + rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for x, (title, pictures) in enumerate(columns):
        left = _GAP + x * width
        draw.multiline_text(
            (left + _SIDE / 2, _HEAD / 2), title, fill="black", font=font, anchor="mm", align="center"
        )
        for y, picture in enumerate(pictures):
            pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
            side = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(side, (left, _HEAD + y * height))
    sheet.save(path, optimize=True)
