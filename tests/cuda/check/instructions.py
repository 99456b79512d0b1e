"""PTX instructions on the simulated device against exact arithmetic and the PTX manual's rules."""
import collections
import math
import random
from fractions import Fraction

from exact import BF16, E4M3, F16, F32, F64, bits_of, value_of

FLOATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
BITS = {"f16": 16, "bf16": 16, "b16": 16, "s16": 16, "u16": 16, "f32": 32, "b32": 32, "s32": 32, "u32": 32, "f64": 64, "b64": 64, "s64": 64, "u64": 64}
CASES_EACH = 400

Case = collections.namedtuple("Case", "text inputs output expected")
cases = []


def case(text, inputs, output):
    """`text`: instructions over {a}, {b}, {c} and {d}, the result; the function gives what it has to be, as bits."""
    def add(expected):
        cases.append(Case(text, tuple(inputs.split()), output, expected))
        return expected
    return add


def floating(text, inputs, output, exact, mode="n"):
    """An instruction whose result is an exact one, rounded once; what is not finite is the host's arithmetic, which is IEEE's."""
    formats = [FLOATS[name] for name in inputs.split()]

    def expected(*bits):
        values = [value_of(b, f) for b, f in zip(bits, formats)]
        if all(isinstance(value, Fraction) for value in values):
            found = exact(*values)
            if found is None:
                return None
            rounded = FLOATS[output].round(found, mode)
            # The sign of a zero is not looked at where the exact result is zero.
            return None if rounded == 0 else bits_of(rounded, FLOATS[output])
        return None
    case(text, inputs, output)(expected)


def signed(bits, width):
    return bits - (1 << width) if bits >> (width - 1) else bits


def product(a, b):
    return a * b


def quotient(a, b):
    return a / b if b else None


for mode, suffix in (("n", "rn"), ("z", "rz"), ("m", "rm"), ("p", "rp")):
    floating(f"add.{suffix}.f32 {{d}}, {{a}}, {{b}};", "f32 f32", "f32", lambda a, b: a + b, mode)
    floating(f"sub.{suffix}.f32 {{d}}, {{a}}, {{b}};", "f32 f32", "f32", lambda a, b: a - b, mode)
    floating(f"mul.{suffix}.f32 {{d}}, {{a}}, {{b}};", "f32 f32", "f32", product, mode)
    floating(f"fma.{suffix}.f32 {{d}}, {{a}}, {{b}}, {{c}};", "f32 f32 f32", "f32", lambda a, b, c: a * b + c, mode)
    floating(f"div.{suffix}.f32 {{d}}, {{a}}, {{b}};", "f32 f32", "f32", quotient, mode)
    floating(f"cvt.{suffix}.f32.f64 {{d}}, {{a}};", "f64", "f32", lambda a: a, mode)
for kind in ("f16", "bf16"):
    floating(f"add.rn.{kind} {{d}}, {{a}}, {{b}};" if kind == "f16" else "fma.rn.bf16 {d}, {a}, {b}, {b};", f"{kind} {kind}", kind,
             (lambda a, b: a + b) if kind == "f16" else (lambda a, b: a * b + b))
    floating(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}};", f"{kind} {kind} {kind}", kind, lambda a, b, c: a * b + c)
    floating(f"cvt.rn.{kind}.f32 {{d}}, {{a}};", "f32", kind, lambda a: a)
    floating(f"cvt.rz.{kind}.f32 {{d}}, {{a}};", "f32", kind, lambda a: a, "z")
    floating(f"cvt.f32.{kind} {{d}}, {{a}};", kind, "f32", lambda a: a)
floating("mul.rn.f16 {d}, {a}, {b};", "f16 f16", "f16", product)
floating("sub.rn.f16 {d}, {a}, {b};", "f16 f16", "f16", lambda a, b: a - b)
floating("cvt.rn.f16.f64 {d}, {a};", "f64", "f16", lambda a: a)
floating("fma.rn.f64 {d}, {a}, {b}, {c};", "f64 f64 f64", "f64", lambda a, b, c: a * b + c)


def to_integer(kind, rounded):
    """cvt from f32: rounded to a whole number, then to the nearest one there is; NaN is 0."""
    width, is_signed = BITS[kind], kind[0] == "s"
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)

    def expected(bits):
        value = value_of(bits, F32)
        if isinstance(value, float):
            return 0 if math.isnan(value) else (high if value > 0 else low) & ((1 << width) - 1)
        return min(max(rounded(value), low), high) & ((1 << width) - 1)
    return expected


