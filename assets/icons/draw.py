"""Draws the app's mark: a square of four bits with a bite taken out of one corner.

Run it after a change (`python3 assets/icons/draw.py`; needs nothing but Python) and commit what it
writes. Every size is drawn for itself, by counting sub-pixels, so that small ones stay sharp.
"""

import struct
import zlib
from pathlib import Path

FOLDER = Path(__file__).parent
# The colours of weights, adapters, gradients and activations in assets/tokens.json: four bits.
BITS = [(0x4C, 0x6F, 0xB3), (0x2A, 0x9D, 0x8F), (0xE0, 0xA0, 0x30), (0x8A, 0x63, 0xB8)]
SUBPIXELS = 4


def colour_at(x, y):
    """The colour at a point of the unit square, or None where there is nothing."""
    # Three overlapping teeth bite the upper right corner.
    for centre_x, centre_y, radius in [(0.97, 0.03, 0.20), (0.76, 0.03, 0.10), (0.97, 0.24, 0.10)]:
        if (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2:
            return None
    margin, gap, corner = 0.06, 0.05, 0.10
    side = (1 - 2 * margin - gap) / 2
    for row in range(2):
        for column in range(2):
            left, top = margin + column * (side + gap), margin + row * (side + gap)
            # How far the point is beyond the rectangle that the rounded corners surround.
            beyond_x = max(left + corner - x, x - (left + side - corner), 0)
            beyond_y = max(top + corner - y, y - (top + side - corner), 0)
            if beyond_x**2 + beyond_y**2 <= corner**2:
                return BITS[2 * row + column]
    return None


def pixels(size):
    """Rows of RGBA bytes, each row behind PNG's filter byte."""
    points = [(i + 0.5) / (size * SUBPIXELS) for i in range(size * SUBPIXELS)]
    rows = bytearray()
    for y in range(size):
        rows.append(0)
        for x in range(size):
            inside = [
                colour
                for sub_y in points[y * SUBPIXELS : (y + 1) * SUBPIXELS]
                for sub_x in points[x * SUBPIXELS : (x + 1) * SUBPIXELS]
                if (colour := colour_at(sub_x, sub_y))
            ]
            n = max(len(inside), 1)
            rows += bytes(sum(colour[channel] for colour in inside) // n for channel in range(3))
            rows.append(255 * len(inside) // SUBPIXELS**2)
    return bytes(rows)


def png(size):
    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)
    image = zlib.compress(pixels(size), 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", image) + chunk(b"IEND", b"")


def ico(images):
    """Windows' container of several sizes."""
    entries, data = b"", b""
    offset = 6 + 16 * len(images)
    for size, image in images.items():
        # A side of 256 is written as 0.
        entries += struct.pack(
            "<BBBBHHII", size % 256, size % 256, 0, 0, 1, 32, len(image), offset + len(data)
        )
        data += image
    return struct.pack("<HHH", 0, 1, len(images)) + entries + data


def icns(images):
    """The same for macOS."""
    kinds = {128: b"ic07", 256: b"ic08", 512: b"ic09"}
    data = b"".join(
        kind + struct.pack(">I", 8 + len(images[size])) + images[size]
        for size, kind in kinds.items()
    )
    return b"icns" + struct.pack(">I", 8 + len(data)) + data


def main():
    images = {size: png(size) for size in (16, 32, 48, 128, 256, 512)}
    for name, size in [("32x32", 32), ("128x128", 128), ("128x128@2x", 256), ("icon", 512)]:
        (FOLDER / f"{name}.png").write_bytes(images[size])
    small = {size: image for size, image in images.items() if size <= 256}
    (FOLDER / "icon.ico").write_bytes(ico(small))
    (FOLDER / "icon.icns").write_bytes(icns(images))


main()
