"""From the lengths of all documents to rows: ratios exact to a token, keyed order, best-fit packing."""
