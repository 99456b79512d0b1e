//! Where the tensors of a captured step lie: one piece of memory, which is handed out in the driver's place while a thread captures.
//!
//! The driver would make an allocation in a capture a node of the graph, with memory of its own that nothing else can have. Here a step is first done
//! plainly, while this module [notes](watched) what it allocates and frees. From that follows how large an arena it needs. In the capture
//! the same calls are then answered from the [`Arena`], at addresses that are the graph's as long as it lives.
//!
//! candle and cudarc have no place for another allocator, so the driver's own functions are defined here ([`super::libraries`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _, DriverError};

use super::libraries;

/// What addresses are multiples of; the driver's are of 256.
const ALIGNED_BYTES: usize = 512;

/// Of the driver: `CUDA_SUCCESS`, `CUDA_ERROR_OUT_OF_MEMORY`, `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
const SUCCESS: c_int = 0;
const OUT_OF_MEMORY: c_int = 2;
const CAPTURE_UNSUPPORTED: c_int = 900;

type Stream = *mut c_void;
type Allocate = extern "C" fn(*mut u64, usize, Stream) -> c_int;
type Free = extern "C" fn(u64, Stream) -> c_int;
type ToDevice = extern "C" fn(u64, *const c_void, usize, Stream) -> c_int;
type ToHost = extern "C" fn(*mut c_void, u64, usize, Stream) -> c_int;

/// What a step asked of the driver.
#[derive(Clone, Copy, Debug)]
enum Call {
    Allocate { address: u64, bytes: usize },
    Free { address: u64 },
}

/// What becomes of this thread's calls.
enum Watch {
    Nothing,
    Notes(Vec<Call>),
    Captures(Capture),
}

struct Capture {
    first: u64,
    places: Places,
    /// What was freed that is not the arena's: it goes back to the driver when the capture has ended.
    freed: Vec<u64>,
}

thread_local! {
    static WATCH: RefCell<Watch> = const { RefCell::new(Watch::Nothing) };
}

/// The arenas there are, by their first addresses, and the addresses behind their last bytes.
static ARENAS: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());
/// How many these are, which is all that a free has to know where there are none.
static ARENA_COUNT: AtomicUsize = AtomicUsize::new(0);

/// What a step allocated and freed.
#[derive(Debug)]
pub(super) struct Notes(Vec<Call>);

/// Does `step`, whose calls go to the driver, and notes them.
pub(super) fn watched<R>(step: impl FnOnce() -> R) -> (R, Notes) {
    let before = set_watch(Watch::Notes(Vec::new()));
    let result = step();
    let notes = match set_watch(before) {
        Watch::Notes(calls) => calls,
        Watch::Nothing | Watch::Captures(_) => Vec::new(),
    };
    (result, Notes(notes))
}

impl Notes {
    /// Bytes of an arena for the same step once more. `kept`: addresses of what it returned; whatever else it left behind, such as
    /// uploads that are kept, will not be made again.
    pub(super) fn arena_bytes(&self, kept: &[u64]) -> usize {
        let mut living: HashMap<u64, usize> = HashMap::new();
        for (index, call) in self.0.iter().enumerate() {
            match call {
                Call::Allocate { address, .. } => drop(living.insert(*address, index)),
                Call::Free { address } => drop(living.remove(address)),
            }
        }
        let left: HashSet<usize> =
            living.into_iter().filter(|(address, _)| !kept.contains(address)).map(|(_, index)| index).collect();
        let mut places = Places::new(usize::MAX);
        let mut offsets: HashMap<u64, usize> = HashMap::new();
        for (index, call) in self.0.iter().enumerate() {
            match call {
                Call::Allocate { address, bytes } if !left.contains(&index) => {
                    if let Some(offset) = places.take(*bytes) {
                        offsets.insert(*address, offset);
                    }
                }
                Call::Allocate { .. } => {}
                Call::Free { address } => {
                    if let Some(offset) = offsets.remove(address) {
                        places.give(offset);
                    }
                }
            }
        }
        places.highest
    }
}

/// Memory of one captured step.
pub(super) struct Arena {
    memory: CudaSlice<u8>,
    first: u64,
}

