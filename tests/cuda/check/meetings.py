"""Threads that meet on the simulated device: shuffles, votes, barriers, atomics, tensor cores; and vectors in memory."""
import ctypes
import random
from fractions import Fraction

from exact import BF16, F16, F32, bits_of, value_of

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
LANES = 32


def shuffled(mode, lane, b, c):
    """The lane that is read and whether it is in range: the manual's pseudocode of shfl.sync."""
    clamp, segment = c & 31, c >> 8 & 31
    most, least = lane & segment | clamp & ~segment & 31, lane & segment
    if mode == "up":
        source = lane - b
        in_range = source >= most
    elif mode == "down":
        source = lane + b
        in_range = source <= most
    elif mode == "bfly":
        source = lane ^ b
        in_range = source <= most
    else:
        source = least | b & ~segment & 31
        in_range = source <= most
    return (source if in_range else lane), in_range


def kernel(name, body, parameters=("from", "to")):
    given = ", ".join(f".param .u64 {parameter}" for parameter in parameters)
    loads = " ".join(f".reg .u64 {parameter}_; ld.param.u64 {parameter}_, [{parameter}];" for parameter in parameters)
    return f".visible .entry {name}({given})\n{{\n.reg .u32 i; .reg .u64 at; mov.u32 i, %tid.x; {loads}\n{body}\nret;\n}}\n"


def each(kind, name="v"):
    """Thread i's value of `from`."""
    return f".reg .b32 {name}; mul.wide.u32 at, i, 4; add.u64 at, from_, at; ld.global.b32 {name}, [at];" if kind == 32 else ""


def keep(name, place="i"):
    return f"mul.wide.u32 at, {place}, 4; add.u64 at, to_, at; st.global.b32 [at], {name};"


def check_shuffles(driver, draw):
    cases = [(mode, b, c) for mode in ("up", "down", "bfly", "idx") for b in (0, 1, 5, 16, 31) for c in ((0, 0x1800) if mode == "up" else (31, 0x181f, 0x1c03))]
    body = each(32) + ".reg .b32 got, place, flag; .reg .pred p;\n"
    for index, (mode, b, c) in enumerate(cases):
        body += f"shfl.sync.{mode}.b32 got|p, v, {b}, {c}, 0xffffffff; selp.u32 flag, 1, 0, p; add.u32 place, i, {64 * index}; {keep('got', 'place')} add.u32 place, place, 32; {keep('flag', 'place')}\n"
    values = [draw.getrandbits(32) for _ in range(LANES)]
    out = driver.empty(4 * 64 * len(cases))
    driver.launch(driver.function(driver.module(HEADER + kernel("shuffle", body)), "shuffle"), [1], [LANES], [driver.buffer(values, "I"), out])
    driver.synchronize()
    found = out.read("I")
    for index, (mode, b, c) in enumerate(cases):
        for lane in range(LANES):
            source, in_range = shuffled(mode, lane, b, c)
            got = found[64 * index + lane], found[64 * index + 32 + lane]
            if got != (values[source], int(in_range)):
                yield f"shfl.{mode} {b}, {c:#x} gave lane {lane} {got}, expected {(values[source], in_range)}"


def check_votes(driver, draw):
    values = [draw.getrandbits(1) for _ in range(LANES)]
    body = each(32) + ".reg .pred q, r; .reg .b32 got, place; setp.ne.u32 q, v, 0;\n"
    body += f"vote.sync.ballot.b32 got, q, 0xffffffff; {keep('got')}\n"
    for index, mode in enumerate(("any", "all", "uni"), 1):
        body += f"vote.sync.{mode}.pred r, q, 0xffffffff; selp.u32 got, 1, 0, r; add.u32 place, i, {LANES * index}; {keep('got', 'place')}\n"
    # The odd lanes alone, as after a branch.
    body += ".reg .b32 odd; and.b32 odd, i, 1; setp.eq.u32 r, odd, 0; @r bra END;\n"
    body += f"vote.sync.ballot.b32 got, q, 0xaaaaaaaa; add.u32 place, i, {LANES * 4}; {keep('got', 'place')}\nEND:\n"
    out = driver.buffer([0] * LANES * 5, "I")
    driver.launch(driver.function(driver.module(HEADER + kernel("votes", body)), "votes"), [1], [LANES], [driver.buffer(values, "I"), out])
    driver.synchronize()
    found = out.read("I")
    ballot = sum(value << lane for lane, value in enumerate(values))
    expected = [ballot] * LANES + [int(any(values))] * LANES + [int(all(values))] * LANES + [int(len(set(values)) == 1)] * LANES
    expected += [ballot & 0xaaaaaaaa if lane % 2 else 0 for lane in range(LANES)]
    if found != expected:
        yield f"votes over {ballot:#x} gave {found}"


