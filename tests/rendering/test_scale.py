"""The colours of credit: symmetric, told apart by everybody, and readable on every ground."""

from __future__ import annotations

import numpy as np
import pytest

from textgym.rendering.frames import FRAME_GROUND
from textgym.rendering.scale import NEGATIVE, POSITIVE, credit_colour, credit_limit
from textgym.rendering.terminal import TERMINAL_GROUND

CREDITS = np.linspace(-1, 1, 41)
GROUNDS = {  # with the letters that are on them
    "white page": ((255, 255, 255), (28, 28, 30)),
    "dark page": ((24, 24, 27), (232, 232, 234)),
    "terminal": (TERMINAL_GROUND, (255, 255, 255)),
    "frame": (FRAME_GROUND, (235, 235, 235)),
}
DEFICIENCIES = {
    # What the fully colour-blind see, in linear light: Machado, Oliveira & Fernandes 2009, "A
    # Physiologically-based Model for Simulation of Color Vision Deficiency", table 1.
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


def linear(rgb):
    """Linear light, from 0 to 1; sRGB, IEC 61966-2-1."""
    parts = np.asarray(rgb) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(rgb):
    return linear(rgb) @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    """The contrast ratio of WCAG 2.1."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_scale_is_symmetric_and_grows_with_the_credit():
    opacities = [credit_colour(value, 1.0).opacity for value in CREDITS]
    assert opacities == pytest.approx(opacities[::-1])
    assert (np.diff(opacities[20:]) > 0).all()
    assert credit_colour(0.0, 1.0).opacity == 0
    assert credit_colour(-0.3, 1.0).rgb != credit_colour(0.3, 1.0).rgb


def test_only_the_share_of_the_limit_counts():
    assert credit_colour(0.25, 0.5) == credit_colour(3.0, 6.0)
    assert credit_colour(9.0, 1.0) == credit_colour(1.0, 1.0)
    assert credit_colour(1.0, 0.0).opacity == 0


@pytest.mark.parametrize("ground", GROUNDS)
def test_letters_can_be_read_on_every_colour(ground):
    below, letters = GROUNDS[ground]
    for value in CREDITS:
        assert contrast(credit_colour(value, 1.0).over(below), letters) >= 4.5  # level AA


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_both_signs_look_different_to_the_colour_blind(deficiency):
    matrix = np.array(DEFICIENCIES[deficiency])
    seen = [np.clip(matrix @ linear(rgb), 0, 1) for rgb in (POSITIVE, NEGATIVE)]
    as_srgb = [np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055) for x in seen]
    assert np.abs(as_srgb[0] - as_srgb[1]).max() > 0.4  # of the whole range of a channel


def test_the_limit_of_a_text_is_its_largest_credit():
    assert credit_limit([0.5, -2.0, 1.0]) == 2.0
    assert credit_limit([]) == 0.0
