#!/usr/bin/env python3
"""Translates one kernel of a PTX module to C: translate.py MODULE.ptx KERNEL > KERNEL.c   (translate.py MODULE.ptx --list names the kernels)."""

import re, sys

CT = {
    "b8": "uint8_t",
    "u8": "uint8_t",
    "s8": "int8_t",
    "b16": "uint16_t",
    "u16": "uint16_t",
    "s16": "int16_t",
    "b32": "uint32_t",
    "u32": "uint32_t",
    "s32": "int32_t",
    "b64": "uint64_t",
    "u64": "uint64_t",
    "s64": "int64_t",
    "f32": "float",
    "f64": "double",
    "f16": "uint16_t",
    "bf16": "uint16_t",
    "f16x2": "uint32_t",
    "bf16x2": "uint32_t",
    "pred": "uint8_t",
}
BITS = {k: int(re.search(r"\d+", k).group()) for k in CT if k != "pred"}
BITS["f16x2"] = BITS["bf16x2"] = 32
MODES = {"rz": "FE_TOWARDZERO", "rm": "FE_DOWNWARD", "rp": "FE_UPWARD"}
CMP = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def strip(text):
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def entry(text, name):
    m = re.search(r"\.entry\s+" + re.escape(name) + r"\s*\((.*?)\)([^{;]*)\{", text, flags=re.S)
    if not m:
        raise KeyError(name)
    depth, i = 1, m.end()
    while depth:
        c = text[i]
        depth += (c == "{") - (c == "}")
        i += 1
    return m.group(1), text[m.end() : i - 1]


def params(decl):
    out, off = [], 0
    for p in [p for p in decl.split(",") if p.strip()]:
        m = re.match(
            r"\s*\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\S*\s+(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?",
            p,
        )
        if not m:
            raise SyntaxError("param " + p)
        size = BITS[m[2]] // 8
        align = int(m[1]) if m[1] else size
        size *= int(m[4]) if m[4] else 1
        off = (off + align - 1) // align * align
        out.append((m[3], off, size))
        off += size
    return out


def statements(body):
    """('{',) ('}',) ('label', name) ('stmt', text)"""
    i, n, out = 0, len(body), []
    while i < n:
        c = body[i]
        if c.isspace() or c == ";":
            i += 1
            continue
        if c in "{}":
            out.append((c,))
            i += 1
            continue
        m = re.compile(r"([\w$]+)\s*:(?!:)").match(body, i)
        if m:
            out.append(("label", m[1]))
            i = m.end()
            continue
        j = body.index(";", i)
        # a brace that opens a call sequence has no semicolon before it
        out.append(("stmt", re.sub(r"\s+", " ", body[i:j]).strip()))
        i = j + 1
    return out


