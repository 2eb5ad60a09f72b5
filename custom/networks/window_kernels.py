"""Window attention as Triton kernels: boxes of all kinds in one launch, tokens where they lie in the volume.

A program takes one head and one tile of one box. It reads queries, keys and values straight from the product
`qkv`, `(N, 3, H, D)`, in the volume's order of tokens, and writes there too: nothing is re-ordered, padded or joined.

Scores are kept in units of `1 / scale`, the bias with them, so that the product starts from the bias and one
multiply-add makes the exponent of 2. What bounds these kernels at D = 16 is not the products but the exponentials and
the instructions for each score.

Shapes: N tokens, H heads of D; a box holds n tokens and sees m keys, the last m - n of them padded tokens, all alike.
A row of `BOXES` is: the box's first token, n, m, its first entry in `PLACES` (tokens counted from the first one), its
bias' first entry and row length in `BIAS`, the entry of its first row in `LSE` and `DELTA`, both `(H, N)`.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

SIZES = ("size", "tokens", "heads", "start")
"""Numbers for whose values nothing is compiled anew."""


@triton.jit
def probe(X):
    """Show that a kernel can be made and run."""
    tl.store(X, 1.0)


@triton.jit
def _box(BOXES, which):
    entry = BOXES + which * 8
    first, n, m, places = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    bias, row_length = tl.multiple_of(tl.load(entry + 4), 64), tl.multiple_of(tl.load(entry + 5), 64)
    return first, n, m, places, bias, row_length, tl.load(entry + 6)


@triton.jit
def _vectors(X, places, stride, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """`(tile, WIDTH)`, one head of some tokens; zeros outside."""
    d = tl.arange(0, WIDTH)
    mask = inside[:, None] if D == WIDTH else inside[:, None] & (d < D)[None, :]
    return tl.load(X + places[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def _write(X, places, stride, inside, values, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    mask = inside[:, None] if D == WIDTH else inside[:, None] & (d < D)[None, :]
    tl.store(X + places[:, None] * stride + d[None, :], values.to(X.dtype.element_ty), mask=mask)


@triton.jit
def _keys(K, PAD, places, stride, columns, n, D: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Keys, or values, of a box; behind them those of padding."""
    keys = _vectors(K, places, stride, columns < n, D, WIDTH)
    if PADDED:
        d = tl.arange(0, WIDTH)
        pad = tl.load(PAD + d, mask=d < D, other=0.0).to(keys.dtype)
        keys = tl.where((columns < n)[:, None], keys, pad[None, :])
    return keys


@triton.jit
def expand_bias(TABLE, INDEX, BIAS, size, heads, scale, BLOCK: tl.constexpr):
    """The bias of each row and key of every kind of box, `(H, size)`, from the table `(rows, H)`, over the scale.

    An index of -1 is behind the last key: nothing attends there; of -2, behind the last row.
    """
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    index = tl.load(INDEX + entry, mask=entry < size, other=-1)
    bias = tl.load(TABLE + index * heads + head, mask=index >= 0, other=0.0).to(tl.float32) / scale
    bias = tl.where(index == -1, float("-inf"), bias)
    tl.store(BIAS + head * size + entry, bias.to(BIAS.dtype.element_ty), mask=entry < size)


