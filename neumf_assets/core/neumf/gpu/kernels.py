"""Triton kernels of a training step: tiles of cells x genes, and Adam's moves of the tables.

A tile computes scores, objective and its share of all gradients without writing anything of the size of the block.
What tiles share of a gradient lies side by side and is added up in a fixed order, without atomics: a training repeats
bit for bit. Which cells a step has is read from memory of the card, so that a graph of steps can be replayed.

Run by ``TRITON_INTERPRET=1`` they need no GPU (bounds of loops are therefore ``tl.constexpr``).
"""

from __future__ import annotations

import triton
import triton.language as tl

POISSON, MSE, BCE = tl.constexpr(1), tl.constexpr(3), tl.constexpr(4)


@triton.jit
def product(x, y, PRECISION: tl.constexpr):
    """Matrix product, added up in float32; ``bf16`` rounds the factors first."""
    if PRECISION == "bf16":
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
    else:
        return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
def entry_loss(score, log_size, y, max_log_mean, OBJECTIVE: tl.constexpr):
    """Loss of entries, and its derivative by the score; as ``objectives.entry_loss``."""
    if OBJECTIVE == POISSON:
        log_mean = score + log_size
        inside = log_mean < max_log_mean
        log_mean = tl.minimum(log_mean, max_log_mean)
        mean = tl.exp(log_mean)
        loss = mean - y * log_mean
        slope = tl.where(inside, mean - y, 0.0)
    elif OBJECTIVE == MSE:
        size = tl.exp(log_size)
        loss = (size * score - y) * (size * score - y)
        slope = 2.0 * size * (size * score - y)
    else:
        shrunk = tl.exp(-tl.abs(score))
        observed = tl.where(y > 0, 1.0, 0.0)
        loss = tl.maximum(score, 0.0) - score * observed + tl.log(1.0 + shrunk)
        slope = tl.where(score > 0, 1.0, shrunk) / (1.0 + shrunk) - observed
    return loss, slope


@triton.jit
def corrected_rate(steps, beta1, beta2, log_beta1, log_beta2):
    """Adam's correction of rows that have been moved ``steps`` times (this one counted)."""
    taken = steps.to(tl.float64)
    correction = tl.sqrt(1.0 - tl.exp(taken * log_beta2)) / (1.0 - tl.exp(taken * log_beta1))
    return correction.to(tl.float32)


@triton.jit
def moved(value, gradient, first_at, second_at, keep, scale, beta1, beta2, epsilon):
    """Return values after Adam's step, and write its moments."""
    first = tl.load(first_at, mask=keep, other=0.0)
    second = tl.load(second_at, mask=keep, other=0.0)
    first = first + (1.0 - beta1) * (gradient - first)
    second = beta2 * second + (1.0 - beta2) * gradient * gradient
    tl.store(first_at, first, mask=keep)
    tl.store(second_at, second, mask=keep)
    return value - scale * first / (tl.sqrt(second) + epsilon)


@triton.jit
def move_part(
    table,
    first,
    second,
    rates,
    decays,
    at,
    k,
    has_k,
    inside,
    value,
    gradient,
    share,
    scale,
    beta1,
    beta2,
    epsilon,
):
    """Move rows of a table, ``value`` at ``at`` [rows, columns ``k``], against a gradient and the pull of the prior."""
    rate = tl.load(rates + k, mask=has_k, other=0.0)
    decay = tl.load(decays + k, mask=has_k, other=0.0) * share
    pulled = gradient + decay[None, :] * value
    scales = scale[:, None] * rate[None, :]
    value = moved(value, pulled, first + at, second + at, inside, scales, beta1, beta2, epsilon)
    tl.store(table + at, value, mask=inside)


@triton.jit
def step_of(at_step, n_steps):
    """Return the number of the step, and whether it is one: 0 where none is left."""
    step = tl.load(at_step)
    live = step < tl.load(n_steps)
    return tl.where(live, step, 0), live