impl Arena {
    /// # Errors
    /// The driver's, when there is no memory.
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.max(ALIGNED_BYTES);
        // SAFETY: what is read of it is written before, by the same kernels that do so without an arena.
        let memory = unsafe { stream.alloc::<u8>(bytes)? };
        let first = memory.device_ptr(stream).0;
        let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
        arenas.insert(first, first + bytes as u64);
        ARENA_COUNT.store(arenas.len(), Ordering::Release);
        drop(arenas);
        Ok(Self { memory, first })
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// What this thread allocates from now on lies in the arena, until [`Captured::end`].
    pub(super) fn capture(&self) -> Captured {
        let capture = Capture { first: self.first, places: Places::new(self.bytes()), freed: Vec::new() };
        set_watch(Watch::Captures(capture));
        Captured { first: self.first }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
        arenas.remove(&self.first);
        ARENA_COUNT.store(arenas.len(), Ordering::Release);
    }
}

/// A thread whose allocations lie in an arena.
pub(super) struct Captured {
    first: u64,
}

/// What a capture left behind.
pub(super) struct Left {
    /// Addresses in the arena that were not freed.
    pub(super) living: Vec<u64>,
    freed: Vec<u64>,
}

impl Captured {
    /// The stream is not captured any more.
    pub(super) fn end(self) -> Left {
        match set_watch(Watch::Nothing) {
            Watch::Captures(Capture { places, freed, .. }) => {
                Left { living: places.taken.keys().map(|offset| self.first + *offset as u64).collect(), freed }
            }
            Watch::Nothing | Watch::Notes(_) => Left { living: Vec::new(), freed: Vec::new() },
        }
    }
}

impl Left {
    /// Gives back to the driver what was freed meanwhile.
    pub(super) fn free(&self, stream: &CudaStream) {
        for address in &self.freed {
            cuMemFreeAsync(*address, stream.cu_stream().cast());
        }
    }
}

fn set_watch(watch: Watch) -> Watch {
    // Where the thread ends there is nothing to watch.
    WATCH.try_with(|current| current.replace(watch)).unwrap_or(Watch::Nothing)
}

/// Whether the address lies in an arena.
fn is_of_an_arena(address: u64) -> bool {
    if ARENA_COUNT.load(Ordering::Acquire) == 0 {
        return false;
    }
    let arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    arenas.range(..=address).next_back().is_some_and(|(_, end)| address < *end)
}

/// Which parts of an arena are free: the first that is large enough is taken, and neighbours become one again.
#[derive(Debug)]
struct Places {
    size: usize,
    /// Bytes of the free parts below `end`, by their offsets.
    free: BTreeMap<usize, usize>,
    taken: HashMap<usize, usize>,
    /// Behind all that is taken.
    end: usize,
    /// The most that `end` was.
    highest: usize,
}

impl Places {
    fn new(size: usize) -> Self {
        Self { size, free: BTreeMap::new(), taken: HashMap::new(), end: 0, highest: 0 }
    }

    /// The offset of so many bytes; none where there are not so many together.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGNED_BYTES)?;
        let fitting = self.free.iter().find(|(_, free)| **free >= bytes).map(|(offset, free)| (*offset, *free));
        let offset = if let Some((offset, free)) = fitting {
            self.free.remove(&offset);
            if free > bytes {
                self.free.insert(offset + bytes, free - bytes);
            }
            offset
        } else {
            let offset = self.end;
            self.end = offset.checked_add(bytes).filter(|end| *end <= self.size)?;
            self.highest = self.highest.max(self.end);
            offset
        };
        self.taken.insert(offset, bytes);
        Some(offset)
    }

    /// Whether it was taken.
    fn give(&mut self, offset: usize) -> bool {
        let Some(mut bytes) = self.taken.remove(&offset) else { return false };
        let mut offset = offset;
        if let Some(after) = self.free.remove(&(offset + bytes)) {
            bytes += after;
        }
        if let Some((before, size)) = self.free.range(..offset).next_back().map(|(before, size)| (*before, *size))
            && before + size == offset
        {
            self.free.remove(&before);
            offset = before;
            bytes += size;
        }
        if offset + bytes == self.end {
            self.end = offset;
        } else {
            self.free.insert(offset, bytes);
        }
        true
    }
}

/// The library's function at this address.
macro_rules! of_library {
    ($name:ident as $function:ty) => {{
        let address: &AtomicPtr<c_void> = &libraries::$name::ADDRESS;
        // SAFETY: what is there is the driver's function of this name, whose type this is, or `not_loaded`, which never returns.
        unsafe { std::mem::transmute::<*mut c_void, $function>(address.load(Ordering::Acquire)) }
    }};
}

