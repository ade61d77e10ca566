"""The specification: float64-capable plain torch, written from the formulas, loops allowed. Shares nothing with the product."""