for kind in ("s32", "u32", "s64", "u64"):
    for suffix, rounded in (("rzi", math.trunc), ("rni", round), ("rmi", math.floor), ("rpi", math.ceil)):
        case(f"cvt.{suffix}.{kind}.f32 {{d}}, {{a}};", "f32", kind)(to_integer(kind, rounded))
for kind in ("s32", "u32", "s64", "u64"):
    for mode, suffix in (("n", "rn"), ("z", "rz")):
        def from_integer(bits, kind=kind, mode=mode):
            value = signed(bits, BITS[kind]) if kind[0] == "s" else bits
            return bits_of(F32.round(Fraction(value), mode), F32)
        case(f"cvt.{suffix}.f32.{kind} {{d}}, {{a}};", kind, "f32")(from_integer)


def e4m3_bits(bits):
    value = value_of(bits, F32)
    sign = 128 if bits >> 31 else 0
    if isinstance(value, float):
        return 127 if math.isnan(value) else sign | 126
    rounded = min(abs(E4M3.round(value)), Fraction(448))
    return sign | next(code for code in range(127) if value_of(code, E4M3) == rounded)


@case("cvt.rn.satfinite.e4m3x2.f32 {d}, {a}, {b};", "f32 f32", "b16")
def _(a, b):
    return e4m3_bits(a) << 8 | e4m3_bits(b)


@case("cvt.rn.f16x2.e4m3x2 {d}, {a};", "b16", "b32")
def _(pair):
    halves = [value_of(pair >> shift & 255, E4M3) for shift in (0, 8)]
    if any(isinstance(half, float) for half in halves) or any(half == 0 for half in halves):
        return None
    return bits_of(halves[1], F16) << 16 | bits_of(halves[0], F16)


@case("cvt.rn.f16x2.f32 {d}, {a}, {b};", "f32 f32", "b32")
def _(a, b):
    values = [value_of(bits, F32) for bits in (b, a)]
    if any(isinstance(value, float) for value in values):
        return None
    rounded = [F16.round(value) for value in values]
    return None if 0 in rounded else bits_of(rounded[1], F16) << 16 | bits_of(rounded[0], F16)


def integer(text, inputs, output, expected):
    """`expected` gets integers, signed where their type is; its result is taken modulo the output's width."""
    kinds = inputs.split()

    def bits(*given):
        values = [signed(value, BITS[kind]) if kind[0] == "s" else value for value, kind in zip(given, kinds)]
        return expected(*values) & ((1 << BITS[output]) - 1)
    case(text, inputs, output)(bits)


def permuted(a, b, selector):
    both = b << 32 | a
    found = 0
    for place in range(4):
        which = selector >> 4 * place & 15
        byte = both >> 8 * (which & 7) & 255
        found |= ((255 if byte & 128 else 0) if which & 8 else byte) << 8 * place
    return found


def extracted(value, position, length, width, is_signed):
    """bfe, as the manual's pseudocode has it."""
    position, length = position & 255, length & 255
    sign_at = min(position + length - 1, width - 1)
    sign = value >> sign_at & 1 if is_signed and length else 0
    found = 0
    for at in range(width):
        found |= (value >> position + at & 1 if at < length and position + at < width else sign) << at
    return found


def inserted(field, into, position, length, width):
    """bfi, as the manual's pseudocode has it."""
    position, length = position & 255, length & 255
    for at in range(length):
        if position + at >= width:
            break
        into = into & ~(1 << position + at) | (field >> at & 1) << position + at
    return into


