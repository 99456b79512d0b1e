"""What CUDA's documents say of streams, events, graphs and launches, and what a card refuses. Each check has a device of its own settings."""
import ctypes

from driver import Refused

COPY = """.version 8.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to)
{
.reg .u64 a, b; .reg .u32 i; .reg .f32 v; .reg .u64 at; ld.param.u64 a, [from]; ld.param.u64 b, [to]; mov.u32 i, %tid.x;
mul.wide.u32 at, i, 4; add.u64 a, a, at; add.u64 b, b, at; ld.global.f32 v, [a]; st.global.f32 [b], v; ret;
}
.visible .entry vectors(.param .u64 from, .param .u64 to)
{
.reg .u64 a, b; .reg .f32 v<4>; ld.param.u64 a, [from]; ld.param.u64 b, [to]; ld.global.v4.f32 {v0, v1, v2, v3}, [a]; st.global.v4.f32 [b], {v0, v1, v2, v3}; ret;
}
.visible .entry few(.param .u64 from) .maxntid 64, 1, 1
{
ret;
}
"""

checks = []


def device(**settings):
    """A check on a device with these settings (SIMCUDA_ before each name)."""
    def add(check):
        checks.append((check, {f"SIMCUDA_{name}": str(value) for name, value in settings.items()}))
        return check
    return add


def refused(status, call):
    """Whether the call is refused with this status of the driver (cuda.h), or another library's."""
    try:
        call()
    except Refused as error:
        assert str(error).endswith(f": {status}"), f"{error}, expected {status}"
        return
    raise AssertionError(f"not refused, expected {status}")


def pinned(driver, values):
    pointer = ctypes.c_void_p()
    driver.call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(4 * len(values)), 0)
    there = (ctypes.c_float * len(values)).from_address(pointer.value)
    there[:] = values
    return there


def to_device(driver, buffer, host):
    driver.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(buffer.address), host, ctypes.c_size_t(ctypes.sizeof(host)), driver.stream)


@device(MODE="lazy")
def pinned_memory_is_read_when_the_copy_is_done(driver):
    host, buffer = pinned(driver, [1.0]), driver.empty(4)
    to_device(driver, buffer, host)
    host[0] = 2.0
    driver.synchronize()
    assert buffer.read("f") == [2.0], "a copy was done at once, or not at all"


@device(MODE="lazy")
def an_event_says_that_what_was_before_it_is_done(driver):
    host, buffer, event = pinned(driver, [1.0]), driver.empty(4), ctypes.c_void_p()
    driver.call("cuEventCreate", ctypes.byref(event), 2)
    to_device(driver, buffer, host)
    driver.call("cuEventRecord", event, driver.stream)
    refused(600, lambda: driver.call("cuEventQuery", event))  # CUDA_ERROR_NOT_READY
    driver.call("cuEventSynchronize", event)
    host[0] = 2.0
    driver.call("cuEventQuery", event)
    driver.synchronize()
    assert buffer.read("f") == [1.0]


@device(MODE="lazy")
def pageable_memory_is_read_before_the_call_returns(driver):
    host, buffer = (ctypes.c_float * 1)(1.0), driver.empty(4)
    to_device(driver, buffer, host)
    host[0] = 2.0
    driver.synchronize()
    assert buffer.read("f") == [1.0]


@device(MODE="lazy", POISON=1)
def freed_memory_is_kept_until_what_was_issued_before_is_done(driver):
    source, target = driver.buffer([3.0], "f"), driver.empty(4)
    copy = driver.function(driver.module(COPY), "copy")
    driver.launch(copy, [1], [1], [source, target])
    driver.call("cuMemFreeAsync", ctypes.c_uint64(source.address), driver.stream)
    driver.synchronize()
    assert target.read("f") == [3.0]


@device(POISON=1)
def fresh_memory_is_nan(driver):
    assert all(value != value for value in driver.empty(64).read("f"))


def capture(driver, work):
    graph, instance = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuStreamBeginCapture_v2", driver.stream, 1)
    try:
        work()
    finally:
        driver.call("cuStreamEndCapture", driver.stream, ctypes.byref(graph))
    driver.call("cuGraphInstantiateWithFlags", ctypes.byref(instance), graph, ctypes.c_uint64(0))
    return instance


@device()
def a_graph_does_nothing_when_it_is_captured_and_all_of_it_at_each_launch(driver):
    source, target = driver.buffer([1.0], "f"), driver.buffer([0.0], "f")
    copy = driver.function(driver.module(COPY), "copy")
    graph = capture(driver, lambda: driver.launch(copy, [1], [1], [source, target]))
    assert target.read("f") == [0.0]
    for value in (5.0, 6.0):
        to_device(driver, source, (ctypes.c_float * 1)(value))
        driver.call("cuGraphLaunch", graph, driver.stream)
        driver.synchronize()
        assert target.read("f") == [value], "a replay reads the inputs as they are then"


