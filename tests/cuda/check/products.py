"""Products and convolutions of the simulated cuBLAS and cuDNN against exact arithmetic, and what both refuse."""
import ctypes
import random
from fractions import Fraction

from driver import Refused
from exact import BF16, F16, F32, bits_of, value_of

# library_types.h, cublas_api.h, cudnn_graph.h
TYPES = {"f16": (2, F16, "H"), "bf16": (14, BF16, "H"), "f32": (0, F32, "I")}
COMPUTE_32F = 68
CUDNN_TYPES = {"f32": 0, "f16": 2, "bf16": 9}
NCHW, NHWC = 0, 1


def drawn(draw, count, format):
    return [bits_of(format.round(Fraction(draw.randrange(-999, 999), 256)), format) for _ in range(count)]


def is_near(bits, exact, scale, format):
    """Within the last place of a sum in f32, rounded once; `scale`: the sum of magnitudes."""
    bound = scale / 2**18 + abs(exact) / 2 ** (format.precision - 1) / 2 + Fraction(2) ** (format.least - format.precision)
    return abs(value_of(bits, format) - exact) <= bound


def check_products(driver, draw):
    cublas, handle = driver.library("libcublas.so.13"), ctypes.c_void_p()
    driver.call("cublasCreate_v2", ctypes.byref(handle), library=cublas)
    driver.call("cublasSetStream_v2", handle, driver.stream, library=cublas)
    m, n, k, batch = 5, 7, 33, 3
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    for name, (code, format, letter) in TYPES.items():
        for turned_a in (0, 1):
            for turned_b in (0, 1):
                lda, ldb, ldc = (k if turned_a else m) + 1, (n if turned_b else k) + 2, m + 3
                strides = lda * (m if turned_a else k), ldb * (k if turned_b else n), ldc * n
                a, b = drawn(draw, strides[0] * batch, format), drawn(draw, strides[1] * batch, format)
                c = driver.buffer([0] * strides[2] * batch, letter)
                pointers = [ctypes.c_uint64(buffer.address) for buffer in (driver.buffer(a, letter), driver.buffer(b, letter), c)]

                def multiply(lda=lda, m=m):
                    driver.call("cublasGemmStridedBatchedEx", handle, turned_a, turned_b, m, n, k, ctypes.byref(one), pointers[0], code, lda,
                                ctypes.c_longlong(strides[0]), pointers[1], code, ldb, ctypes.c_longlong(strides[1]), ctypes.byref(zero), pointers[2],
                                code, ldc, ctypes.c_longlong(strides[2]), batch, COMPUTE_32F, 0, library=cublas)
                multiply()
                driver.synchronize()
                found = c.read(letter)
                for image in range(batch):
                    for row in range(m):
                        for column in range(n):
                            at = lambda i: strides[0] * image + (row * lda + i if turned_a else i * lda + row)
                            bt = lambda i: strides[1] * image + (i * ldb + column if turned_b else column * ldb + i)
                            terms = [value_of(a[at(i)], format) * value_of(b[bt(i)], format) for i in range(k)]
                            if not is_near(found[strides[2] * image + column * ldc + row], sum(terms), sum(map(abs, terms)), format):
                                yield f"cuBLAS {name}, turned {turned_a} {turned_b}: ({image}, {row}, {column})"
    try:
        multiply(lda=(k if turned_a else m) - 1)
        yield "cuBLAS took a leading dimension that is too small"
    except Refused:
        pass


class Convolution:
    """cuDNN's descriptions of one convolution."""

    def __init__(self, driver, cudnn, kinds, images, weight, output, order=(NCHW, NCHW, NCHW), stride=1, padding=0, compute="f32", groups=1):
        self.driver, self.cudnn = driver, cudnn
        self.handle = self.made("cudnnCreate")
        driver.call("cudnnSetStream", self.handle, driver.stream, library=cudnn)
        self.images, self.output = (self.tensor(CUDNN_TYPES[kinds[i]], order[i], sides) for i, sides in ((0, images), (2, output)))
        self.weight = self.made("cudnnCreateFilterDescriptor")
        driver.call("cudnnSetFilter4dDescriptor", self.weight, CUDNN_TYPES[kinds[1]], order[1], *weight, library=cudnn)
        self.convolution = self.made("cudnnCreateConvolutionDescriptor")
        driver.call("cudnnSetConvolution2dDescriptor", self.convolution, padding, padding, stride, stride, 1, 1, 1, CUDNN_TYPES[compute], library=cudnn)
        driver.call("cudnnSetConvolutionGroupCount", self.convolution, groups, library=cudnn)

    def made(self, call):
        made = ctypes.c_void_p()
        self.driver.call(call, ctypes.byref(made), library=self.cudnn)
        return made

    def tensor(self, kind, order, sides):
        made = self.made("cudnnCreateTensorDescriptor")
        self.driver.call("cudnnSetTensor4dDescriptor", made, order, kind, *sides, library=self.cudnn)
        return made

    def run(self, images, weight, output):
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        images, weight, output = (ctypes.c_uint64(buffer.address) for buffer in (images, weight, output))
        self.driver.call("cudnnConvolutionForward", self.handle, ctypes.byref(one), self.images, images, self.weight, weight, self.convolution, 1,
                         None, ctypes.c_size_t(0), ctypes.byref(zero), self.output, output, library=self.cudnn)
        self.driver.synchronize()


