"""Numbers rounded as IEEE 754 and NVIDIA's formats say, out of exact fractions."""
import math
import struct
from fractions import Fraction


class Format:
    """A binary format: `precision` bits with the hidden one, exponents from `least`, the largest finite number `most`."""

    def __init__(self, name, precision, least, most, bits):
        self.name, self.precision, self.least, self.most, self.bits = name, precision, least, Fraction(most), bits

    def round(self, value, mode="n"):
        """To nearest even (n), to zero (z), down (m) or up (p). Beyond the largest number: infinity, or that number by the mode."""
        if value == 0:
            return Fraction(0)
        # At most one too small.
        exponent = abs(value.numerator).bit_length() - value.denominator.bit_length() - 1
        if abs(value) >= Fraction(2) ** (exponent + 1):
            exponent += 1
        exponent = max(exponent, self.least)
        unit = Fraction(2) ** (exponent - self.precision + 1)
        steps = value / unit
        whole = math.floor(steps)
        part = steps - whole
        if mode == "p":
            whole += part > 0
        elif mode == "z":
            whole += part > 0 and value < 0
        elif mode == "n":
            whole += part > Fraction(1, 2) or (part == Fraction(1, 2) and whole % 2 == 1)
        rounded = whole * unit
        if abs(rounded) <= self.most:
            return rounded
        outward = mode == "n" or (mode == "p" and value > 0) or (mode == "m" and value < 0)
        sign = 1 if value > 0 else -1
        return sign * math.inf if outward else sign * self.most


F16 = Format("f16", 11, -14, 65504, 16)
BF16 = Format("bf16", 8, -126, (2 - Fraction(1, 128)) * Fraction(2) ** 127, 16)
F32 = Format("f32", 24, -126, (2 - Fraction(1, 2**23)) * Fraction(2) ** 127, 32)
F64 = Format("f64", 53, -1022, (2 - Fraction(1, 2**52)) * Fraction(2) ** 1023, 64)
E4M3 = Format("e4m3", 4, -6, 448, 8)


def value_of(bits, format):
    """What bits stand for: a fraction, or a float for what is not finite."""
    if format is F64:
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
    elif format is F32:
        value = struct.unpack("<f", struct.pack("<I", bits))[0]
    elif format is BF16:
        value = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    elif format is F16:
        value = struct.unpack("<e", struct.pack("<H", bits))[0]
    else:
        exponent, fraction, sign = bits >> 3 & 15, bits & 7, -1 if bits & 128 else 1
        if exponent == 15 and fraction == 7:
            return math.nan
        return sign * (Fraction(fraction, 8) * Fraction(2) ** -6 if exponent == 0 else (1 + Fraction(fraction, 8)) * Fraction(2) ** (exponent - 7))
    return Fraction(value) if math.isfinite(value) else value


def bits_of(value, format):
    """The bits of a number that the format has, or of one that is not finite."""
    value = float(value)
    if format is F64:
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    if format is F32:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    if format is BF16:
        return struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    return struct.unpack("<H", struct.pack("<e", value))[0]