integer("mul.hi.s32 {d}, {a}, {b};", "s32 s32", "s32", lambda a, b: a * b >> 32)
integer("mul.hi.u32 {d}, {a}, {b};", "u32 u32", "u32", lambda a, b: a * b >> 32)
integer("mul.hi.u64 {d}, {a}, {b};", "u64 u64", "u64", lambda a, b: a * b >> 64)
integer("mul.wide.s32 {d}, {a}, {b};", "s32 s32", "s64", product)
integer("mad.lo.s32 {d}, {a}, {b}, {c};", "s32 s32 s32", "s32", lambda a, b, c: a * b + c)
integer("mad.wide.u32 {d}, {a}, {b}, {c};", "u32 u32 u64", "u64", lambda a, b, c: a * b + c)
integer("shl.b32 {d}, {a}, {b};", "u32 u32", "u32", lambda a, n: a << n if n < 32 else 0)
integer("shr.u32 {d}, {a}, {b};", "u32 u32", "u32", lambda a, n: a >> min(n, 32))
integer("shr.s32 {d}, {a}, {b};", "s32 u32", "s32", lambda a, n: a >> min(n, 32))
integer("shr.s64 {d}, {a}, {b};", "s64 u32", "s64", lambda a, n: a >> min(n, 64))
integer("shf.l.wrap.b32 {d}, {a}, {b}, {c};", "u32 u32 u32", "u32", lambda a, b, n: (b << 32 | a) << (n & 31) >> 32)
integer("shf.r.wrap.b32 {d}, {a}, {b}, {c};", "u32 u32 u32", "u32", lambda a, b, n: (b << 32 | a) >> (n & 31))
integer("shf.r.clamp.b32 {d}, {a}, {b}, {c};", "u32 u32 u32", "u32", lambda a, b, n: (b << 32 | a) >> min(n, 32))
integer("prmt.b32 {d}, {a}, {b}, {c};", "u32 u32 u32", "u32", permuted)
integer("bfe.u32 {d}, {a}, {b}, {c};", "u32 u32 u32", "u32", lambda a, p, n: extracted(a, p, n, 32, False))
integer("bfe.s32 {d}, {a}, {b}, {c};", "u32 u32 u32", "u32", lambda a, p, n: extracted(a, p, n, 32, True))
integer("bfi.b32 {d}, {a}, {b}, {c}, 7;", "u32 u32 u32", "u32", lambda a, b, p: inserted(a, b, p, 7, 32))
integer("lop3.b32 {d}, {a}, {b}, {c}, 0xb8;", "u32 u32 u32", "u32",
        lambda a, b, c: sum((0xb8 >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32)))