@triton.jit
def sum_bias(PARTS, ORDER, STARTS, GRAD, size, rows, heads, parts, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of the table `(rows, H)`: of each row, the sum over its entries in all parts `(parts, H, size)`."""
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = tl.load(STARTS + row, mask=row < rows, other=0)
    stop = tl.load(STARTS + row + 1, mask=row < rows, other=0)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, tl.max(stop - start, 0), BLOCK):
        entry = start[:, None] + first + tl.arange(0, BLOCK)[None, :]
        inside = entry < stop[:, None]
        place = tl.load(ORDER + entry, mask=inside, other=0)
        for part in range(parts):
            grads = PARTS + (part * heads + head).to(tl.int64) * size
            total += tl.load(grads + place, mask=inside, other=0.0)
    tl.store(GRAD + row * heads + head, tl.sum(total, 1), mask=row < rows)


@triton.jit(do_not_specialize=SIZES)
def forward(
    QKV, PAD, BIAS, BOXES, PLACES, OUT, LSE, size, tokens, heads, start, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of rows to all keys of its box, and the logarithm (base 2) of each row's sum."""
    tile, head = tl.program_id(0), tl.program_id(1)
    first, n, m, places, bias, row_length, line = _box(BOXES, start + tl.program_id(2))
    if tile * ROWS < n:
        width = heads * D
        rows = tile * ROWS + tl.arange(0, ROWS)
        Q = QKV + first * 3 * width + head * D
        own = tl.load(PLACES + places + rows, mask=rows < n, other=0)
        q = _vectors(Q, own, 3 * width, rows < n, D, WIDTH)
        biases = BIAS + tl.multiple_of(head.to(tl.int64) * size + bias, 64) + rows[:, None] * row_length
        out = tl.zeros((ROWS, WIDTH), tl.float32)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for ahead in range(0, m, KEYS):
            columns = ahead + tl.arange(0, KEYS)
            seen = tl.load(PLACES + places + columns, mask=columns < n, other=0)
            k = _keys(Q + width, PAD + width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
            v = _keys(Q + 2 * width, PAD + 2 * width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
            b = tl.load(biases + columns[None, :]).to(tl.float32)
            scores = tl.dot(q, tl.trans(k), b, input_precision=PRECISION)
            new_top = tl.maximum(top, tl.max(scores, 1))
            p = tl.math.exp2(scores * (scale * LOG2_E) - (new_top * (scale * LOG2_E))[:, None])
            shrink = tl.math.exp2((top - new_top) * (scale * LOG2_E))
            total = total * shrink + tl.sum(p, 1)
            out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
            top = new_top
        _write(OUT + first * width + head * D, own, width, rows < n, out * (1 / total)[:, None], D, WIDTH)
        tl.store(LSE + head * tokens + line + rows, top * (scale * LOG2_E) + tl.math.log2(total), mask=rows < n)


@triton.jit(do_not_specialize=SIZES)
def grad_queries(
    QKV, PAD, BIAS, BOXES, PLACES, OUT, LSE, GRAD, DELTA, GRAD_QKV, size, tokens, heads, start, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, and of each row the product of its output and its gradient, `DELTA`."""
    tile, head = tl.program_id(0), tl.program_id(1)
    first, n, m, places, bias, row_length, line = _box(BOXES, start + tl.program_id(2))
    if tile * ROWS < n:
        width = heads * D
        rows = tile * ROWS + tl.arange(0, ROWS)
        Q = QKV + first * 3 * width + head * D
        own = tl.load(PLACES + places + rows, mask=rows < n, other=0)
        q = _vectors(Q, own, 3 * width, rows < n, D, WIDTH)
        g = _vectors(GRAD + first * width + head * D, own, width, rows < n, D, WIDTH)
        out = _vectors(OUT + first * width + head * D, own, width, rows < n, D, WIDTH)
        delta = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1)
        tl.store(DELTA + head * tokens + line + rows, delta, mask=rows < n)
        lse = tl.load(LSE + head * tokens + line + rows, mask=rows < n, other=0.0)
        biases = BIAS + tl.multiple_of(head.to(tl.int64) * size + bias, 64) + rows[:, None] * row_length
        grad = tl.zeros((ROWS, WIDTH), tl.float32)
        for ahead in range(0, m, KEYS):
            columns = ahead + tl.arange(0, KEYS)
            seen = tl.load(PLACES + places + columns, mask=columns < n, other=0)
            k = _keys(Q + width, PAD + width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
            v = _keys(Q + 2 * width, PAD + 2 * width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
            b = tl.load(biases + columns[None, :]).to(tl.float32)
            scores = tl.dot(q, tl.trans(k), b, input_precision=PRECISION)
            p = tl.math.exp2(scores * (scale * LOG2_E) - lse[:, None])
            slope = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            grad = tl.dot(slope.to(k.dtype), k, grad, input_precision=PRECISION)
        _write(GRAD_QKV + first * 3 * width + head * D, own, 3 * width, rows < n, grad * scale, D, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def grad_keys(
    QKV, PAD, BIAS, BOXES, PLACES, LSE, GRAD, DELTA, GRAD_QKV, GRAD_PAD, size, tokens, heads, start, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values; of padded ones their sum, `(boxes x tiles, 3, H, D)`."""
    tile, head = tl.program_id(0), tl.program_id(1)
    first, n, m, places, bias, row_length, line = _box(BOXES, start + tl.program_id(2))
    if tile * KEYS < m:
        width = heads * D
        columns = tile * KEYS + tl.arange(0, KEYS)
        Q = QKV + first * 3 * width + head * D
        seen = tl.load(PLACES + places + columns, mask=columns < n, other=0)
        k = _keys(Q + width, PAD + width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
        v = _keys(Q + 2 * width, PAD + 2 * width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
        biases = BIAS + tl.multiple_of(head.to(tl.int64) * size + bias, 64) + columns[None, :]
        grad_k = tl.zeros((KEYS, WIDTH), tl.float32)
        grad_v = tl.zeros((KEYS, WIDTH), tl.float32)
        for ahead in range(0, n, ROWS):
            rows = ahead + tl.arange(0, ROWS)
            own = tl.load(PLACES + places + rows, mask=rows < n, other=0)
            q = _vectors(Q, own, 3 * width, rows < n, D, WIDTH)
            g = _vectors(GRAD + first * width + head * D, own, width, rows < n, D, WIDTH)
            lse = tl.load(LSE + head * tokens + line + rows, mask=rows < n, other=0.0)
            delta = tl.load(DELTA + head * tokens + line + rows, mask=rows < n, other=0.0)
            b = tl.load(biases + rows[:, None] * row_length).to(tl.float32)
            scores = tl.dot(q, tl.trans(k), b, input_precision=PRECISION)
            p = tl.math.exp2(scores * (scale * LOG2_E) - lse[:, None])
            grad_v = tl.dot(tl.trans(p.to(g.dtype)), g, grad_v, input_precision=PRECISION)
            slope = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            grad_k = tl.dot(tl.trans(slope.to(q.dtype)), q, grad_k, input_precision=PRECISION)
        grad_k = grad_k * scale
        GRAD_K = GRAD_QKV + first * 3 * width + width + head * D
        _write(GRAD_K, seen, 3 * width, columns < n, grad_k, D, WIDTH)
        _write(GRAD_K + width, seen, 3 * width, columns < n, grad_v, D, WIDTH)
        if PADDED:
            d = tl.arange(0, WIDTH)
            padding = ((columns >= n) & (columns < m))[:, None]
            sums = (
                GRAD_PAD + ((start + tl.program_id(2)) * tl.num_programs(0) + tile) * 3 * width + width + head * D + d
            )
            tl.store(sums, tl.sum(tl.where(padding, grad_k, 0.0), 0), mask=d < D)
            tl.store(sums + width, tl.sum(tl.where(padding, grad_v, 0.0), 0), mask=d < D)


@triton.jit(do_not_specialize=SIZES)
def grad_bias(
    QKV, PAD, BIAS, BOXES, PLACES, LSE, GRAD, DELTA, GROUPS, PARTS, size, tokens, heads, start, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of a kind's bias, summed over a group of boxes of that kind, in `(parts, H, size)`.

    A row of `GROUPS` is: the group's first box, its number of boxes, and its part.
    """
    group = GROUPS + (start + tl.program_id(2)) * 3
    box, count, part = tl.load(group), tl.load(group + 1), tl.load(group + 2)
    key_tile, row_tile, head = tl.program_id(0) // heads, tl.program_id(1), tl.program_id(0) % heads
    _, n, m, places, bias, row_length, _ = _box(BOXES, box)
    if (row_tile * ROWS < n) & (key_tile * KEYS < m):
        width = heads * D
        rows = row_tile * ROWS + tl.arange(0, ROWS)
        columns = key_tile * KEYS + tl.arange(0, KEYS)
        own = tl.load(PLACES + places + rows, mask=rows < n, other=0)
        seen = tl.load(PLACES + places + columns, mask=columns < n, other=0)
        entries = tl.multiple_of(head.to(tl.int64) * size + bias, 64) + rows[:, None] * row_length + columns[None, :]
        b = tl.load(BIAS + entries).to(tl.float32)
        grad = tl.zeros((ROWS, KEYS), tl.float32)
        for which in range(box, box + count):
            first = tl.load(BOXES + which * 8).to(tl.int64)
            line = tl.load(BOXES + which * 8 + 6)
            Q = QKV + first * 3 * width + head * D
            q = _vectors(Q, own, 3 * width, rows < n, D, WIDTH)
            k = _keys(Q + width, PAD + width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
            v = _keys(Q + 2 * width, PAD + 2 * width + head * D, seen, 3 * width, columns, n, D, WIDTH, PADDED)
            g = _vectors(GRAD + first * width + head * D, own, width, rows < n, D, WIDTH)
            lse = tl.load(LSE + head * tokens + line + rows, mask=rows < n, other=0.0)
            delta = tl.load(DELTA + head * tokens + line + rows, mask=rows < n, other=0.0)
            scores = tl.dot(q, tl.trans(k), b, input_precision=PRECISION)
            p = tl.math.exp2(scores * (scale * LOG2_E) - lse[:, None])
            grad += p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        tl.store(PARTS + part.to(tl.int64) * heads * size + entries, grad)
