//! How a process that computes with these operators holds its memory: a step frees all it has allocated and allocates the
//! same again. For programs whose global allocator is mimalloc.

/// mimalloc's number for the option `purge_delay`, in milliseconds.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed memory for ten seconds before the system gets it back, unless `MIMALLOC_PURGE_DELAY` says otherwise.
///
/// After mimalloc's own delay of a second, several times a step of a large network, the system takes back what is free at
/// that moment and has to clear every page again when it is used next.
pub fn keep_freed_memory() {
    // SAFETY: the option exists in every version of mimalloc since 2.0, and setting it stores one number.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 10_000) };
}

/// Keeps the system from backing this process's memory with huge pages: mimalloc rounds large blocks up, and a huge page
/// makes the rounding resident. What is resident already stays as it is.
pub fn use_small_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!("huge pages stay on: {error}");
    }
}
