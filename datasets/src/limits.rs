//! How much a shard may claim before it is taken for an attack or for damage.

/// Bounds on what is read from shards of unknown origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest member, in bytes.
    pub member_bytes: u64,
    /// The longest member name, and the largest block of PAX records, in bytes.
    pub name_bytes: u64,
    /// The largest shard after decompression, in bytes.
    pub shard_bytes: u64,
    /// The largest shard, in bytes after decompression, that is held in memory whole: compressed and remote ones.
    pub memory_bytes: u64,
    /// The most members a shard may have.
    pub members: u64,
}

impl Default for Limits {
    /// 256 MiB a member, 64 KiB a name, 16 GiB a shard that is streamed or mapped and 4 GiB one in memory, 16 million
    /// members.
    fn default() -> Self {
        Self {
            member_bytes: 256 << 20,
            name_bytes: 64 << 10,
            shard_bytes: 16 << 30,
            memory_bytes: 4 << 30,
            members: 16 << 20,
        }
    }
}