@device()
def what_a_capture_cannot_hold_is_refused_and_ends_it(driver):
    buffer, event, host = driver.buffer([0.0], "f"), ctypes.c_void_p(), ctypes.c_void_p()
    there, size = ctypes.c_uint64(buffer.address), ctypes.c_size_t(4)
    copy = driver.function(driver.module(COPY), "copy")
    values = (ctypes.c_float * 1)(1.0)
    driver.call("cuEventCreate", ctypes.byref(event), 2)
    unsupported = 900  # CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    for status, call in (
        (unsupported, driver.synchronize),
        (unsupported, lambda: driver.call("cuStreamQuery", driver.stream)),
        (unsupported, lambda: driver.call("cuCtxSynchronize")),
        (unsupported, lambda: driver.call("cuEventSynchronize", event)),
        (unsupported, lambda: to_device(driver, buffer, values)),
        (unsupported, lambda: driver.call("cuMemcpyDtoHAsync_v2", values, there, size, driver.stream)),
        (unsupported, lambda: driver.call("cuMemcpyHtoD_v2", there, values, size)),
        (unsupported, lambda: driver.call("cuMemsetD8_v2", there, 0, size)),
        (unsupported, lambda: driver.empty(4)),
        (unsupported, lambda: driver.call("cuMemFree_v2", there)),
        (unsupported, lambda: driver.call("cuMemHostAlloc", ctypes.byref(host), size, 0)),
        (unsupported, lambda: driver.module(COPY)),
        (1, lambda: driver.call("cuMemFreeAsync", there, driver.stream)),  # CUDA_ERROR_INVALID_VALUE
    ):
        refused(901, lambda: capture(driver, lambda: refused(status, call)))  # CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    # The stream is as it was: the next capture holds what it can.
    source, target = driver.buffer([7.0], "f"), driver.buffer([0.0], "f")
    driver.call("cuGraphLaunch", capture(driver, lambda: driver.launch(copy, [1], [1], [source, target])), driver.stream)
    driver.synchronize()
    assert target.read("f") == [7.0]


@device(GRAPHS=0)
def a_driver_without_graphs_captures_nothing(driver):
    refused(801, lambda: driver.call("cuStreamBeginCapture_v2", driver.stream, 1))  # CUDA_ERROR_NOT_SUPPORTED
    driver.synchronize()


@device()
def what_a_graph_allocated_is_freed_before_its_next_launch(driver):
    address = ctypes.c_uint64()
    graph = capture(driver, lambda: driver.call("cuMemAllocAsync", ctypes.byref(address), ctypes.c_size_t(64), driver.stream))
    driver.call("cuGraphLaunch", graph, driver.stream)
    refused(1, lambda: driver.call("cuGraphLaunch", graph, driver.stream))
    driver.call("cuMemFreeAsync", address, driver.stream)
    driver.call("cuGraphLaunch", graph, driver.stream)


@device(CAP=80)
def a_launch_beyond_the_limits_is_refused(driver):
    module = driver.module(COPY)
    copy, few = driver.function(module, "copy"), driver.function(module, "few")
    both = [driver.empty(4096), driver.empty(4096)]
    for grid, block in (([0], [1]), ([1], [1025]), ([1], [1, 1, 65]), ([1, 65536], [1]), ([1], [32, 33])):
        refused(1, lambda: driver.launch(copy, grid, block, both))
    refused(1, lambda: driver.launch(few, [1], [65], [both[0]]))
    driver.launch(few, [1], [64], [both[0]])
    refused(500, lambda: driver.function(module, "missing"))  # CUDA_ERROR_NOT_FOUND


def shared_memory(driver, most):
    copy = driver.function(driver.module(COPY), "copy")
    both = [driver.empty(4), driver.empty(4)]
    driver.launch(copy, [1], [1], both, 48 << 10)
    refused(1, lambda: driver.launch(copy, [1], [1], both, (48 << 10) + 1))
    attribute = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    refused(1, lambda: driver.call("cuFuncSetAttribute", copy, attribute, most + 1))
    driver.call("cuFuncSetAttribute", copy, attribute, most)
    driver.launch(copy, [1], [1], both, most)


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
for cap, kib in ((80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)):
    def of_one(driver, kib=kib):
        shared_memory(driver, kib << 10)
    of_one.__name__ = f"shared_memory_of_{cap}"
    device(CAP=cap)(of_one)


@device()
def shared_memory_of_the_kernel_itself_counts(driver):
    text = COPY.replace(".visible .entry few(", ".visible .entry holds(.param .u64 to)\n{\n.shared .align 4 .b8 kept[1024]; .reg .u64 a; .reg .u32 v, s; "
                        "mov.u32 s, kept; ld.shared.u32 v, [s]; ld.param.u64 a, [to]; st.global.u32 [a], v; ret;\n}\n.visible .entry few(")
    holds = driver.function(driver.module(text), "holds")
    driver.launch(holds, [1], [1], [driver.empty(4)], (47 << 10))
    refused(1, lambda: driver.launch(holds, [1], [1], [driver.empty(4)], (47 << 10) + 4))


