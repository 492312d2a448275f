"""What the KV cache's cells may be: one file a type, found by its file name.

A row is one position of one head, padded with zeros to a multiple of `PADDING` values. Each module has
    row_bytes(d)  the size of a row of d values
    write         kernel (x, row, d): d float32 into a row, the padding included
    scores        kernel (q, rows, row_bytes, n, d, out): out[j] = q . row j; q padded with zeros
    mix           kernel (p, rows, row_bytes, n, d, y): y += the sum of p[j] * row j; y padded
    unpack        kernel (rows, row_bytes, n, d, y): n rows to y[n, d] float32
"""

PADDING = 32


def padded(d: int) -> int:
    """d up to a whole number of paddings."""
    return -(-d // PADDING) * PADDING