// SAFETY: the name is the driver's, and so are arguments and result.
#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: Stream) -> c_int {
    let answered = WATCH.try_with(|watch| match &mut *watch.borrow_mut() {
        Watch::Captures(capture) => Some(capture.places.take(bytes).map(|offset| capture.first + offset as u64)),
        Watch::Nothing | Watch::Notes(_) => None,
    });
    if let Ok(Some(place)) = answered {
        let Some(address) = place else { return OUT_OF_MEMORY };
        // SAFETY: the caller's own, as for the driver's function.
        unsafe { out.write(address) };
        return SUCCESS;
    }
    let status = of_library!(cuMemAllocAsync as Allocate)(out, bytes, stream);
    if status == SUCCESS {
        // SAFETY: the driver has just written it.
        let address = unsafe { out.read() };
        note(Call::Allocate { address, bytes });
    }
    status
}

// SAFETY: the name is the driver's, and so are arguments and result.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: Stream) -> c_int {
    let answered = WATCH.try_with(|watch| match &mut *watch.borrow_mut() {
        Watch::Captures(capture) => {
            let given = address.checked_sub(capture.first).is_some_and(|offset| capture.places.give(offset as usize));
            // A free in a capture would be a node that frees it at every launch.
            if !given && !is_of_an_arena(address) {
                capture.freed.push(address);
            }
            true
        }
        Watch::Nothing | Watch::Notes(_) => false,
    });
    // What lies in an arena goes when the arena does.
    if answered == Ok(true) || is_of_an_arena(address) {
        return SUCCESS;
    }
    note(Call::Free { address });
    of_library!(cuMemFreeAsync as Free)(address, stream)
}

/// A graph would read the host's memory again at every launch, whatever is there by then.
// SAFETY: the name is the driver's, and so are arguments and result.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Stream) -> c_int {
    if captures() { CAPTURE_UNSUPPORTED } else { of_library!(cuMemcpyHtoDAsync_v2 as ToDevice)(to, from, bytes, stream) }
}

/// Nothing is there yet when the call returns, but who reads it counts on it.
// SAFETY: the name is the driver's, and so are arguments and result.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Stream) -> c_int {
    if captures() { CAPTURE_UNSUPPORTED } else { of_library!(cuMemcpyDtoHAsync_v2 as ToHost)(to, from, bytes, stream) }
}

fn captures() -> bool {
    WATCH.try_with(|watch| matches!(&*watch.borrow(), Watch::Captures(_))).unwrap_or(false)
}

fn note(call: Call) {
    let _ = WATCH.try_with(|watch| {
        if let Watch::Notes(calls) = &mut *watch.borrow_mut() {
            calls.push(call);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_again_and_never_twice() {
        let mut places = Places::new(10 * ALIGNED_BYTES);
        let first = places.take(1).expect("a place");
        let second = places.take(3 * ALIGNED_BYTES).expect("a place");
        let third = places.take(ALIGNED_BYTES + 1).expect("a place");
        assert_eq!([first, second, third], [0, ALIGNED_BYTES, 4 * ALIGNED_BYTES]);
        assert!(places.give(second) && !places.give(second), "given back once");
        assert_eq!(places.take(ALIGNED_BYTES), Some(second), "the first that is large enough");
        assert_eq!(places.take(2 * ALIGNED_BYTES), Some(second + ALIGNED_BYTES), "and what is left of it");
        assert!(places.give(third), "the last");
        assert_eq!((places.end, places.highest), (4 * ALIGNED_BYTES, 6 * ALIGNED_BYTES));
        assert_eq!(places.take(7 * ALIGNED_BYTES), None, "more than is left");
        assert_eq!(places.take(6 * ALIGNED_BYTES), Some(4 * ALIGNED_BYTES), "all that is left");
        for offset in [0, second, second + ALIGNED_BYTES, 4 * ALIGNED_BYTES] {
            assert!(places.give(offset));
        }
        assert!(places.free.is_empty() && places.end == 0 && places.taken.is_empty(), "one free piece again");
    }

    #[test]
    fn an_arena_is_as_large_as_a_step_needs_when_it_is_done_again() {
        let allocate = |address, bytes| Call::Allocate { address, bytes };
        let free = |address| Call::Free { address };
        // What is kept of the first time (7) is not there the second; an address (1) may come twice.
        let calls = vec![
            allocate(1, 512),
            allocate(7, 4096),
            allocate(2, 1024),
            free(1),
            allocate(1, 512),
            free(2),
            free(9),
            free(1),
            allocate(5, 1),
        ];
        assert_eq!(Notes(calls.clone()).arena_bytes(&[5]), 1536);
        assert_eq!(Notes(calls).arena_bytes(&[5, 7]), 1536 + 4096);
    }
}