@device(CAP=80)
def blocks_with_more_registers_than_there_are_are_refused(driver):
    # Sixty-odd values that all live until the end: more than 64 registers a thread, so 1,024 threads have too many.
    many = 100
    body = " ".join(f"ld.global.f32 v{i}, [a+{4 * i}];" for i in range(many)) + "bar.sync 0;" + " ".join(f"st.global.f32 [b+{4 * i}], v{many - 1 - i};" for i in range(many))
    text = COPY.split(".visible")[0] + f".visible .entry wide(.param .u64 from, .param .u64 to)\n{{\n.reg .u64 a, b; .reg .f32 v<{many}>; ld.param.u64 a, [from]; ld.param.u64 b, [to]; {body} ret;\n}}\n"
    wide = driver.function(driver.module(text), "wide")
    both = [driver.empty(4 * many), driver.empty(4 * many)]
    driver.launch(wide, [1], [256], both)
    refused(701, lambda: driver.launch(wide, [1], [1024], both))  # CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES


@device(CAP=80, DRIVER=13000)
def modules_for_other_devices_and_newer_drivers_are_refused(driver):
    refused(222, lambda: driver.module(COPY.replace("8.0", "9.1")))  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    driver.module(COPY.replace("8.0", "9.0"))
    for target in ("sm_86", "sm_90", "sm_90a"):
        refused(209, lambda: driver.module(COPY.replace("sm_80", target)))  # CUDA_ERROR_NO_BINARY_FOR_GPU
    driver.module(COPY.replace("sm_80", "sm_75"))


@device(CAP=100)
def kernels_of_one_architecture_run_on_no_newer_one(driver):
    refused(209, lambda: driver.module(COPY.replace("sm_80", "sm_90a")))
    driver.module(COPY.replace("sm_80", "sm_90"))


@device(MIB=1)
def memory_ends(driver):
    driver.empty(1 << 20)
    refused(2, lambda: driver.empty(1))  # CUDA_ERROR_OUT_OF_MEMORY


def breaks(driver, status, launch):
    """After a fault every call fails alike."""
    try:
        launch()
    except Refused:
        pass
    refused(status, driver.synchronize)
    refused(status, lambda: driver.empty(4))


@device(CHECK=1)
def vectors_at_odd_addresses_break_the_device(driver):
    vectors = driver.function(driver.module(COPY), "vectors")
    source, target = driver.empty(64), driver.empty(64)
    driver.launch(vectors, [1], [1], [source, target])
    driver.synchronize()
    odd = ctypes.c_uint64(source.address + 8)
    breaks(driver, 716, lambda: driver.launch(vectors, [1], [1], [odd, target]))  # CUDA_ERROR_MISALIGNED_ADDRESS


@device(CHECK=1)
def memory_that_is_not_allocated_breaks_the_device(driver):
    copy = driver.function(driver.module(COPY), "copy")
    breaks(driver, 700, lambda: driver.launch(copy, [1], [17], [driver.empty(64), driver.empty(68)]))  # CUDA_ERROR_ILLEGAL_ADDRESS


ASYNC = """.version 8.0
.target sm_80
.address_size 64
.visible .entry groups(.param .u64 from, .param .u64 to)
{
.shared .align 16 .b8 kept[48];
.reg .u64 a, b; .reg .u32 s; .reg .b32 v; ld.param.u64 a, [from]; ld.param.u64 b, [to]; mov.u32 s, kept; bar.sync 0;
st.shared.u32 [s], 7; st.shared.u32 [s+16], 7; st.shared.u32 [s+32], 7;
cp.async.cg.shared.global [s], [a], 16; cp.async.commit_group;
cp.async.cg.shared.global [s+16], [a], 16, 4; cp.async.commit_group;
cp.async.ca.shared.global [s+32], [a], 4;
ld.shared.u32 v, [s]; st.global.u32 [b], v;
cp.async.wait_group 1;
ld.shared.u32 v, [s]; st.global.u32 [b+4], v; ld.shared.u32 v, [s+16]; st.global.u32 [b+8], v;
cp.async.wait_all;
ld.shared.u32 v, [s+16]; st.global.u32 [b+12], v; ld.shared.u32 v, [s+20]; st.global.u32 [b+16], v; ld.shared.u32 v, [s+32]; st.global.u32 [b+20], v;
ret;
}
"""


@device(MODE="lazy")
def copies_to_shared_memory_are_there_when_their_group_is_waited_for(driver):
    values, out = driver.buffer([1, 2, 3, 4], "I"), driver.empty(24)
    driver.launch(driver.function(driver.module(ASYNC), "groups"), [1], [1], [values, out])
    driver.synchronize()
    # The second group has four bytes and zeros, the last copy is of no group until all is waited for.
    assert out.read("I") == [7, 1, 7, 1, 0, 1], out.read("I")


@device(FAIL_AFTER=2)
def a_device_breaks_when_it_is_told_to(driver):
    copy = driver.function(driver.module(COPY), "copy")
    both = [driver.empty(4), driver.empty(4)]
    driver.launch(copy, [1], [1], both)
    breaks(driver, 700, lambda: driver.launch(copy, [1], [1], both))
