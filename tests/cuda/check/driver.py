"""CUDA's driver, cuBLAS and cuDNN through ctypes: what the checks of the simulated device ask of it."""
import array
import ctypes
import pathlib

POINTER_BYTES = 8


class Refused(Exception):
    """A call's status that is not success."""


class Buffer:
    """Memory of the device."""

    def __init__(self, driver, count_bytes):
        self.driver, self.bytes = driver, count_bytes
        address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(count_bytes))
        self.address = address.value

    def read(self, code):
        values = array.array(code, bytes(self.bytes))
        into = (ctypes.c_char * self.bytes).from_buffer(values)
        self.driver.call("cuMemcpyDtoH_v2", into, ctypes.c_uint64(self.address), ctypes.c_size_t(self.bytes))
        return list(values)


class Driver:
    """The simulated device's first context and one stream."""

    def __init__(self, device):
        self.libraries = pathlib.Path(device) / "lib"
        self.cuda = ctypes.CDLL(str(self.libraries / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self.call("cuInit", 0)
        number, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(number), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        self.stream = stream

    def call(self, name, *arguments, library=None):
        status = getattr(library or self.cuda, name)(*arguments)
        if status:
            raise Refused(f"{name}: {status}")

    def library(self, name):
        return ctypes.CDLL(str(self.libraries / name))

    def module(self, ptx):
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(ptx.encode()))
        return module

    def function(self, module, name):
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(name.encode()))
        return function

    def buffer(self, values, code):
        """A buffer with these values; `code` as the module `array` has it."""
        there = array.array(code, values)
        data = there.tobytes()
        buffer = Buffer(self, len(data))
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(buffer.address), ctypes.c_char_p(data), ctypes.c_size_t(len(data)))
        return buffer

    def empty(self, count_bytes):
        return Buffer(self, count_bytes)

    def launch(self, function, grid, block, arguments, shared_bytes=0):
        """`arguments`: buffers, or values of ctypes."""
        kept = [ctypes.c_uint64(a.address) if isinstance(a, Buffer) else a for a in arguments]
        pointers = (ctypes.c_void_p * max(len(kept), 1))(*[ctypes.cast(ctypes.byref(a), ctypes.c_void_p) for a in kept])
        grid, block = ((*sides, 1, 1)[:3] for sides in (grid, block))
        self.call("cuLaunchKernel", function, *grid, *block, shared_bytes, self.stream, pointers, None)

    def synchronize(self):
        self.call("cuStreamSynchronize", self.stream)
