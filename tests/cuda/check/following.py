"""Products of the simulated cuBLASLt and convolutions of cuDNN with what follows them against exact arithmetic, and what both refuse."""
import ctypes
import math
import random
from fractions import Fraction

from driver import Refused
from exact import BF16, E4M3, F32, bits_of, value_of
from products import COMPUTE_32F, CUDNN_TYPES, NCHW, TYPES, Convolution, drawn, is_near

# cublasLt.h
TRANSPOSE_A, EPILOGUE, BIAS_POINTER, ALIGNMENT_OF_A = 3, 7, 8, 5
SCALE_POINTERS, SCALE_MODES, BY_ROW_AND_COLUMN = (17, 18), (31, 32), 3
E4M3_CODE = 28
NOTHING, BIAS, GELU, GELU_BIAS, RELU = 1, 4, 32, 36, 2
# cudnn_graph.h, cudnn_ops.h
IDENTITY, PRECOMPUTED, IMPLICIT, RELU_ACTIVATION, PROPAGATES_NAN = 5, 1, 0, 1, 1
# What a caller says that addresses are multiples of.
ALIGNMENT_BYTES = 16


class Product:
    """cuBLASLt's descriptions of (m, n) = (k, m) transposed times (k, n), columns first, without gaps."""

    def __init__(self, driver, cublas, kind, m, n, k, epilogue, output_kind=None, depth=None):
        self.driver, self.cublas = driver, cublas
        self.handle, self.description, self.preference = (ctypes.c_void_p() for _ in range(3))
        self.call("cublasLtCreate", ctypes.byref(self.handle))
        self.call("cublasLtMatmulDescCreate", ctypes.byref(self.description), COMPUTE_32F, TYPES["f32"][0])
        self.describe(TRANSPOSE_A, ctypes.c_int32(1))
        self.describe(EPILOGUE, ctypes.c_uint32(epilogue))
        self.call("cublasLtMatmulPreferenceCreate", ctypes.byref(self.preference))
        for matrix in range(4):
            value = ctypes.c_uint32(ALIGNMENT_BYTES)
            self.call("cublasLtMatmulPreferenceSetAttribute", self.preference, ALIGNMENT_OF_A + matrix, ctypes.byref(value), ctypes.c_size_t(4))
        code, output = (E4M3_CODE if kind == "e4m3" else TYPES[kind][0]), TYPES[output_kind or kind][0]
        self.layouts = [self.layout(*sides) for sides in ((code, k, m), (code, depth or k, n), (output, m, n))]

    def call(self, name, *arguments):
        self.driver.call(name, *arguments, library=self.cublas)

    def layout(self, code, rows, columns):
        layout = ctypes.c_void_p()
        self.call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), code, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))
        return layout

    def describe(self, attribute, value):
        self.call("cublasLtMatmulDescSetAttribute", self.description, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))

    def run(self, a, b, out, bias=None, residual=None):
        """Addresses; a residual is another matrix of the output's order."""
        if bias is not None:
            self.describe(BIAS_POINTER, ctypes.c_uint64(bias))
        found, advised = ctypes.c_int(), (ctypes.c_uint64 * 16)()
        first, second, output = self.layouts
        self.call("cublasLtMatmulAlgoGetHeuristic", self.handle, self.description, first, second, output, output, self.preference, 1, advised,
                  ctypes.byref(found))
        one, beta = ctypes.c_float(1), ctypes.c_float(residual is not None)
        addresses = [ctypes.c_uint64(address) for address in (a, b, out if residual is None else residual, out)]
        self.call("cublasLtMatmul", self.handle, self.description, ctypes.byref(one), addresses[0], first, addresses[1], second, ctypes.byref(beta),
                  addresses[2], output, addresses[3], output, advised, None, ctypes.c_size_t(0), self.driver.stream)
        self.driver.synchronize()