integer("clz.b32 {d}, {a};", "u32", "u32", lambda a: 32 - a.bit_length())
integer("clz.b64 {d}, {a};", "u64", "u32", lambda a: 64 - a.bit_length())
integer("popc.b32 {d}, {a};", "u32", "u32", lambda a: a.bit_count())
integer("brev.b32 {d}, {a};", "u32", "u32", lambda a: int(f"{a:032b}"[::-1], 2))
integer("min.s32 {d}, {a}, {b};", "s32 s32", "s32", min)
integer("max.u32 {d}, {a}, {b};", "u32 u32", "u32", max)
integer("abs.s32 {d}, {a};", "s32", "s32", abs)
integer("neg.s32 {d}, {a};", "s32", "s32", lambda a: -a)
integer("div.u32 {d}, {a}, {b};", "u32 u32", "u32", lambda a, b: a // b if b else 0xffffffff)
integer("rem.u32 {d}, {a}, {b};", "u32 u32", "u32", lambda a, b: a % b if b else a)
integer("cvt.sat.u8.s32 low, {a}; cvt.u32.u8 {d}, low;", "s32", "u32", lambda a: min(max(a, 0), 255))
integer("cvt.s64.s32 {d}, {a};", "s32", "s64", lambda a: a)
integer("cvt.u64.u32 {d}, {a};", "u32", "u64", lambda a: a)
integer("cvt.s32.s16 {d}, {a};", "s16", "s32", lambda a: a)
integer("{{ .reg .u32 t; add.cc.u32 t, {a}, {b}; addc.u32 {d}, {c}, 0; }}", "u32 u32 u32", "u32", lambda a, b, c: c + (a + b >> 32))
integer("{{ .reg .pred q; setp.lt.s32 q, {a}, {b}; selp.b32 {d}, {b}, {c}, q; }}", "s32 s32 s32", "s32", lambda a, b, c: b if a < b else c)


def compared(name, holds):
    def expected(a, b):
        a, b = value_of(a, F32), value_of(b, F32)
        unordered = any(isinstance(v, float) and math.isnan(v) for v in (a, b))
        return int(name.endswith("u") if unordered else holds(a, b))
    case(f"{{{{ .reg .pred q; setp.{name}.f32 q, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, q; }}}}", "f32 f32", "u32")(expected)


for name, holds in (("lt", lambda a, b: a < b), ("ge", lambda a, b: a >= b), ("eq", lambda a, b: a == b), ("ne", lambda a, b: a != b)):
    compared(name, holds)
    compared(name + "u", holds)


@case("max.f32 {d}, {a}, {b};", "f32 f32", "f32")
def _(a, b):
    values = [value_of(bits, F32) for bits in (a, b)]
    numbers = [(value, bits) for value, bits in zip(values, (a, b)) if not (isinstance(value, float) and math.isnan(value))]
    if not numbers or len({value for value, _ in numbers}) == 1:
        return None if len(numbers) != 1 else numbers[0][1]
    return max(numbers)[1]


def drawn(kind, draw):
    """Bits of a type: anything, or what is near to a format's borders."""
    width = BITS[kind]
    if kind in FLOATS and draw.random() < 0.6:
        exponent = draw.choice([-150, -149, -127, -126, -25, -24, -15, -14, -9, -7, -6, -1, 0, 1, 7, 8, 9, 15, 16, 31, 32, 63, 127])
        value = FLOATS[kind].round(Fraction(draw.randrange(-(1 << 26), 1 << 26), 1 << 25) * Fraction(2) ** exponent)
        return bits_of(value, FLOATS[kind])
    if kind not in FLOATS and draw.random() < 0.3:
        return draw.choice([0, 1, 5, 31, 32, 33, 63, 64, 255, (1 << width - 1) - 1, 1 << width - 1, (1 << width) - 1]) % (1 << width)
    return draw.getrandbits(width)


LOADED = {16: "b16", 32: "b32", 64: "b64"}


def source():
    """A kernel for all cases of the same inputs: thread i of n computes every case of inputs i; result k at k·n + i, 64 bits each."""
    groups = collections.defaultdict(list)
    for found in cases:
        groups[found.inputs].append(found)
    text = [".version 8.0\n.target sm_80\n.address_size 64\n"]
    for inputs, group in groups.items():
        name = "over_" + "_".join(inputs)
        pointers = ", ".join(f".param .u64 in{i}" for i in range(len(inputs)))
        text.append(f".visible .entry {name}({pointers}, .param .u64 out, .param .u32 count)\n{{\n.reg .u32 i; .reg .u64 at, base, wide; .reg .u8 low;\n")
        text.append("mov.u32 i, %tid.x;\n")
        for place, kind in enumerate(inputs):
            held = kind if kind in ("f32", "f64") else LOADED[BITS[kind]]
            text.append(f".reg .{held} x{place}; ld.param.u64 base, [in{place}]; mul.wide.u32 at, i, {BITS[kind] // 8}; add.u64 at, base, at; "
                        f"ld.global.{held} x{place}, [at];\n")
        text.append(".reg .u32 n; ld.param.u32 n, [count]; ld.param.u64 base, [out];\n")
        for k, one in enumerate(group):
            held = one.output if one.output in ("f32", "f64") else LOADED[BITS[one.output]]
            names = dict(zip("abc", (f"x{i}" for i in range(len(inputs)))), d=f"d{k}")
            to_bits = {"f32": f"mov.b32 w{k}, d{k}; cvt.u64.u32 wide, w{k};", "f64": f"mov.b64 wide, d{k};", "b16": f"cvt.u64.u16 wide, d{k};",
                       "b32": f"cvt.u64.u32 wide, d{k};", "b64": f"mov.b64 wide, d{k};"}[held]
            text.append(f".reg .{held} d{k}; .reg .b32 w{k}; {one.text.format(**names)} {to_bits} "
                        f"mad.lo.u32 w{k}, n, {k}, i; mul.wide.u32 at, w{k}, 8; add.u64 at, base, at; st.global.u64 [at], wide;\n")
        text.append("ret;\n}\n")
    return "".join(text), groups


def check(driver):
    text, groups = source()
    module = driver.module(text)
    draw = random.Random(1)
    wrong = []
    compared_values = 0
    for inputs, group in groups.items():
        columns = [[drawn(kind, draw) for _ in range(CASES_EACH)] for kind in inputs]
        codes = {16: "H", 32: "I", 64: "Q"}
        buffers = [driver.buffer(column, codes[BITS[kind]]) for column, kind in zip(columns, inputs)]
        out = driver.empty(8 * CASES_EACH * len(group))
        import ctypes
        driver.launch(driver.function(module, "over_" + "_".join(inputs)), [1], [CASES_EACH], [*buffers, out, ctypes.c_uint32(CASES_EACH)])
        driver.synchronize()
        found = out.read("Q")
        for k, one in enumerate(group):
            for i, given in enumerate(zip(*columns)):
                expected = one.expected(*given)
                if expected is None:
                    continue
                compared_values += 1
                if found[k * CASES_EACH + i] != expected:
                    wrong.append(f"{one.text} of {[hex(bits) for bits in given]} is {found[k * CASES_EACH + i]:#x}, expected {expected:#x}")
                    break
    return len(cases), compared_values, wrong
