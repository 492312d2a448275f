"""Weight formats, one a file, found by their file names.

Each module has
    COLUMNS     "q8" or "f32": the columns (see ../columns.py) that matmul takes
    matmul      kernel (task): rows times columns to float32, straight from the file's bytes; see rows.MATMUL
    dequantize  kernel (w, k, y): k values of one row to float32
What they share is in rows (all of them), superblocks (blocks of 256 with sub-blocks) and grids (code books).
The layouts are those of ggml (ggml-common.h); gguf-py's quants.py is the oracle of the tests.
"""
