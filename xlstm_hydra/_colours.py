"""Colours of plots."""

COLOURS = ("#0072B2", "#56B4E9", "#332288", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999")
"""Colours that people with colour blindness can distinguish (Okabe and Ito; Tol)."""