class Kernel:
    def __init__(self, module, name):
        self.module, self.name = module, name
        decl, body = entry(module, name)
        self.params = params(decl)
        self.regs, self.shared, self.local = {}, {}, {}
        self.scopes, self.code, self.nscope = [{}], [], 0
        self.shared_size, self.local_size, self.dynamic = 0, 0, False
        self.globals_used, self.callparams = {}, {}
        self.module_shared()
        for s in statements(body):
            if s[0] == "{":
                self.scopes.append({})
                self.nscope += 1
            elif s[0] == "}":
                self.scopes.pop()
            elif s[0] == "label":
                self.code.append(("label", s[1], [], [], None))
            else:
                self.statement(s[1])
        self.shared_offset_dynamic = (self.shared_size + 127) // 128 * 128

    def module_shared(self):
        for m in re.finditer(
            r"^\s*(?:\.visible\s+|\.weak\s+)?(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(\[\d*\])?\s*;",
            self.module.split(".entry")[0],
            flags=re.M,
        ):
            if m[1] or m[5] == "[]":
                self.shared[m[4]] = "dyn"
            else:
                self.add_shared(m[4], int(m[2] or 1), BITS[m[3]] // 8 * int((m[5] or "[1]")[1:-1]))

    def add_shared(self, name, align, size):
        self.shared_size = (self.shared_size + align - 1) // align * align
        self.shared[name] = self.shared_size
        self.shared_size += size

    def statement(self, s):
        if (
            s.startswith(".pragma")
            or s.startswith(".loc")
            or s.startswith(".maxn")
            or s.startswith(".minn")
            or s.startswith(".reqn")
        ):
            return
        if s.startswith(".reg"):
            m = re.match(r"\.reg\s*\.(\w+)\s+(.*)", s)
            for r in m[2].split(","):
                r = r.strip()
                k = re.match(r"(.+)<(\d+)>$", r)
                names = [k[1] + str(i) for i in range(int(k[2]))] if k else [r]
                for nm in names:
                    c = re.sub(r"\W", "_", nm) + (f"_s{self.nscope}" if len(self.scopes) > 1 else "")
                    self.scopes[-1][nm] = c
                    self.regs[c] = m[1]
            return
        if s.startswith(".shared") or s.startswith(".local") or s.startswith(".param"):
            m = re.match(r"\.(shared|local|param)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", s)
            size, align = BITS[m[3]] // 8 * int(m[5] or 1), int(m[2] or BITS[m[3]] // 8)
            if m[1] == "shared":
                self.add_shared(m[4], align, size)
            elif m[1] == "local":
                self.local_size = (self.local_size + align - 1) // align * align
                self.local[m[4]] = self.local_size
                self.local_size += size
            else:
                self.callparams[m[4]] = size
            return
        pred = None
        m = re.match(r"@(!?)([%\w$]+)\s+(.*)", s)
        if m:
            pred, s = (m[1], self.reg(m[2])), m[3]
        self.uses, self.defs, self.touch = [], [], True
        op, _, rest = s.partition(" ")
        if pred:
            self.uses.append(pred[1])
        c = self.instruction(op, self.split(rest), s)
        p = (("!" if pred[0] else "") + pred[1]) if pred else None
        kind = "yield" if isinstance(c, tuple) else "op"
        self.code.append((kind, c, self.uses, self.defs, p))

    @staticmethod
    def split(rest):
        out, depth, cur = [], 0, ""
        for ch in rest:
            if ch in "{[(":
                depth += 1
            if ch in "}])":
                depth -= 1
            if ch == "," and depth == 0:
                out.append(cur.strip())
                cur = ""
            else:
                cur += ch
        if cur.strip():
            out.append(cur.strip())
        return out

    def reg(self, name):
        for sc in reversed(self.scopes):
            if name in sc:
                return sc[name]
        return None

    SPECIAL = {
        "%laneid": "lane_",
        "%warpid": "(lin_/32)",
        "%clock": "0u",
        "%clock64": "0ull",
        "%globaltimer": "0ull",
        "WARP_SZ": "32u",
        "%nwarpid": "32u",
        "%smid": "0u",
        "%lanemask_lt": "((1u<<lane_)-1)",
        "%lanemask_le": "((2u<<lane_)-1)",
        "%lanemask_eq": "(1u<<lane_)",
        "%lanemask_ge": "(~((1u<<lane_)-1))",
        "%lanemask_gt": "(~((2u<<lane_)-1))",
        "%dynamic_smem_size": "0u",
        "%total_smem_size": "0u",
    }

    def raw(self, o):
        """C expression and its type of register, immediate or symbol."""
        r = self.reg(o)
        if r:
            self.uses.append(r)
            return r, self.regs[r]
        m = re.match(r"%(tid|ntid|ctaid|nctaid)\.([xyz])$", o)
        if m:
            k = "xyz".index(m[2])
            return (f"T->tid[{k}]" if m[1] == "tid" else f"B->{m[1]}[{k}]"), "u32"
        if o in self.SPECIAL:
            return self.SPECIAL[o], "u32"
        if re.match(r"0[fF][0-9a-fA-F]{8}$", o):
            return f"as_f32(0x{o[2:]}u)", "f32"
        if re.match(r"0[dD][0-9a-fA-F]{16}$", o):
            return f"as_f64(0x{o[2:]}ull)", "f64"
        if re.match(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$", o):
            v = int(o.rstrip("U"), 0)
            return f"((int64_t){v & (2**64-1)}ull)", "imm"
        if re.match(r"-?\d+\.\d*([eE][-+]?\d+)?$", o):
            return o, "f64"
        if o in self.shared:
            return ("dyn_" if self.shared[o] == "dyn" else f"{self.shared[o]}u"), "u32"
        if o in self.local:
            return f"((uint64_t)(uintptr_t)(L_+{self.local[o]}))", "u64"
        for n, off, size in self.params:
            if n == o:
                return f"{off}u", "param"
        if re.match(r"[\w$]+$", o):
            self.globals_used[o] = True
            return f"((uint64_t)(uintptr_t)g_{o})", "u64"
        m = re.match(r"(.+?)\+(-?\d+)$", o)
        if m:
            e, t = self.raw(m[1])
            return f"({e}+{m[2]})", t
        raise SyntaxError("operand " + o)

    def rd(self, o, t):
        neg = o.startswith("!") and "pred" == t
        if neg:
            o = o[1:]
        e, d = self.raw(o)
        if t == "pred":
            return ("!" if neg else "") + (e if d == "pred" else f"({e}!=0)")
        if t in ("f16", "bf16"):
            f = "h2f" if t == "f16" else "b2f"
            return f"{f}((uint16_t){e})"
        if t == "f32":
            if d == "f32":
                return e
            if d == "f64":
                return f"(float)({e})"
            return f"as_f32((uint32_t){e})"
        if t == "f64":
            if d == "f64":
                return e
            if d == "f32":
                return f"(double)({e})"
            return f"as_f64((uint64_t){e})"
        if d == "f32":
            e = f"as_u32({e})"
        elif d == "f64":
            e = f"as_u64({e})"
        return f"(({CT[t]}){e})"

    def wr(self, o, e, t):
        """Assigns e, of type t (a number of f16 and bf16 as float)."""
        if o == "_":
            return f"(void)({e});"
        r = self.reg(o)
        self.defs.append(r)
        d = self.regs[r]
        if t == "pred":
            return f"{r} = {e};"
        if t == "f16":
            return f"{r} = f2h({e});"
        if t == "bf16":
            return f"{r} = f2b({e});"
        if t == "f32":
            return f"{r} = {e};" if d == "f32" else f"{r} = as_u32({e});"
        if t == "f64":
            return f"{r} = {e};" if d == "f64" else f"{r} = as_u64({e});"
        if d == "f32":
            return f"{r} = as_f32((uint32_t)({e}));"
        if d == "f64":
            return f"{r} = as_f64((uint64_t)({e}));"
        return f"{r} = ({CT[d]})({CT[t]})({e});"

    def address(self, o, space):
        o = o.strip()[1:-1].strip()
        m = re.match(r"([%\w$]+)\s*\+\s*(-?\d+)$", o)
        base, off = (m[1], int(m[2])) if m else (o, 0)
        e, d = self.raw(base)
        if space == "param":
            return f"(B->param+{e}+{off})"
        if space == "shared" or (d == "u32" and base in self.shared):
            return f"(B->shared+(uint32_t)({e}+{off}))"
        if d == "imm":
            return f"((uint8_t*)(uintptr_t)({e}+{off}))"
        return f"((uint8_t*)(uintptr_t)((uint64_t)({e})+(int64_t){off}))"

    def check(self, space, count, size):
        """Ends the thread where `count` values of `size` bytes are not at once at p_; constants of the module are no memory of the device."""
        if space == "shared":
            return f"if (check_shared_(p_, {count*size}, {count*size})) goto end_; "
        return f"if (check_(p_, {count*size}, {count*size})) goto end_; " if space == "global" and not self.globals_used else ""

    def vec(self, o):
        return [x.strip() for x in o[1:-1].split(",")]

    def instruction(self, op, a, whole):
        f = op.split(".")
        k, mods = f[0], f[1:]
        ty = mods[-1] if mods else ""
        rd, wr = self.rd, self.wr
        if k in ("ld", "ldu"):
            space = next((m for m in mods if m in ("global", "shared", "local", "param", "const")), "generic")
            if space == "param" and a[1].strip("[] ").split("+")[0] in self.callparams:
                for r in (self.vec(a[0]) if a[0][0] == "{" else [a[0]]):
                    self.wr(r, "0", ty)
                return "/* value of a call */;"
            p = self.address(a[1], space)
            n = BITS[ty] // 8
            dst = self.vec(a[0]) if a[0].startswith("{") else [a[0]]
            out = f"{{ const uint8_t *p_ = {p}; " + self.check(space, len(dst), n)
            for i, r in enumerate(dst):
                out += f"{{ {CT[ty]} v_; memcpy(&v_, p_+{n*i}, {n}); " + wr(r, "v_", "b16" if ty in ("f16", "bf16") else ty) + " } "
            return out + "}"
        if k == "st":
            space = next((m for m in mods if m in ("global", "shared", "local", "param")), "generic")
            if space == "param":
                self.uses_of(a[1])
                return "/* argument of a call */;"
            p = self.address(a[0], space)
            n = BITS[ty] // 8
            src = self.vec(a[1]) if a[1].startswith("{") else [a[1]]
            rt = "b16" if ty in ("f16", "bf16") else ty
            out = f"{{ uint8_t *p_ = {p}; " + self.check(space, len(src), n)
            for i, r in enumerate(src):
                out += f"{{ {CT[ty]} v_ = {rd(r, rt)}; memcpy(p_+{n*i}, &v_, {n}); }} "
            return out + "}"
        if k == "mov":
            if a[0].startswith("{"):
                dst = self.vec(a[0])
                w = BITS[ty] // len(dst)
                e = rd(a[1], "b" + str(BITS[ty]))
                return f"{{ uint64_t v_ = {e}; " + " ".join(wr(r, f"(v_>>{w*i})", f"b{w}") for i, r in enumerate(dst)) + " }"
            if len(a) > 1 and a[1].startswith("{"):
                src = self.vec(a[1])
                w = BITS[ty] // len(src)
                e = "|".join(f'((uint64_t){rd(r, f"b{w}")}<<{w*i})' for i, r in enumerate(src))
                return wr(a[0], e, "b" + str(BITS[ty]))
            if ty in ("f16", "bf16"):
                ty = "b16"
            return wr(a[0], rd(a[1], ty), ty)
        if k == "cvta":
            shared = "shared" in mods
            if "to" in mods:
                return wr(a[0], (f'{rd(a[1],"u64")}-(uint64_t)(uintptr_t)B->shared' if shared else rd(a[1], "u64")), "u64")
            return wr(a[0], (f'{rd(a[1],"u64")}+(uint64_t)(uintptr_t)B->shared' if shared else rd(a[1], "u64")), "u64")
        if k == "isspacep":
            return wr(a[0], "1" if "global" in mods else "0", "pred")
        if k == "cvt":
            return self.cvt(mods, a)
        if k in ("add", "sub", "addc", "subc") and ty[0] in "usb" and ty not in ("bf16", "bf16x2"):
            sign = "+" if k[0] == "a" else "-"
            w = BITS[ty]
            if "cc" in mods or k in ("addc", "subc"):
                x, y = rd(a[1], f"u{w}"), rd(a[2], f"u{w}")
                c = "CC" if k.endswith("c") else "0"
                self.uses.append("CC")
                self.defs.append("CC")
                return (
                    f"{{ unsigned __int128 t_ = (unsigned __int128){x} {sign} {y} {sign} {c}; "
                    + wr(a[0], "(uint64_t)t_", f"u{w}")
                    + f" CC = (t_>>{w})&1; }}"
                )
            return wr(a[0], f'{rd(a[1], f"u{w}")} {sign} {rd(a[2], f"u{w}")}', f"u{w}")
        if k in ("mul", "mad", "madc") and ty[0] in "us":
            w = BITS[ty]
            u = f"u{w}"
            add = (lambda t: f" + {rd(a[3], t)}") if k != "mul" else (lambda t: "")
            if "wide" in mods:
                t2 = f"{ty[0]}{2*w}"
                return wr(a[0], f"({CT[t2]}){rd(a[1],ty)} * ({CT[t2]}){rd(a[2],ty)}" + add(t2), t2)
            big = "__int128" if ty[0] == "s" else "unsigned __int128"
            prod = f"({big}){rd(a[1],ty)} * ({big}){rd(a[2],ty)}"
            if "hi" in mods:
                prod = f"({CT[u]})(({prod})>>{w})"
            else:
                prod = f"({CT[u]})({prod})"
            if "cc" in mods or k == "madc":
                c = "CC" if k == "madc" else "0"
                self.uses.append("CC")
                self.defs.append("CC")
                return (
                    f"{{ unsigned __int128 t_ = (unsigned __int128){prod} + {rd(a[3],u)} + {c}; "
                    + wr(a[0], "(uint64_t)t_", u)
                    + f" CC = (t_>>{w})&1; }}"
                )
            return wr(a[0], prod + add(u), u)
        if k in ("mul24", "mad24"):
            raise SyntaxError(whole)
        if k in ("add", "sub", "mul", "fma", "mad", "div") and ty in ("f32", "f64"):
            x = [rd(o, ty) for o in a[1:]]
            rnd = next((m for m in mods if m in ("rz", "rm", "rp")), None)
            sym = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
            if rnd:
                third = x[2] if len(x) > 2 else "0"
                e = f"rounded{ty[1:]}({MODES[rnd]}, '{sym.get(k, 'f')}', {x[0]}, {x[1]}, {third})"
            elif k in sym:
                e = f"{x[0]} {sym[k]} {x[1]}"
            else:
                e = f'{"fmaf" if ty=="f32" else "fma"}({x[0]},{x[1]},{x[2]})'
            if "sat" in mods:
                e = f"sat{ty[1:]}({e})"
            return wr(a[0], e, ty)
        if ty in ("f16", "bf16") and k in (
            "add",
            "sub",
            "mul",
            "fma",
            "div",
            "min",
            "max",
            "neg",
            "abs",
            "rcp",
            "sqrt",
            "ex2",
            "tanh",
            "rsqrt",
            "sin",
            "cos",
            "lg2",
        ):
            x = [rd(o, ty) for o in a[1:]]
            sym = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
            nan = "_nan" if "NaN" in mods else ""
            if k == "fma":
                r = self.reg(a[0])
                self.defs.append(r)
                return f"{r} = {'f2h' if ty == 'f16' else 'f2b'}(odd32(fma_odd({x[0]},{x[1]},{x[2]})));"
            if k == "neg":
                r = self.reg(a[0])
                self.defs.append(r)
                return f"{r} = (uint16_t)({self.raw(a[1])[0]} ^ 0x8000);"
            if k == "abs":
                r = self.reg(a[0])
                self.defs.append(r)
                return f"{r} = (uint16_t)({self.raw(a[1])[0]} & 0x7fff);"
            e = (
                f"{x[0]} {sym[k]} {x[1]}"
                if k in sym
                else (
                    f"f{k}{nan}({x[0]},{x[1]})"
                    if k in ("min", "max") and nan
                    else (
                        f"f{k}f({x[0]},{x[1]})"
                        if k in ("min", "max")
                        else {
                            "rcp": f"1.0f/{x[0]}",
                            "sqrt": f"sqrtf({x[0]})",
                            "ex2": f"exp2f({x[0]})",
                            "tanh": f"tanhf({x[0]})",
                            "rsqrt": f"1.0f/sqrtf({x[0]})",
                            "sin": f"sinf({x[0]})",
                            "cos": f"cosf({x[0]})",
                            "lg2": f"log2f({x[0]})",
                        }[k]
                    )
                )
            )
            return wr(a[0], e, ty)
        if ty in ("f16x2", "bf16x2"):
            h = ty[:-2]
            up = "h2f" if h == "f16" else "b2f"
            dn = "f2h" if h == "f16" else "f2b"
            xs = [rd(o, "b32") for o in a[1:]]
            part = lambda s: [f"{up}((uint16_t)({e}>>{s}))" for e in xs]
            sym = {"add": "+", "sub": "-", "mul": "*"}

            def one(s):
                x = part(s)
                if k in sym:
                    return f"{x[0]}{sym[k]}{x[1]}"
                if k == "fma":
                    return f"odd32(fma_odd({x[0]},{x[1]},{x[2]}))"
                if k in ("min", "max"):
                    return f"f{k}f({x[0]},{x[1]})"
                if k == "neg":
                    return f"-{x[0]}"
                if k == "abs":
                    return f"fabsf({x[0]})"
                raise SyntaxError(whole)

            return wr(a[0], f"(uint32_t){dn}({one(0)})|((uint32_t){dn}({one(16)})<<16)", "b32")
        if k in ("div", "rem") and ty[0] in "us":
            x, y = rd(a[1], ty), rd(a[2], ty)
            return wr(a[0], f"DIVG({x},{y},({CT[ty]})-1)" if k == "div" else f"REMG({x},{y})", ty)
        if k in ("min", "max"):
            x, y = rd(a[1], ty), rd(a[2], ty)
            if ty == "f32":
                e = f'f{k}{"_nan" if "NaN" in mods else "f"}({x},{y})'
            elif ty == "f64":
                e = f"f{k}({x},{y})"
            else:
                e = f'({x} {"<" if k=="min" else ">"} {y} ? {x} : {y})'
            return wr(a[0], e, ty)
        if k == "neg":
            return wr(
                a[0],
                f"-{rd(a[1],ty)}" if ty[0] == "f" else f'0-{rd(a[1], "u"+str(BITS[ty]))}',
                ty if ty[0] == "f" else f"u{BITS[ty]}",
            )
        if k == "abs":
            if ty == "f32":
                return wr(a[0], f"fabsf({rd(a[1],ty)})", ty)
            if ty == "f64":
                return wr(a[0], f"fabs({rd(a[1],ty)})", ty)
            x = rd(a[1], ty)
            return wr(a[0], f"({x}<0?-{x}:{x})", ty)
        if k == "copysign":
            return wr(a[0], f'copysign{"f" if ty=="f32" else ""}({rd(a[2],ty)},{rd(a[1],ty)})', ty)
        if k in ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"):
            x = rd(a[1], ty)
            s = "f" if ty == "f32" else ""
            if k == "rcp" and ty == "f64" and "approx" in mods:  # only the upper half is defined
                return wr(a[0], f"as_f64(as_u64(1.0/{x})&0xffffffff00000000ull)", ty)
            one = "1.0f" if s else "1.0"
            return wr(
                a[0],
                {
                    "rcp": f"{one}/{x}",
                    "sqrt": f"sqrt{s}({x})",
                    "rsqrt": f"{one}/sqrt{s}({x})",
                    "ex2": f"exp2{s}({x})",
                    "lg2": f"log2{s}({x})",
                    "sin": f"sin{s}({x})",
                    "cos": f"cos{s}({x})",
                    "tanh": f"tanh{s}({x})",
                }[k],
                ty,
            )
        if k in ("and", "or", "xor"):
            t = ty
            o = {"and": "&", "or": "|", "xor": "^"}[k]
            if t == "pred":
                return wr(a[0], f"({rd(a[1],t)}) {o} ({rd(a[2],t)})", t)
            return wr(a[0], f"{rd(a[1],t)} {o} {rd(a[2],t)}", t)
        if k == "not":
            return wr(a[0], f"!{rd(a[1],ty)}" if ty == "pred" else f"~{rd(a[1],ty)}", ty)
        if k == "cnot":
            return wr(a[0], f"({rd(a[1],ty)}==0)", ty)
        if k == "shl":
            return wr(a[0], f'SHL({BITS[ty]},{rd(a[1],"u"+str(BITS[ty]))},{rd(a[2],"u32")})', f"u{BITS[ty]}")
        if k == "shr":
            w = BITS[ty]
            s = ty[0] == "s"
            return wr(
                a[0],
                f'{"SAR" if s else "SHR"}({w},{rd(a[1], ("s" if s else "u")+str(w))},{rd(a[2],"u32")})',
                ("s" if s else "u") + str(w),
            )
        if k == "shf":
            lo, hi, n = rd(a[1], "u32"), rd(a[2], "u32"), rd(a[3], "u32")
            c = f"({n}&31)" if "wrap" in mods else f"({n}>32?32:{n})"
            v = f"(((uint64_t){hi}<<32)|{lo})"
            return wr(a[0], f"(uint32_t)(({v}<<{c})>>32)" if "l" in mods else f"(uint32_t)({v}>>{c})", "u32")
        if k == "bfi":
            return wr(a[0], f'bfi64({rd(a[1],ty)},{rd(a[2],ty)},{rd(a[3],"u32")},{rd(a[4],"u32")},{BITS[ty]})', ty)
        if k == "bfe":
            return wr(
                a[0],
                f'bfe_({rd(a[1],"u"+str(BITS[ty]))},{rd(a[2],"u32")},{rd(a[3],"u32")},{BITS[ty]},{int(ty[0]=="s")})',
                "u" + str(BITS[ty]),
            )
        if k == "prmt":
            return wr(a[0], f'prmt_({rd(a[1],"u32")},{rd(a[2],"u32")},{rd(a[3],"u32")})', "u32")
        if k == "lop3":
            return wr(a[0], f'lop3_({rd(a[1],"u32")},{rd(a[2],"u32")},{rd(a[3],"u32")},{a[4]})', "u32")
        if k == "clz":
            w = BITS[ty]
            x = rd(a[1], ty)
            return wr(a[0], f'({x}==0?{w}:__builtin_clz{"ll" if w==64 else ""}({x}))', "u32")
        if k == "popc":
            return wr(a[0], f"__builtin_popcountll({rd(a[1],ty)})", "u32")
        if k == "brev" and ty == "b32":
            return wr(a[0], f"brev32({rd(a[1],ty)})", "u32")
        if k == "selp":
            t = "b16" if ty in ("f16", "bf16") else ty
            return wr(a[0], f'({rd(a[3],"pred")} ? {rd(a[1],t)} : {rd(a[2],t)})', t)
        if k in ("setp", "set"):
            stype = ty
            cmp = mods[0]
            logic = next((m for m in mods if m in ("and", "or", "xor")), None)
            c = self.compare(cmp, rd(a[1], stype), rd(a[2], stype), stype)
            n = "!" + "(" + c + ")"
            if logic:
                o = {"and": "&", "or": "|", "xor": "^"}[logic]
                q = rd(a[3], "pred")
                c, n = f"(({c}) {o} ({q}))", f"(({n}) {o} ({q}))"
            if k == "set":
                dt = mods[-2]
                return wr(
                    a[0],
                    f"({c}) ? 1.0f : 0.0f" if dt[0] in "fb" and dt != "b32" else f"({c}) ? 0xffffffffu : 0u",
                    dt if dt in ("f16", "bf16", "f32") else "u32",
                )
            if "|" in a[0]:
                p, q = a[0].split("|")
                return "{ int t_ = " + c + ", n_ = " + n + "; " + wr(p.strip(), "t_", "pred") + wr(q.strip(), "n_", "pred") + " }"
            return wr(a[0], c, "pred")
        if k == "testp":
            x = rd(a[1], ty)
            return wr(
                a[0],
                {
                    "finite": f"isfinite({x})",
                    "infinite": f"isinf({x})",
                    "number": f"!isnan({x})",
                    "notanumber": f"isnan({x})",
                    "normal": f"isnormal({x})",
                    "subnormal": f"(fpclassify({x})==FP_SUBNORMAL)",
                }[mods[0]],
                "pred",
            )
        if k == "bra":
            self.target = a[-1]
            return f"goto {self.lab(a[-1])};"
        if k in ("ret", "exit"):
            return "goto end_;"
        if k == "trap":
            return "__builtin_trap();"
        if k in ("bar", "barrier") and "warp" not in mods and "red" not in mods:
            return ("AT_BAR", [], None)
        if k == "bar":
            return ("AT_WARP", [("mask", rd(a[0], "u32"))], None)
        if k in ("membar", "fence", "griddepcontrol", "prefetch", "prefetchu", "nanosleep", "discard"):
            return ";"
        if k == "shfl":
            d, _, p = a[0].partition("|")
            out = [wr(d.strip(), "T->out", "b32")]
            if p:
                out.append(wr(p.strip(), "T->pred", "pred"))
            mode = {"bfly": 0, "down": 1, "up": 2, "idx": 3}[next(m for m in mods if m in ("bfly", "down", "up", "idx"))]
            return (
                "AT_SHFL",
                [
                    ("mode", str(mode)),
                    ("val", rd(a[1], "b32")),
                    ("b", rd(a[2], "u32")),
                    ("c", rd(a[3], "u32")),
                    ("mask", rd(a[4], "u32") if len(a) > 4 else "0xffffffffu"),
                ],
                " ".join(out),
            )
        if k == "vote" or k == "activemask":
            mode = {"all": 0, "any": 1, "uni": 2, "ballot": 3}[
                next((m for m in mods if m in ("all", "any", "uni", "ballot")), "ballot")
            ]
            val = rd(a[1], "pred") if k == "vote" else "1"
            o = wr(a[0], "T->out", "b32" if mode == 3 else "pred")
            return ("AT_VOTE", [("mode", str(mode)), ("val", val), ("mask", rd(a[2], "u32") if len(a) > 2 else "0xffffffffu")], o)
        if k in ("atom", "red"):
            o = next(m for m in mods if m in ("add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec"))
            space = next((m for m in mods if m in ("global", "shared")), "generic")
            ad, ops = (a[1], a[2:]) if k == "atom" else (a[0], a[1:])
            p = self.address(ad, space)
            t = ty
            n = BITS[t] // 8
            fl = t in ("f16", "bf16")
            rt = t
            load = f"{CT[t]} o_; memcpy(&o_, p_, {n}); "
            ov = {"f16": "h2f(o_)", "bf16": "b2f(o_)"}.get(t, "o_")
            v = rd(ops[0], t)
            new = {
                "add": f"{ov}+{v}",
                "exch": v,
                "min": f"({ov}<{v}?{ov}:{v})",
                "max": f"({ov}>{v}?{ov}:{v})",
                "and": f"{ov}&{v}",
                "or": f"{ov}|{v}",
                "xor": f"{ov}^{v}",
            }.get(o)
            if o == "cas":
                new = f"(o_=={v} ? {rd(ops[1], t)} : o_)"
            if fl:
                new = f'{"f2h" if t=="f16" else "f2b"}({new})'
            d = wr(a[0], "o_", "b16" if fl else t) if k == "atom" else ""
            return f"{{ uint8_t *p_ = {p}; {self.check(space, 1, n)}{load} {CT[t]} n_ = {new}; memcpy(p_, &n_, {n}); {d} }}"
        if k == "mma":
            assert mods[0] == "sync" and mods[2] in ("m16n8k16", "m16n8k8"), whole
            t = mods[-3]
            half = mods[-4] == "f16"
            A, Bv, Cv, Dv = self.vec(a[1]), self.vec(a[2]), self.vec(a[3]), self.vec(a[0])
            put = (
                [(f"in[{i}]", rd(r, "b32")) for i, r in enumerate(A)]
                + [(f"in[{4+i}]", rd(r, "b32")) for i, r in enumerate(Bv)]
                + [(f"in[{6+i}]", rd(r, "b32")) for i, r in enumerate(Cv)]
            )
            out = " ".join(wr(r, f"T->outs[{i}]", "b32") for i, r in enumerate(Dv))
            return ("AT_MMA", [("mode", str(int(t == "bf16") | 2 * int(half) | 4 * int(mods[2] == "m16n8k8")))] + put, out)
        if k == "ldmatrix":
            n = int(next(m for m in mods if re.match(r"x[124]$", m))[1:])
            ad = self.address(a[1], "shared")
            out = " ".join(wr(r, f"T->outs[{i}]", "b32") for i, r in enumerate(self.vec(a[0])))
            return ("AT_LDM", [("mode", str(n | 8 * int("trans" in mods))), ("val", f"(uint32_t)({ad}-B->shared)")], out)
        if k == "cp" and mods[0] == "async":
            if mods[1] == "commit_group":
                return "if (T->copies) sim_end_group(T->copies);"
            if mods[1] in ("wait_group", "wait_all"):
                left = "0" if mods[1] == "wait_all" else a[0]
                return f"if (T->copies) {{ {'sim_end_group(T->copies); ' if mods[1] == 'wait_all' else ''}sim_await_groups(T->copies, {left}); }}"
            dst, src, n = self.address(a[0], "shared"), self.address(a[1], "global"), a[2]
            size = rd(a[3], "u32") if len(a) > 3 else n
            checks = f"if (check_shared_(d_, {n}, {n})) goto end_; if (n_ && check_(p_, n_, {n})) goto end_;"
            return f"{{ uint8_t *d_ = {dst}; const uint8_t *p_ = {src}; uint32_t n_ = {size}; {checks} copy_(T->copies, d_, p_, n_, {n}); }}"
        if k == "call":
            return "/* assert or printf */ ;"
        raise SyntaxError(whole)

    def uses_of(self, o):
        try:
            self.raw(o)
        except SyntaxError:
            pass

    def compare(self, cmp, x, y, t):
        if t == "pred":
            return f"{x} {CMP[cmp]} {y}"
        fl = t[0] == "f" or t == "bf16"
        if cmp == "num":
            return f"(!isnan({x}) && !isnan({y}))"
        if cmp == "nan":
            return f"(isnan({x}) || isnan({y}))"
        if fl and cmp.endswith("u") and cmp[:-1] in CMP:
            return f"(isnan({x}) || isnan({y}) || {x} {CMP[cmp[:-1]]} {y})"
        if fl and cmp == "ne":
            return f"(!isnan({x}) && !isnan({y}) && {x} != {y})"
        return f"{x} {CMP[cmp]} {y}"

    def cvt(self, mods, a):
        rd, wr = self.rd, self.wr
        types = [m for m in mods if m in CT or m in ("e4m3x2", "e5m2x2", "tf32", "e4m3", "e5m2")]
        dt, st = types[-2], types[-1]
        rnd = next((m for m in mods if re.match(r"r[nzmp]i?$", m) or m in ("rna", "rs")), None)
        if dt == "e4m3x2" and st == "f32":
            return wr(a[0], f'((uint16_t)f_e4m3({rd(a[1],"f32")})<<8)|f_e4m3({rd(a[2],"f32")})', "b16")
        if dt == "e4m3x2" and st in ("f16x2", "bf16x2"):
            up = "h2f" if st == "f16x2" else "b2f"
            x = rd(a[1], "b32")
            return wr(a[0], f"((uint16_t)f_e4m3({up}((uint16_t)({x}>>16)))<<8)|f_e4m3({up}((uint16_t){x}))", "b16")
        if st == "e4m3x2" and dt == "f16x2":
            x = rd(a[1], "b16")
            return wr(a[0], f"((uint32_t)f2h(e4m3_f((uint8_t)({x}>>8)))<<16)|f2h(e4m3_f((uint8_t){x}))", "b32")
        if dt in ("f16x2", "bf16x2") and st == "f32":
            f = "f2h" if dt == "f16x2" else "f2b"
            return wr(a[0], f'((uint32_t){f}({rd(a[1],"f32")})<<16)|{f}({rd(a[2],"f32")})', "b32")
        if dt == "tf32":
            return wr(a[0], f'as_u32({rd(a[1],"f32")})&0xffffe000u', "b32")
        isf = lambda t: t in ("f32", "f64", "f16", "bf16")
        x = rd(a[1], st)
        if isf(dt) and isf(st):
            s = "f" if st != "f64" else ""
            if rnd in ("rzi", "rni", "rmi", "rpi"):
                x = {"rzi": f"trunc{s}", "rni": f"rint{s}", "rmi": f"floor{s}", "rpi": f"ceil{s}"}[rnd] + f"({x})"
            if "sat" in mods:
                x = f'sat{"64" if st=="f64" else "32"}({x})'
            if dt == "f32" and st == "f64":
                x = f"{rnd}32({x})" if rnd in ("rz", "rm", "rp") else f"(float)({x})"
            if dt == "f64":
                x = f"(double)({x})"
            if dt in ("f16", "bf16") and st == "f64":
                if dt == "f16":
                    r = self.reg(a[0])
                    self.defs.append(r)
                    return f"{r} = d2h({x});"
                x = f"odd32({x})"
            if dt == "f16" and rnd == "rz":
                r = self.reg(a[0])
                self.defs.append(r)
                return f"{r} = (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss({x}), 3));"
            if dt == "bf16" and rnd == "rz":
                r = self.reg(a[0])
                self.defs.append(r)
                return f"{r} = f2b_rz({x});"
            return wr(a[0], x, dt)
        if isf(st):
            fn = {"rzi": "trunc", "rni": "rint", "rmi": "floor", "rpi": "ceil"}[rnd]
            t = dt.replace("b", "u")
            return wr(a[0], f"d2{t}({fn}((double){x}))", t)
        if isf(dt):
            if dt in ("f16", "bf16"):
                return (
                    (lambda r: (self.defs.append(r), f"{r} = d2h((double){x});")[1])(self.reg(a[0]))
                    if dt == "f16"
                    else wr(a[0], f"odd32((double){x})", dt)
                )
            e = f"({CT[dt]}){x}"
            if rnd in ("rz", "rm", "rp") and dt == "f32":
                e = f"{'s64' if st[0] == 's' else 'u64'}_to_f32({MODES[rnd]}, {x})"
            return wr(a[0], e, dt)
        if "sat" in mods:
            w = BITS[dt]
            lo, hi = (0, 2**w - 1) if dt[0] == "u" else (-(2 ** (w - 1)), 2 ** (w - 1) - 1)
            return wr(a[0], f"((__int128){x}<({lo}ll)?({lo}ll):(__int128){x}>(__int128)({hi}ull)?({hi}ull):(uint64_t){x})", dt)
        # The destination's register may be wider: it is extended from dt.
        r = self.reg(a[0])
        self.defs.append(r)
        return f"{r} = ({CT[self.regs[r]]})({CT[dt]}){x};" if self.regs[r] not in ("f32", "f64") else wr(a[0], x, dt)

    def lab(self, l):
        return "L_" + re.sub(r"\W", "_", l)

    def emit(self):
        yields = [i for i, c in enumerate(self.code) if c[0] == "yield"]
        out = [f'#define KERNEL "{self.name}"', '#include "ptx.h"']
        for g in self.globals_used:
            m = re.search(
                r"\.(?:global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
                + re.escape(g)
                + r"(?:\[(\d*)\])?\s*(?:=\s*(\{[^}]*\}|[^;]+))?;",
                self.module,
            )
            if not m:
                out.append(f"static uint8_t g_{g}[16];")
                continue
            vals = (m[4] or "{0}").strip()
            if not vals.startswith("{"):
                vals = "{" + vals + "}"
            out.append(f"static {CT[m[2]]} g_{g}[{m[3] or 1}] __attribute__((aligned(16))) = {vals};")
        decl = " ".join(f"{CT[t]} {r};" for r, t in self.regs.items()) + " unsigned CC = 0;"
        head = "const uint32_t lin_ = (T->tid[2]*B->ntid[1]+T->tid[1])*B->ntid[0]+T->tid[0]; const uint32_t lane_ = lin_&31; (void)lane_;"
        head += f" const uint32_t dyn_ = {self.shared_offset_dynamic}u; (void)dyn_;"
        size = self.params[-1][1] + self.params[-1][2] if self.params else 0
        info = (
            f"const int meta_[] = {{{size}, {self.shared_offset_dynamic}, {int(bool(yields))}, {len(self.params)}, "
            + ", ".join(f"{o}, {s}" for _, o, s in self.params)
            + f"}}; const int static_shared = {self.shared_size};"
        )
        body = []
        live = self.liveness() if yields else {}
        # Where threads meet often, as around tensor cores, to keep what is live would be most of the work: registers are then the state itself.
        in_state = sum(len(live[i]) for i in yields) > 4000
        saved = [*self.regs, "CC"] if in_state else sorted({r for i in yields for r in live[i]})
        for i, (kind, c, uses, defs, p) in enumerate(self.code):
            if kind == "label":
                body.append(f"{self.lab(c)}:;")
                continue
            if kind == "op":
                body.append(f"if ({p}) {{ {c} }}" if p else c)
                continue
            what, fields, after = c
            n = yields.index(i) + 1
            keep = [] if in_state else live[i]
            s = " ".join(f"T->{f} = {e};" for f, e in fields) + " " + " ".join(f"S->{r} = {r};" for r in keep)
            s += f" T->pc = {n}; return {what}; case {n}:; " + " ".join(f"{r} = S->{r};" for r in keep) + " " + (after or "")
            body.append(f"if ({p}) {{ {s} }}" if p else s)
        if not yields:
            loc = (
                f"uint8_t L_[{self.local_size}] __attribute__((aligned(16)));" if self.local_size else "uint8_t *L_ = 0; (void)L_;"
            )
            out += [f"static inline void thread_(const Block_ *B, const Thread_ *T) {{ {head} {loc} {decl}"] + body + ["end_:; }"]
            out += [
                "void run_block(const Block_ *B) { Thread_ t_, *T = &t_; T->copies = 0;",
                "for (T->tid[2] = 0; T->tid[2] < B->ntid[2]; T->tid[2]++) for (T->tid[1] = 0; T->tid[1] < B->ntid[1]; T->tid[1]++) for (T->tid[0] = 0; T->tid[0] < B->ntid[0]; T->tid[0]++) thread_(B, T); }",
            ]
            info += " const int state_size = 0, local_size = 0; int step(const Block_ *B, Thread_ *T, void *S) { return 0; }"
        else:
            out.append(
                "typedef struct { "
                + " ".join(f'{CT[self.regs.get(r, "u32")] if r != "CC" else "unsigned"} {r};' for r in saved)
                + " char pad_; } State_;"
            )
            if in_state:
                out += [f"#define {r} S->{r}" for r in saved]
                decl = ""
            out += (
                [
                    f"int step(const Block_ *B, Thread_ *T, void *s_) {{ State_ *S = s_; {head} uint8_t *L_ = T->local; (void)L_; {decl}",
                    "switch (T->pc) { case 0:;",
                ]
                + body
                + ["} end_: return DONE; }"]
            )
            info += f" const int state_size = sizeof(State_), local_size = {self.local_size}; void run_block(const Block_ *B) {{}}"
        return "\n".join(out + [info]) + "\n"

    def liveness(self):
        n = len(self.code)
        labels = {c[1]: i for i, c in enumerate(self.code) if c[0] == "label"}
        succ = []
        for i, (kind, c, *_rest) in enumerate(self.code):
            p = _rest[2]
            s = []
            if kind == "op" and c.startswith("goto "):
                t = c[5:-1]
                if t != "end_":
                    s.append(next(j for l, j in labels.items() if self.lab(l) == t))
                if p:
                    s.append(i + 1)
            else:
                s.append(i + 1)
            succ.append([x for x in s if x < n])
        li = [frozenset()] * n
        lo = [frozenset()] * n
        changed = True
        while changed:
            changed = False
            for i in range(n - 1, -1, -1):
                kind, c, uses, defs, p = self.code[i]
                o = frozenset().union(*[li[s] for s in succ[i]]) if succ[i] else frozenset()
                kill = frozenset() if p else frozenset(defs)
                inn = (o - kill) | frozenset(uses)
                if o != lo[i] or inn != li[i]:
                    lo[i], li[i] = o, inn
                    changed = True
        # What is live after a yield, without what the yield itself gives.
        return {i: sorted(r for r in lo[i] - frozenset(self.code[i][3]) if r) for i in range(n) if self.code[i][0] == "yield"}


if __name__ == "__main__":
    text = strip(open(sys.argv[1]).read())
    names = re.findall(r"\.entry\s+([\w$]+)", text)
    if sys.argv[2] == "--list":
        print("\n".join(names))
    elif sys.argv[2] == "--all":
        bad = 0
        for nm in names:
            try:
                Kernel(text, nm).emit()
            except Exception as e:
                bad += 1
                print(nm, type(e).__name__, e)
        print(len(names), "kernels,", bad, "failed")
    else:
        sys.stdout.write(Kernel(text, sys.argv[2]).emit())