def check_convolutions(driver, draw):
    cudnn = driver.library("libcudnn.so.9")
    for name, (_, format, letter) in TYPES.items():
        for channels, out, kernel, stride, order in ((8, 16, 3, 1, NCHW), (8, 16, 3, 2, NCHW), (3, 2, 1, 1, NCHW), (8, 16, 3, 1, NHWC)):
            if order == NHWC and name == "f32":
                continue
            batch, height, width, padding = 2, 6, 5, kernel // 2
            out_height, out_width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
            images, weight = drawn(draw, batch * channels * height * width, format), drawn(draw, out * channels * kernel**2, format)
            place = lambda sides, b, c, y, x: ((b * sides[1] + c) * sides[2] + y) * sides[3] + x if order == NCHW else ((b * sides[2] + y) * sides[3] + x) * sides[1] + c
            in_sides, out_sides, weight_sides = (batch, channels, height, width), (batch, out, out_height, out_width), (out, channels, kernel, kernel)
            output = driver.buffer([0] * batch * out * out_height * out_width, letter)
            convolution = Convolution(driver, cudnn, [name] * 3, in_sides, weight_sides, out_sides, [order] * 3, stride, padding)
            convolution.run(driver.buffer(images, letter), driver.buffer(weight, letter), output)
            found = output.read(letter)
            for at in range(0, len(found), 7):
                x, y, o, b = at % out_width, at // out_width % out_height, at // (out_width * out_height) % out, at // (out_width * out_height * out)
                terms = [value_of(images[place(in_sides, b, c, y * stride + i - padding, x * stride + j - padding)], format)
                         * value_of(weight[place(weight_sides, o, c, i, j)], format)
                         for c in range(channels) for i in range(kernel) for j in range(kernel)
                         if 0 <= y * stride + i - padding < height and 0 <= x * stride + j - padding < width]
                if not is_near(found[place(out_sides, b, o, y, x)], sum(terms), sum(map(abs, terms)), format):
                    yield f"cuDNN {name}, {channels} to {out}, kernel {kernel}, stride {stride}, order {order}: ({b}, {o}, {y}, {x})"


def check_refusals(driver, draw):
    """What cuDNN's documentation of the forward convolution does not list."""
    cudnn, memory = driver.library("libcudnn.so.9"), driver.empty(1 << 16)
    sides = (1, 8, 4, 4), (8, 8, 3, 3), (1, 8, 4, 4)
    same = {"kinds": ["f16"] * 3, "padding": 1}
    refusals = {
        "a filter of another type": {"kinds": ["f16", "f32", "f16"]},
        "an output of another type": {"kinds": ["f16", "f16", "f32"]},
        "sums in f16 of bf16": {"kinds": ["bf16"] * 3, "compute": "f16"},
        "a filter with channels last over images with channels first": {"order": (NCHW, NHWC, NCHW)},
        "an output with channels last alone": {"order": (NCHW, NCHW, NHWC)},
        "f32 with channels last": {"kinds": ["f32"] * 3, "order": (NHWC, NHWC, NHWC)},
        "more groups than are simulated": {"groups": 2},
    }
    for what, changes in refusals.items():
        settings = same | changes
        try:
            Convolution(driver, cudnn, settings.pop("kinds"), *sides, **settings).run(memory, memory, memory)
            yield f"cuDNN took {what}"
        except Refused:
            pass
    try:
        Convolution(driver, cudnn, ["f16"] * 3, sides[0], sides[1], (1, 8, 5, 4), padding=1).run(memory, memory, memory)
        yield "cuDNN took an output of other sides"
    except Refused:
        pass


def check(driver):
    draw = random.Random(3)
    return [problem for one in (check_products, check_convolutions, check_refusals) for problem in one(driver, draw)]