@triton.jit
def gmf_tile(
    cells,
    genes,
    shifts,
    out,
    log_size,
    counts,
    order,
    begin,
    dataset,
    at_step,
    n_steps,
    cell_parts,
    gene_parts,
    offset_parts,
    bias_parts,
    losses,
    n_genes,
    size,
    most,
    max_log_mean,
    masked,
    SHIFTED: tl.constexpr,
    PADDED: tl.constexpr,
    TILE_CELLS: tl.constexpr,
    TILE_GENES: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of a step of matrix factorisation: what it adds to the loss and to all gradients."""
    row_tile, gene_tile = tl.program_id(0), tl.program_id(1)
    step, live = step_of(at_step, n_steps)
    start = tl.load(begin + step)
    taken = tl.where(live, tl.load(begin + step + 1) - start, 0)
    row = row_tile * TILE_CELLS + tl.arange(0, TILE_CELLS)
    gene = gene_tile * TILE_GENES + tl.arange(0, TILE_GENES)
    k = tl.arange(0, PADDED)
    has_row, has_gene, has_k = row < taken, gene < n_genes, k < size
    cell = tl.load(order + start + row, mask=has_row, other=0)
    shifted = tl.load(dataset + step) * n_genes + gene
    weight = tl.load(out + k, mask=has_k, other=0.0)
    p_at = cells + cell[:, None] * (size + 1) + k[None, :]
    p = tl.load(p_at, mask=has_row[:, None] & has_k[None, :], other=0.0) * weight[None, :]
    q_in = has_gene[:, None] & has_k[None, :]
    q = tl.load(genes + gene[:, None] * size + k[None, :], mask=q_in, other=0.0)
    if SHIFTED:
        q += tl.load(shifts + shifted[:, None] * (size + 1) + k[None, :], mask=q_in, other=0.0)
        bias = tl.load(shifts + shifted * (size + 1) + size, mask=has_gene, other=0.0)
    else:
        bias = tl.load(shifts + shifted, mask=has_gene, other=0.0)
    offset = tl.load(cells + cell * (size + 1) + size, mask=has_row, other=0.0)
    sizes = tl.load(log_size + cell, mask=has_row, other=0.0)
    inside = has_row[:, None] & has_gene[None, :]
    y = tl.load(counts + cell[:, None] * n_genes + gene[None, :], mask=inside, other=0).to(tl.float32)
    used = inside & (y != masked)
    score = product(p, tl.trans(q), PRECISION) + bias[None, :] + offset[:, None]
    loss, slope = entry_loss(score, sizes[:, None], y, max_log_mean, OBJECTIVE)
    slope = tl.where(used, slope, 0.0)
    summed = losses + row_tile * tl.num_programs(1) + gene_tile
    tl.store(summed, tl.load(summed) + tl.sum(tl.where(used, loss, 0.0)).to(tl.float64))
    in_most = row < most
    part = gene_tile * most + row
    tl.store(
        cell_parts + part[:, None] * PADDED + k[None, :], product(slope, q, PRECISION), mask=in_most[:, None]
    )
    tl.store(offset_parts + part, tl.sum(slope, 1), mask=in_most)
    part = row_tile * n_genes + gene
    found = product(tl.trans(slope), p, PRECISION)
    tl.store(gene_parts + part[:, None] * PADDED + k[None, :], found, mask=has_gene[:, None])
    tl.store(bias_parts + part, tl.sum(slope, 0), mask=has_gene)


@triton.jit
def move_genes(
    genes,
    genes_first,
    genes_second,
    genes_steps,
    genes_rate,
    genes_decay,
    shifts,
    shifts_first,
    shifts_second,
    shifts_steps,
    shifts_rate,
    shifts_decay,
    expected_bias,
    gene_parts,
    bias_parts,
    dataset,
    rate_share,
    share,
    dataset_share,
    at_step,
    n_steps,
    n_genes,
    size,
    bias_prior,
    beta1,
    beta2,
    epsilon,
    log_beta1,
    log_beta2,
    PARTS: tl.constexpr,
    SHIFTED: tl.constexpr,
    GENES_MOVE: tl.constexpr,
    SHIFTS_MOVE: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add up the genes' gradients of a step; move the genes, and their embeddings and biases of the dataset."""
    step, live = step_of(at_step, n_steps)
    gene = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.arange(0, PADDED)
    has_gene = gene < tl.where(live, n_genes, 0)
    inside = has_gene[:, None] & (k < size)[None, :]
    gradient = tl.zeros([TILE, PADDED], tl.float32)
    by_bias = tl.zeros([TILE], tl.float32)
    for part in range(PARTS):
        at = part * n_genes + gene
        gradient += tl.load(gene_parts + at[:, None] * PADDED + k[None, :], mask=inside, other=0.0)
        by_bias += tl.load(bias_parts + at, mask=has_gene, other=0.0)
    peak = tl.load(rate_share + step)
    if GENES_MOVE:
        steps = tl.load(genes_steps + gene, mask=has_gene, other=0.0) + 1.0
        tl.store(genes_steps + gene, steps, mask=has_gene)
        scale = peak * corrected_rate(steps, beta1, beta2, log_beta1, log_beta2)
        at = gene[:, None] * size + k[None, :]
        value = tl.load(genes + at, mask=inside, other=0.0)
        own = tl.load(share + step)
        move_part(
            genes,
            genes_first,
            genes_second,
            genes_rate,
            genes_decay,
            at,
            k,
            k < size,
            inside,
            value,
            gradient,
            own,
            scale,
            beta1,
            beta2,
            epsilon,
        )
    if SHIFTS_MOVE:
        own = tl.load(dataset_share + step)
        row = tl.load(dataset + step) * n_genes + gene
        steps = tl.load(shifts_steps + row, mask=has_gene, other=0.0) + 1.0
        tl.store(shifts_steps + row, steps, mask=has_gene)
        scale = peak * corrected_rate(steps, beta1, beta2, log_beta1, log_beta2)
        last = row
        column = 0
        if SHIFTED:
            at = row[:, None] * (size + 1) + k[None, :]
            value = tl.load(shifts + at, mask=inside, other=0.0)
            move_part(
                shifts,
                shifts_first,
                shifts_second,
                shifts_rate,
                shifts_decay,
                at,
                k,
                k < size,
                inside,
                value,
                gradient,
                own,
                scale,
                beta1,
                beta2,
                epsilon,
            )
            last = row * (size + 1) + size
            column = size
        bias = tl.load(shifts + last, mask=has_gene, other=0.0)
        by_bias += bias_prior * own * (bias - tl.load(expected_bias + row, mask=has_gene, other=0.0))
        by_bias += tl.load(shifts_decay + column) * own * bias
        scale = scale * tl.load(shifts_rate + column)
        bias = moved(
            bias, by_bias, shifts_first + last, shifts_second + last, has_gene, scale, beta1, beta2, epsilon
        )
        tl.store(shifts + last, bias, mask=has_gene)


@triton.jit
def move_cells(
    cells,
    cells_first,
    cells_second,
    cells_steps,
    cells_rate,
    cells_decay,
    out,
    cell_parts,
    offset_parts,
    out_parts,
    order,
    begin,
    rate_share,
    at_step,
    n_steps,
    size,
    most,
    beta1,
    beta2,
    epsilon,
    log_beta1,
    log_beta2,
    PARTS: tl.constexpr,
    CELLS_MOVE: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add up the gradients of a step's cells; move them, and tell what they say of the output's weights."""
    step, live = step_of(at_step, n_steps)
    start = tl.load(begin + step)
    taken = tl.where(live, tl.load(begin + step + 1) - start, 0)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.arange(0, PADDED)
    has_row = row < taken
    inside = has_row[:, None] & (k < size)[None, :]
    cell = tl.load(order + start + row, mask=has_row, other=0)
    gradient = tl.zeros([TILE, PADDED], tl.float32)
    by_offset = tl.zeros([TILE], tl.float32)
    for part in range(PARTS):
        at = part * most + row
        gradient += tl.load(cell_parts + at[:, None] * PADDED + k[None, :], mask=inside, other=0.0)
        by_offset += tl.load(offset_parts + at, mask=has_row, other=0.0)
    at = cell[:, None] * (size + 1) + k[None, :]
    value = tl.load(cells + at, mask=inside, other=0.0)
    tl.store(out_parts + tl.program_id(0) * PADDED + k, tl.sum(gradient * value, 0))
    if CELLS_MOVE:
        steps = tl.load(cells_steps + cell, mask=has_row, other=0.0) + 1.0
        tl.store(cells_steps + cell, steps, mask=has_row)
        peak = tl.load(rate_share + step)
        scale = peak * corrected_rate(steps, beta1, beta2, log_beta1, log_beta2)
        weight = tl.load(out + k, mask=k < size, other=0.0)
        by_cell = gradient * weight[None, :]
        move_part(
            cells,
            cells_first,
            cells_second,
            cells_rate,
            cells_decay,
            at,
            k,
            k < size,
            inside,
            value,
            by_cell,
            1.0,
            scale,
            beta1,
            beta2,
            epsilon,
        )
        last = cell * (size + 1) + size
        offset = tl.load(cells + last, mask=has_row, other=0.0)
        by_offset += tl.load(cells_decay + size) * offset
        scale = scale * tl.load(cells_rate + size)
        offset = moved(
            offset, by_offset, cells_first + last, cells_second + last, has_row, scale, beta1, beta2, epsilon
        )
        tl.store(cells + last, offset, mask=has_row)


@triton.jit
def end_step(
    out,
    out_first,
    out_second,
    out_steps,
    out_rate,
    out_decay,
    out_parts,
    rate_share,
    share,
    at_step,
    n_steps,
    size,
    beta1,
    beta2,
    epsilon,
    log_beta1,
    log_beta2,
    PARTS: tl.constexpr,
    OUT_MOVES: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Move the output's weights, and go on to the next step."""
    at = tl.load(at_step)
    live = at < tl.load(n_steps)
    step = tl.where(live, at, 0)
    if OUT_MOVES:
        k = tl.arange(0, PADDED)
        inside = k < tl.where(live, size, 0)
        gradient = tl.zeros([PADDED], tl.float32)
        for part in range(PARTS):
            gradient += tl.load(out_parts + part * PADDED + k)
        before = tl.load(out_steps)
        steps = before + 1.0
        value = tl.load(out + k, mask=inside, other=0.0)
        gradient += tl.load(out_decay + k, mask=inside, other=0.0) * tl.load(share + step) * value
        scale = tl.load(rate_share + step) * corrected_rate(steps, beta1, beta2, log_beta1, log_beta2)
        scale = scale * tl.load(out_rate + k, mask=inside, other=0.0)
        value = moved(value, gradient, out_first + k, out_second + k, inside, scale, beta1, beta2, epsilon)
        tl.store(out + k, value, mask=inside)
        tl.store(out_steps, tl.where(live, steps, before))
    tl.store(at_step, at + 1)


@triton.jit
def tower_tile(
    cell_side,
    gene_side,
    linear_part,
    log_size,
    counts,
    cells,
    taken_at,
    weights2,
    biases2,
    weights3,
    biases3,
    weights4,
    biases4,
    out,
    by_linear,
    cell_parts,
    gene_parts,
    weights2_parts,
    biases2_parts,
    weights3_parts,
    biases3_parts,
    weights4_parts,
    biases4_parts,
    out_parts,
    losses,
    n_genes,
    most,
    max_log_mean,
    masked,
    CHUNK: tl.constexpr,
    TILE_CELLS: tl.constexpr,
    TILE_GENES: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    H3: tl.constexpr,
    H4: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some genes x a chunk of a step's cells: the tower forward, the objective, and the tower backward.

    ``cell_side`` [most, H1] and ``gene_side`` [genes, H1] are the first layer's, weights ``[H(l), H(l-1)]``.
    """
    gene_tile, chunk = tl.program_id(0), tl.program_id(1)
    program = chunk * tl.num_programs(0) + gene_tile
    PAIRS: tl.constexpr = TILE_CELLS * TILE_GENES
    k1, k2, k3, k4 = tl.arange(0, H1), tl.arange(0, H2), tl.arange(0, H3), tl.arange(0, H4)
    gene = gene_tile * TILE_GENES + tl.arange(0, TILE_GENES)
    has_gene = gene < n_genes
    c = tl.load(gene_side + gene[:, None] * H1 + k1[None, :], mask=has_gene[:, None], other=0.0)
    w2 = tl.load(weights2 + k2[:, None] * H1 + k1[None, :])
    w3 = tl.load(weights3 + k3[:, None] * H2 + k2[None, :])
    w4 = tl.load(weights4 + k4[:, None] * H3 + k3[None, :])
    b2, b3, b4 = tl.load(biases2 + k2), tl.load(biases3 + k3), tl.load(biases4 + k4)
    o = tl.load(out + k4)
    by_c = tl.zeros([TILE_GENES, H1], tl.float32)
    by_w2, by_b2 = tl.zeros([H2, H1], tl.float32), tl.zeros([H2], tl.float32)
    by_w3, by_b3 = tl.zeros([H3, H2], tl.float32), tl.zeros([H3], tl.float32)
    by_w4, by_b4 = tl.zeros([H4, H3], tl.float32), tl.zeros([H4], tl.float32)
    by_out = tl.zeros([H4], tl.float32)
    summed = 0.0
    taken = tl.load(taken_at)
    for start in range(0, CHUNK, TILE_CELLS):
        row = chunk * CHUNK + start + tl.arange(0, TILE_CELLS)
        in_most = row < most
        has_row = row < taken
        cell = tl.load(cells + row, mask=has_row, other=0)
        a = tl.load(cell_side + row[:, None] * H1 + k1[None, :], mask=in_most[:, None], other=0.0)
        h1 = tl.reshape(tl.maximum(a[:, None, :] + c[None, :, :], 0.0), [PAIRS, H1])
        z2 = product(h1, tl.trans(w2), PRECISION) + b2[None, :]
        h2 = tl.maximum(z2, 0.0)
        z3 = product(h2, tl.trans(w3), PRECISION) + b3[None, :]
        h3 = tl.maximum(z3, 0.0)
        z4 = product(h3, tl.trans(w4), PRECISION) + b4[None, :]
        h4 = tl.maximum(z4, 0.0)
        inside = has_row[:, None] & has_gene[None, :]
        at = row[:, None] * n_genes + gene[None, :]
        score = tl.reshape(tl.sum(h4 * o[None, :], 1), [TILE_CELLS, TILE_GENES])
        score += tl.load(linear_part + at, mask=inside, other=0.0)
        y = tl.load(counts + cell[:, None] * n_genes + gene[None, :], mask=inside, other=0).to(tl.float32)
        sizes = tl.load(log_size + cell, mask=has_row, other=0.0)
        used = inside & (y != masked)
        loss, slope = entry_loss(score, sizes[:, None], y, max_log_mean, OBJECTIVE)
        slope = tl.where(used, slope, 0.0)
        summed += tl.sum(tl.where(used, loss, 0.0))
        tl.store(by_linear + at, slope, mask=in_most[:, None] & has_gene[None, :])
        by_score = tl.reshape(slope, [PAIRS])
        by_out += tl.sum(h4 * by_score[:, None], 0)
        d4 = tl.where(z4 > 0, by_score[:, None] * o[None, :], 0.0)
        by_b4 += tl.sum(d4, 0)
        by_w4 += product(tl.trans(d4), h3, PRECISION)
        d3 = tl.where(z3 > 0, product(d4, w4, PRECISION), 0.0)
        by_b3 += tl.sum(d3, 0)
        by_w3 += product(tl.trans(d3), h2, PRECISION)
        d2 = tl.where(z2 > 0, product(d3, w3, PRECISION), 0.0)
        by_b2 += tl.sum(d2, 0)
        by_w2 += product(tl.trans(d2), h1, PRECISION)
        d1 = tl.reshape(tl.where(h1 > 0, product(d2, w2, PRECISION), 0.0), [TILE_CELLS, TILE_GENES, H1])
        by_c += tl.sum(d1, 0)
        part = (gene_tile * most + row)[:, None] * H1 + k1[None, :]
        tl.store(cell_parts + part, tl.sum(d1, 1), mask=in_most[:, None])
    part = (chunk * n_genes + gene)[:, None] * H1 + k1[None, :]
    tl.store(gene_parts + part, by_c, mask=has_gene[:, None])
    tl.store(weights2_parts + program * H2 * H1 + k2[:, None] * H1 + k1[None, :], by_w2)
    tl.store(weights3_parts + program * H3 * H2 + k3[:, None] * H2 + k2[None, :], by_w3)
    tl.store(weights4_parts + program * H4 * H3 + k4[:, None] * H3 + k3[None, :], by_w4)
    tl.store(biases2_parts + program * H2 + k2, by_b2)
    tl.store(biases3_parts + program * H3 + k3, by_b3)
    tl.store(biases4_parts + program * H4 + k4, by_b4)
    tl.store(out_parts + program * H4 + k4, by_out)
    tl.store(losses + program, summed)


ALL, OF_STEP, OF_DATASET = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def rows_of(position, n_rows, order, begin, dataset, at_step, n_steps, ROWS: tl.constexpr):
    """Return which rows of a table a step moves, which of them there are, and the number of the step."""
    step, live = step_of(at_step, n_steps)
    if ROWS == OF_STEP:
        start = tl.load(begin + step)
        there = position < tl.where(live, tl.load(begin + step + 1) - start, 0)
        row = tl.load(order + start + position, mask=there, other=0)
    else:
        there = position < tl.where(live, n_rows, 0)
        row = position + step * 0
        if ROWS == OF_DATASET:
            row += tl.load(dataset + step) * n_rows
    return row, there, step


@triton.jit
def move_rows(
    table,
    first,
    second,
    steps,
    rates,
    decays,
    gradient,
    order,
    begin,
    dataset,
    rate_share,
    shares,
    at_step,
    n_steps,
    n_rows,
    columns,
    beta1,
    beta2,
    epsilon,
    log_beta1,
    log_beta2,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Move a table's rows of a step against ``gradient`` [rows, columns] and the pull of the prior."""
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row, there, step = rows_of(position, n_rows, order, begin, dataset, at_step, n_steps, ROWS)
    has_column = column < columns
    inside = there[:, None] & has_column[None, :]
    share = 1.0
    if ROWS != OF_STEP:
        share = tl.load(shares + step)
    taken = tl.load(steps + row, mask=there, other=0.0) + 1.0
    scale = tl.load(rate_share + step) * corrected_rate(taken, beta1, beta2, log_beta1, log_beta2)
    at = row[:, None] * columns + column[None, :]
    value = tl.load(table + at, mask=inside, other=0.0)
    found = tl.load(gradient + position[:, None] * columns + column[None, :], mask=inside, other=0.0)
    move_part(
        table,
        first,
        second,
        rates,
        decays,
        at,
        column,
        has_column,
        inside,
        value,
        found,
        share,
        scale,
        beta1,
        beta2,
        epsilon,
    )


@triton.jit
def count_rows(
    steps, order, begin, dataset, at_step, n_steps, n_rows, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """Count a step for the rows that it has moved."""
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row, there, _ = rows_of(position, n_rows, order, begin, dataset, at_step, n_steps, ROWS)
    tl.store(steps + row, tl.load(steps + row, mask=there, other=0.0) + 1.0, mask=there)


@triton.jit
def advance(at_step):
    """Go on to the next step."""
    tl.store(at_step, tl.load(at_step) + 1)
