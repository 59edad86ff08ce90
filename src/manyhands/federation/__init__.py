"""Real sites: their kits, their policies, the server that they dial, and the runs between them."""
