//! An allocator that keeps large blocks when they are freed: the next tensor of about that size takes one over.
//!
//! A layer's result is as large as an image's activations, and lives for a layer or two. Fresh from the system each of its pages costs a
//! fault and is zeroed: a sixth of a UNet's time at 512x512 on two cores. With jemalloc 5.3 or mimalloc 2.0 in the system's place it was no faster.
//!
//! It is every program's allocator, since a program has one alone, and keeps nothing until [`turn_on`]: what only carries requests has no use
//! for the memory of the last one. Until then large blocks are mappings of their own, which the system has back the moment they are freed: its
//! own allocator keeps up to 64 MiB for each of many threads. A build for GPUs is without it: tensors lie on the device there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Smaller blocks are the system's business.
const SMALLEST: usize = 1 << 20;
/// What blocks are aligned to at least: a line of the cache.
const ALIGN: usize = 64;
/// A page. Blocks of the system's allocator begin at one, mapped blocks [`ALIGN`] bytes behind: by its address each is freed as it was made.
const PAGE: usize = 4096;
/// A huge page. Blocks from this size on begin at one and are asked to be made of them: a page costs a fault each, and there are 512 times
/// fewer. On a virtual machine to get and fill 2.9 GB cost 0.4 s of processor time in place of 1.4 s.
const HUGE: usize = 2 << 20;
/// Larger blocks are left to the system: hardly a weight is, and for a VAE's, which are too large to be kept, the kernel took longer to find huge
/// pages than they saved (a decode of 512x512 in 8.6 s in place of 8.2).
const MAX_HUGE: usize = 127 << 20;
/// Sizes of blocks from one power of two to the next.
const CLASSES: usize = 8;
const MAX_BLOCKS: usize = 64;
/// Bytes that are kept, however many blocks they are.
const MAX_BYTES: usize = 1 << 30;

#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator::new();

/// From now on large blocks that are freed are kept for the next of their size: for processes that generate on a CPU.
pub fn turn_on() {
    ALLOCATOR.turn_on();
}

/// The system's allocator with recycled large blocks: up to 64 of them and 1 GiB are kept once it is turned on.
struct CachingAllocator {
    is_on: AtomicBool,
    kept: Mutex<Kept>,
}

struct Kept {
    /// The first `count` of them hold a block, the one freed first in front.
    blocks: [Block; MAX_BLOCKS],
    count: usize,
    bytes: usize,
}

#[derive(Clone, Copy)]
struct Block {
    start: *mut u8,
    size: usize,
}

// SAFETY: a kept block belongs to no one else.
unsafe impl Send for Block {}

impl CachingAllocator {
    const fn new() -> Self {
        let none = Block { start: std::ptr::null_mut(), size: 0 };
        Self { is_on: AtomicBool::new(false), kept: Mutex::new(Kept { blocks: [none; MAX_BLOCKS], count: 0, bytes: 0 }) }
    }

    fn turn_on(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// A kept block, else a fresh one; null where there is no memory.
    fn get(&self, size: usize) -> *mut u8 {
        if self.is_on() { self.take(size).unwrap_or_else(|| fresh(size)) } else { mapped(size) }
    }

    fn take(&self, size: usize) -> Option<*mut u8> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.blocks[..kept.count].iter().rposition(|block| block.size == size)?;
        Some(kept.remove(place).start)
    }

    fn keep(&self, block: Block) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.count > 0 && (kept.count == MAX_BLOCKS || kept.bytes + block.size > MAX_BYTES) {
            kept.remove(0).give_back();
        }
        if block.size > MAX_BYTES {
            return block.give_back();
        }
        let count = kept.count;
        kept.blocks[count] = block;
        kept.count += 1;
        kept.bytes += block.size;
    }
}

impl Kept {
    fn remove(&mut self, place: usize) -> Block {
        let block = self.blocks[place];
        self.blocks.copy_within(place + 1..self.count, place);
        self.count -= 1;
        self.bytes -= block.size;
        block
    }
}

