"""Colours for plots."""

COLOURS = ("#0072B2", "#56B4E9", "#332288", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999")
"""Hex codes of colours that people with colour blindness can distinguish, from the palettes of Okabe and Ito, and of
Tol."""
