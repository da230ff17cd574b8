"""How colours look to people of each kind of colour vision, and how different two colours look.

`seen` applies the matrices of Machado, Oliveira and Fernandes (2009) for the complete lack of one kind of
cone. `difference` is CIEDE2000 (Sharma, Wu and Dalal, 2005).
"""

import numpy as np

VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = XYZ.sum(axis=1)


def linear(colour):
    """Returns linear RGB (3,) of a colour (r, g, b), each 0..255."""
    c = np.asarray(colour, float) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def blended(colour, alpha, under):
    """Returns a colour with this opacity over another one."""
    return alpha * np.asarray(colour, float) + (1 - alpha) * np.asarray(under, float)


def contrast(first, second):
    """Returns the contrast of two colours as WCAG 2 defines it, 1..21."""
    a, b = sorted(float(XYZ[1] @ linear(colour)) for colour in (first, second))
    return (b + 0.05) / (a + 0.05)


def seen(colour, vision):
    """Returns the colour (L, a, b) in CIE Lab that a kind of vision, one of VISION, makes of (r, g, b)."""
    xyz = XYZ @ np.clip(np.asarray(VISION[vision]) @ linear(colour), 0, 1) / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(first, second):
    """Returns CIEDE2000 of two colours (L, a, b)."""
    (L1, a1, b1), (L2, a2, b2) = first, second
    c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * np.sqrt(c**7 / (c**7 + 25**7))
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, g * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    dL, dC, dH = L2 - L1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    L, C = (L1 + L2) / 2, (c1 + c2) / 2
    h = h1 + turn / 2 if c1 * c2 else h1 + h2
    T = (
        1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
        + 0.32 * np.cos(np.radians(3 * h + 6)) - 0.20 * np.cos(np.radians(4 * h - 63))
    )  # fmt: skip
    rotation = (
        -np.sin(np.radians(60 * np.exp(-((((h % 360) - 275) / 25) ** 2))))
        * 2
        * np.sqrt(C**7 / (C**7 + 25**7))
    )
    SL, SC, SH = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2), 1 + 0.045 * C, 1 + 0.015 * C * T
    return float(np.sqrt((dL / SL) ** 2 + (dC / SC) ** 2 + (dH / SH) ** 2 + rotation * dC / SC * dH / SH))