impl Block {
    fn give_back(self) {
        // SAFETY: large blocks are asked for with this layout, and given back once.
        unsafe { System.dealloc(self.start, large(self.size)) }
    }
}

/// What is asked of the system for a block that `layout` fits into, if it is a large one: an eighth more at most.
fn class(layout: Layout) -> Option<usize> {
    if layout.size() < SMALLEST || layout.align() > ALIGN || layout.size() > usize::MAX >> 2 {
        return None;
    }
    let step = (layout.size().next_power_of_two() / 2 / CLASSES).max(1);
    Some(layout.size().next_multiple_of(step))
}

fn is_huge(size: usize) -> bool {
    (HUGE..=MAX_HUGE).contains(&size)
}

fn large(size: usize) -> Layout {
    let align = if is_huge(size) { HUGE } else { PAGE };
    // SAFETY: a power of two, and sizes above a quarter of the address space have no class.
    unsafe { Layout::from_size_align_unchecked(size, align) }
}

/// A block that no one has used yet; null where there is no memory.
fn fresh(size: usize) -> *mut u8 {
    // SAFETY: a class is never empty.
    let start = unsafe { System.alloc(large(size)) };
    if !start.is_null() && is_huge(size) {
        // SAFETY: it is the block's own memory, and what is in it stays as it is. Where there are no huge pages, nothing has changed.
        let _ = unsafe { madvise(start.cast(), size, Advice::LinuxHugepage) };
    }
    start
}