def gelu(x):
    """With tanh (Hendrycks and Gimpel 2016)."""
    x = float(x)
    return Fraction(0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def check_following(driver, draw):
    cublas = driver.library("libcublasLt.so.13")
    m, n, k = 9, 5, 33
    for name, (_, format, letter) in TYPES.items():
        a, b = drawn(draw, k * m, format), drawn(draw, k * n, format)
        bias, residual = drawn(draw, m, format), drawn(draw, m * n, format)
        there = [driver.buffer(values, letter).address for values in (a, b, bias, residual)]
        for epilogue in (NOTHING, BIAS, GELU_BIAS):
            for adds in (False, True):
                out = driver.buffer([0] * m * n, letter)
                product = Product(driver, cublas, name, m, n, k, epilogue)
                product.run(there[0], there[1], out.address, there[2] if epilogue != NOTHING else None, there[3] if adds else None)
                found = out.read(letter)
                for at in range(m * n):
                    row, column = at % m, at // m
                    terms = [value_of(a[row * k + i], format) * value_of(b[column * k + i], format) for i in range(k)]
                    terms += [value_of(residual[at], format)] if adds else []
                    terms += [value_of(bias[row], format)] if epilogue != NOTHING else []
                    exact = gelu(sum(terms)) if epilogue == GELU_BIAS else sum(terms)
                    if not is_near(found[at], exact, sum(map(abs, terms)), format):
                        yield f"cuBLASLt {name}, epilogue {epilogue}, residual {adds}: ({row}, {column})"


def check_scales(driver, draw):
    """8-bit values with a scale for each row and column."""
    cublas = driver.library("libcublasLt.so.13")
    m, n, k = 16, 5, 32
    # All but NaN.
    values = [[draw.randrange(2) << 7 | draw.randrange(127) for _ in range(k * columns)] for columns in (m, n)]
    scales = [[bits_of(F32.round(Fraction(draw.randrange(1, 999), 128)), F32) for _ in range(count)] for count in (m, n)]
    bias = drawn(draw, m, BF16)
    there = [driver.buffer(each, "B").address for each in values] + [driver.buffer(each, "I").address for each in scales]
    there.append(driver.buffer(bias, "H").address)
    for epilogue in (NOTHING, BIAS, GELU_BIAS):
        out = driver.buffer([0] * m * n, "H")
        product = Product(driver, cublas, "e4m3", m, n, k, epilogue, "bf16")
        for matrix in range(2):
            product.describe(SCALE_MODES[matrix], ctypes.c_int32(BY_ROW_AND_COLUMN))
            product.describe(SCALE_POINTERS[matrix], ctypes.c_uint64(there[2 + matrix]))
        product.run(there[0], there[1], out.address, there[4] if epilogue != NOTHING else None)
        found = out.read("H")
        for at in range(m * n):
            row, column = at % m, at // m
            terms = [value_of(values[0][row * k + i], E4M3) * value_of(values[1][column * k + i], E4M3) for i in range(k)]
            terms = [term * value_of(scales[0][row], F32) * value_of(scales[1][column], F32) for term in terms]
            terms += [value_of(bias[row], BF16)] if epilogue != NOTHING else []
            exact = gelu(sum(terms)) if epilogue == GELU_BIAS else sum(terms)
            if not is_near(found[at], exact, sum(map(abs, terms)), BF16):
                yield f"cuBLASLt e4m3 with scales, epilogue {epilogue}: ({row}, {column})"
    try:
        product.describe(SCALE_POINTERS[0], ctypes.c_uint64(there[2] + 4))
        product.run(there[0], there[1], out.address, there[4])
        yield "cuBLASLt took scales that are not aligned"
    except Refused:
        pass


def check_refusals(driver, draw):
    cublas, memory = driver.library("libcublasLt.so.13"), driver.empty(1 << 16).address
    sides = {"kind": "f16", "m": 8, "n": 8, "k": 16, "epilogue": BIAS}
    places = {"a": memory, "b": memory + 1024, "out": memory + 4096, "bias": memory + 2048}
    refusals = {
        "an epilogue that is not simulated": ({"epilogue": RELU}, {}),
        "a gelu without a bias, which is not simulated": ({"epilogue": GELU}, {}),
        "a bias without its address": ({}, {"bias": None}),
        "an output of another type": ({"output_kind": "f32"}, {}),
        "matrices of other depths": ({"depth": 24}, {}),
        "a scale for each row and column of halves": ({}, {}),
        "an address that is not aligned as was said": ({}, {"a": memory + 8}),
        "an output that is not aligned as was said": ({}, {"out": memory + 4098}),
    }
    Product(driver, cublas, **sides).run(**places)
    for what, (other_sides, other_places) in refusals.items():
        try:
            product = Product(driver, cublas, **sides | other_sides)
            if not other_sides and not other_places:
                for matrix in range(2):
                    product.describe(SCALE_MODES[matrix], ctypes.c_int32(BY_ROW_AND_COLUMN))
                    product.describe(SCALE_POINTERS[matrix], ctypes.c_uint64(memory + 8192))
            product.run(**places | other_places)
            yield f"cuBLASLt took {what}"
        except Refused:
            pass


def follow(convolution, images, weight, bias, residual, output, alpha=1.0, algorithm=PRECOMPUTED, activation=IDENTITY, nan=0, biases=None):
    """residual · alpha + convolution + bias, into `output`; all addresses."""
    activated = convolution.made("cudnnCreateActivationDescriptor")
    convolution.driver.call("cudnnSetActivationDescriptor", activated, activation, nan, ctypes.c_double(0), library=convolution.cudnn)
    one, alpha = ctypes.c_float(1), ctypes.c_float(alpha)
    images, weight, bias, residual, output = map(ctypes.c_uint64, (images, weight, bias, residual, output))
    convolution.driver.call("cudnnConvolutionBiasActivationForward", convolution.handle, ctypes.byref(one), convolution.images, images,
                            convolution.weight, weight, convolution.convolution, algorithm, None, ctypes.c_size_t(0), ctypes.byref(alpha),
                            convolution.output, residual, biases, bias, activated, convolution.output, output, library=convolution.cudnn)
    convolution.driver.synchronize()


def check_convolutions(driver, draw):
    cudnn = driver.library("libcudnn.so.9")
    in_sides, weight_sides, out_sides = (2, 4, 3, 3), (8, 4, 1, 1), (2, 8, 3, 3)
    count = 2 * 8 * 9
    for name, (_, format, letter) in TYPES.items():
        images, weight, bias, residual = (drawn(draw, values, format) for values in (2 * 4 * 9, 8 * 4, 8, count))
        there = [driver.buffer(values, letter).address for values in (images, weight, bias, residual)]
        convolution = Convolution(driver, cudnn, [name] * 3, in_sides, weight_sides, out_sides)
        biases = convolution.tensor(CUDNN_TYPES[name], NCHW, (1, 8, 1, 1))
        for alpha in (0, 1):
            output = driver.buffer([0] * count, letter)
            follow(convolution, *there, output.address, alpha, biases=biases)
            found = output.read(letter)
            for at in range(count):
                place, out, image = at % 9, at // 9 % 8, at // 72
                terms = [value_of(images[(image * 4 + c) * 9 + place], format) * value_of(weight[out * 4 + c], format) for c in range(4)]
                terms += [value_of(bias[out], format), alpha * value_of(residual[at], format)]
                if not is_near(found[at], sum(terms), sum(map(abs, terms)), format):
                    yield f"cuDNN {name} with a bias and {alpha} times a residual: {at}"
    memory = driver.empty(1 << 16).address
    convolution = Convolution(driver, cudnn, ["f16"] * 3, in_sides, weight_sides, out_sides)
    fitting = {"biases": convolution.tensor(CUDNN_TYPES["f16"], NCHW, (1, 8, 1, 1))}
    addresses = [memory + 4096 * place for place in range(5)]
    follow(convolution, *addresses, **fitting)
    refusals = {
        "no activation behind another algorithm": {"algorithm": IMPLICIT},
        "an activation that is not simulated": {"activation": RELU_ACTIVATION},
        "an activation that lets NaN through": {"nan": PROPAGATES_NAN},
        "a bias of another type": {"biases": convolution.tensor(CUDNN_TYPES["f32"], NCHW, (1, 8, 1, 1))},
        "a bias for each image": {"biases": convolution.tensor(CUDNN_TYPES["f16"], NCHW, (2, 8, 1, 1))},
    }
    for what, changes in refusals.items():
        try:
            follow(convolution, *addresses, **fitting | changes)
            yield f"cuDNN took {what}"
        except Refused:
            pass


def check(driver):
    draw = random.Random(5)
    return [problem for one in (check_following, check_scales, check_refusals, check_convolutions) for problem in one(driver, draw)]