def check_blocks(driver, draw):
    """Shared memory across a barrier, atomics over blocks, vectors, and grids of three sides."""
    body = each(32) + """
.shared .align 16 .b8 kept[1024];
.reg .u32 mine, other; .reg .b32 got;
mov.u32 mine, kept; mad.lo.u32 mine, i, 4, mine; st.shared.b32 [mine], v;
bar.sync 0;
.reg .u32 last, n; mov.u32 n, %ntid.x; sub.u32 last, n, 1; sub.u32 last, last, i;
mov.u32 other, kept; mad.lo.u32 other, last, 4, other; ld.shared.b32 got, [other];
""" + keep("got") + """
.reg .u32 block, x; mov.u32 block, %ctaid.z; mov.u32 x, %nctaid.y; mad.lo.u32 block, block, x, %ctaid.y; mov.u32 x, %nctaid.x; mad.lo.u32 block, block, x, %ctaid.x;
.reg .u64 sums; add.u64 sums, to_, 1024; .reg .u32 before; atom.global.add.u32 before, [sums], block;
"""
    values = [draw.getrandbits(32) for _ in range(256)]
    out = driver.buffer([0] * 257, "I")
    driver.launch(driver.function(driver.module(HEADER + kernel("blocks", body)), "blocks"), [2, 3, 2], [256], [driver.buffer(values, "I"), out])
    driver.synchronize()
    found = out.read("I")
    if found[:256] != values[::-1]:
        yield "a barrier does not show one thread's shared memory to the others"
    if found[256] != 256 * sum(range(12)):
        yield f"atomics over 12 blocks gave {found[256]}"


def check_tensor_cores(driver, draw):
    for kind, format in (("f16", F16), ("bf16", BF16)):
        a = [[bits_of(format.round(Fraction(draw.randrange(-999, 999), 512)), format) for _ in range(16)] for _ in range(16)]
        b = [[bits_of(format.round(Fraction(draw.randrange(-999, 999), 512)), format) for _ in range(8)] for _ in range(16)]
        c = [[bits_of(Fraction(draw.randrange(-99, 99), 8), F32) for _ in range(8)] for _ in range(16)]
        pair = lambda low, high: low | high << 16
        fragments = []
        # Who holds what: the manual's "Matrix fragments for mma.m16n8k16".
        for lane in range(LANES):
            group, two = lane // 4, lane % 4 * 2
            rows = [(group, two), (group + 8, two), (group, two + 8), (group + 8, two + 8)]
            fragments += [pair(a[r][k], a[r][k + 1]) for r, k in rows]
            fragments += [pair(b[k][group], b[k + 1][group]) for k in (two, two + 8)]
            fragments += [c[group][two], c[group][two + 1], c[group + 8][two], c[group + 8][two + 1]]
        body = ".reg .b32 x<10>; .reg .f32 y<4>, z<4>; mul.wide.u32 at, i, 40; add.u64 at, from_, at;\n"
        body += " ".join(f"ld.global.b32 x{k}, [at+{4 * k}];" for k in range(10)) + " ".join(f"mov.b32 y{k}, x{6 + k};" for k in range(4))
        body += (f"\nmma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{z0, z1, z2, z3}}, {{x0, x1, x2, x3}}, {{x4, x5}}, {{y0, y1, y2, y3}};\n"
                 "mul.wide.u32 at, i, 16; add.u64 at, to_, at; st.global.v4.f32 [at], {z0, z1, z2, z3};")
        out = driver.empty(LANES * 16)
        driver.launch(driver.function(driver.module(HEADER + kernel("multiply", body)), "multiply"), [1], [LANES], [driver.buffer(fragments, "I"), out])
        driver.synchronize()
        found = out.read("I")
        for lane in range(LANES):
            for part in range(4):
                row, column = lane // 4 + 8 * (part // 2), lane % 4 * 2 + part % 2
                exact = value_of(c[row][column], F32) + sum(value_of(a[row][k], format) * value_of(b[k][column], format) for k in range(16))
                if abs(value_of(found[4 * lane + part], F32) - exact) > abs(exact) / 2**22 + Fraction(1, 2**22):
                    yield f"mma of {kind}: ({row}, {column}) is {float(value_of(found[4 * lane + part], F32))}, expected {float(exact)}"


def check_matrices(driver, draw):
    """ldmatrix x4, plain and transposed."""
    values = [draw.getrandbits(16) for _ in range(256)]
    body = """.shared .align 16 .b8 kept[512];
.reg .b32 v; .reg .u32 mine, row; mul.wide.u32 at, i, 16; add.u64 at, from_, at; mov.u32 mine, kept; mad.lo.u32 row, i, 16, mine;
.reg .b32 w<4>; ld.global.v4.b32 {w0, w1, w2, w3}, [at]; st.shared.v4.b32 [row], {w0, w1, w2, w3}; bar.sync 0;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {w0, w1, w2, w3}, [row]; mul.wide.u32 at, i, 16; add.u64 at, to_, at; st.global.v4.b32 [at], {w0, w1, w2, w3};
ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {w0, w1, w2, w3}, [row]; st.global.v4.b32 [at+512], {w0, w1, w2, w3};"""
    out = driver.empty(1024)
    driver.launch(driver.function(driver.module(HEADER + kernel("matrices", body)), "matrices"), [1], [LANES], [driver.buffer(values, "H"), out])
    driver.synchronize()
    found = out.read("H")
    for lane in range(LANES):
        for matrix in range(4):
            at = (lane * 4 + matrix) * 2
            row, column = lane // 4, lane % 4 * 2
            cell = lambda row, column: values[matrix * 64 + row * 8 + column]
            if found[at:at + 2] != [cell(row, column), cell(row, column + 1)]:
                yield f"ldmatrix: lane {lane} has other values of matrix {matrix}"
            if found[256 + at:256 + at + 2] != [cell(column, row), cell(column + 1, row)]:
                yield f"ldmatrix.trans: lane {lane} has other values of matrix {matrix}"


def check(driver):
    draw = random.Random(2)
    checks = [check_shuffles, check_votes, check_blocks, check_tensor_cores, check_matrices]
    return [problem for one in checks for problem in one(driver, draw)]
