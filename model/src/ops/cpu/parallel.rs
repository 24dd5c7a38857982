//! How work is cut into tasks. The cuts depend on sizes alone, never on the number of threads.

/// Elements of one task of an elementwise loop: long enough to hide what starting it costs.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 15;