/// A block of zeros that is a mapping of its own; null where there is no memory.
fn mapped(size: usize) -> *mut u8 {
    // SAFETY: new memory at a place that the system chooses is no one's.
    let start =
        unsafe { mmap_anonymous(std::ptr::null_mut(), size + ALIGN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    // SAFETY: the mapping is longer than that.
    start.map_or(std::ptr::null_mut(), |start| unsafe { start.cast::<u8>().add(ALIGN) })
}

fn is_mapped(start: *mut u8) -> bool {
    start.addr() % PAGE == ALIGN
}

/// # Safety
/// `start` and `size` are those of a mapped block that no one uses.
unsafe fn unmap(start: *mut u8, size: usize) {
    // SAFETY: the block is the whole mapping but for its first bytes. It fails for addresses alone that are no pages.
    let _ = unsafe { munmap(start.sub(ALIGN).cast(), size + ALIGN) };
}

// SAFETY: blocks come from the system or its allocator; a kept one is handed out once, to a layout of its own class.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's.
        unsafe {
            match class(layout) {
                None => System.alloc(layout),
                Some(size) => self.get(size),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above; a block has at least the layout's size.
        unsafe {
            match class(layout) {
                None => System.alloc_zeroed(layout),
                Some(size) => {
                    let start = self.get(size);
                    // A mapping is of zeros.
                    if !start.is_null() && !is_mapped(start) {
                        start.write_bytes(0, layout.size());
                    }
                    start
                }
            }
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match class(layout) {
            // SAFETY: the caller's promises are the system's.
            None => unsafe { System.dealloc(start, layout) },
            // SAFETY: the caller promises that it has the layout that it was made for, and that no one uses it.
            Some(size) if is_mapped(start) => unsafe { unmap(start, size) },
            Some(size) => self.keep(Block { start, size }),
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (class(layout), class(new)) {
            // SAFETY: the caller's promises are the system's.
            (None, None) => unsafe { System.realloc(start, layout, new_size) },
            (old, new) if old == new => start,
            // SAFETY: both blocks hold what is copied, and they are not the same.
            (_, _) => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    start.copy_to_nonoverlapping(moved, layout.size().min(new_size));
                    self.dealloc(start, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Layout = Layout::new::<[u8; 3 << 20]>();

    fn turned_on() -> CachingAllocator {
        let caching_allocator = CachingAllocator::new();
        caching_allocator.turn_on();
        caching_allocator
    }

    #[test]
    fn nothing_is_kept_until_it_is_turned_on_and_blocks_of_before_are_freed_as_they_were_made() {
        let caching_allocator = CachingAllocator::new();
        let bytes = || caching_allocator.kept.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        // SAFETY: blocks are read and written within their layouts and freed once.
        unsafe {
            let early = caching_allocator.alloc(LARGE);
            early.write_bytes(7, LARGE.size());
            let zeroed = caching_allocator.alloc_zeroed(LARGE);
            assert!(is_mapped(early) && is_mapped(zeroed) && zeroed.addr().is_multiple_of(ALIGN));
            assert!(std::slice::from_raw_parts(zeroed, LARGE.size()).iter().all(|byte| *byte == 0));
            caching_allocator.dealloc(zeroed, LARGE);
            caching_allocator.turn_on();
            let late = caching_allocator.realloc(early, LARGE, 5 << 20);
            assert!(!is_mapped(late) && std::slice::from_raw_parts(late, LARGE.size()).iter().all(|byte| *byte == 7));
            assert_eq!(bytes(), 0, "mapped blocks are not kept");
            caching_allocator.dealloc(late, Layout::from_size_align(5 << 20, LARGE.align()).expect("a layout"));
            assert_eq!(bytes(), 5 << 20);
        }
    }

    #[test]
    fn a_freed_block_is_taken_over_by_the_next_of_its_class_and_zeroed_where_that_is_asked() {
        let caching_allocator = turned_on();
        let shorter = Layout::from_size_align(LARGE.size() - 5, 8).expect("a layout");
        // SAFETY: blocks are written within their layouts and freed once.
        unsafe {
            let first = caching_allocator.alloc(LARGE);
            assert!(first.addr().is_multiple_of(HUGE));
            first.write_bytes(7, LARGE.size());
            caching_allocator.dealloc(first, LARGE);
            let second = caching_allocator.alloc_zeroed(shorter);
            assert_eq!(first, second);
            assert!(std::slice::from_raw_parts(second, shorter.size()).iter().all(|byte| *byte == 0));
            let third = caching_allocator.alloc(LARGE);
            assert_ne!(second, third);
            caching_allocator.dealloc(second, shorter);
            caching_allocator.dealloc(third, LARGE);
        }
    }

    #[test]
    fn what_grows_keeps_its_bytes() {
        let caching_allocator = turned_on();
        for (from, to) in [(100, 5 << 20), (5 << 20, 5 << 20), (5 << 20, (5 << 20) - 3), (2 << 20, 9 << 20), (9 << 20, 50)] {
            let layout = Layout::from_size_align(from, 16).expect("a layout");
            // SAFETY: within the layouts; freed once, with the last one.
            unsafe {
                let start = caching_allocator.alloc(layout);
                start.write_bytes(3, from);
                let moved = caching_allocator.realloc(start, layout, to);
                assert!(std::slice::from_raw_parts(moved, from.min(to)).iter().all(|byte| *byte == 3));
                caching_allocator.dealloc(moved, Layout::from_size_align(to, 16).expect("a layout"));
            }
        }
    }

    #[test]
    fn no_more_is_kept_than_was_said() {
        let caching_allocator = turned_on();
        // SAFETY: never written, freed once.
        let starts: Vec<*mut u8> = (0..MAX_BLOCKS + 20).map(|_| unsafe { caching_allocator.alloc(LARGE) }).collect();
        for start in starts {
            // SAFETY: as above.
            unsafe { caching_allocator.dealloc(start, LARGE) };
        }
        let huge = Layout::from_size_align(MAX_BYTES - (3 << 20), 8).expect("a layout");
        for _ in 0..2 {
            // SAFETY: as above.
            unsafe { caching_allocator.dealloc(caching_allocator.alloc(huge), huge) };
        }
        let kept = caching_allocator.kept.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(kept.count < MAX_BLOCKS && kept.bytes <= MAX_BYTES, "{} blocks, {} bytes", kept.count, kept.bytes);
    }
}
