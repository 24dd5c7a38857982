//! Philox4x32-10: one counter at a time, and sixteen at once for the vector units.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and √3 - 1: what the key grows by from round to round.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Counters computed at once.
pub(super) const LANES: usize = 16;
/// 32-bit words that one counter gives.
pub(super) const WORDS: usize = 4;

/// The Philox4x32-10 bijection: four random words for a 128-bit counter and a 64-bit key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        counter = round(counter, key);
        key = next_key(key);
    }
    counter
}

#[inline(always)]
fn round([a, b, c, d]: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let first = u64::from(MULTIPLIER[0]) * u64::from(a);
    let second = u64::from(MULTIPLIER[1]) * u64::from(c);
    [
        (second >> 32) as u32 ^ b ^ key[0],
        second as u32,
        (first >> 32) as u32 ^ d ^ key[1],
        first as u32,
    ]
}

#[inline(always)]
fn next_key(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])]
}

/// Consecutive counters of one stream, sixteen at a time.
pub(super) struct Counters {
    next: u32,
    name: [u32; 3],
    key: [u32; 2],
}

impl Counters {
    #[inline(always)]
    pub(super) fn new(name: [u32; 3], key: [u32; 2]) -> Self {
        Self { next: 0, name, key }
    }

    /// The words of the next sixteen counters: word 0 of all sixteen, then word 1 of all, and so on.
    #[inline(always)]
    pub(super) fn next_group(&mut self) -> [u32; LANES * WORDS] {
        // In lanes of 64 bits whose upper halves are never looked at, a round is two multiplications, two shifts and two
        // exclusive ors; nothing has to be moved between lanes.
        let low = |word: u64| word & 0xffff_ffff;
        let mut a: [u64; LANES] = std::array::from_fn(|lane| u64::from(self.next.wrapping_add(lane as u32)));
        let [mut b, mut c, mut d] = self.name.map(|word| [u64::from(word); LANES]);
        self.next = self.next.wrapping_add(LANES as u32);
        let mut key = self.key;
        for _ in 0..ROUNDS {
            for lane in 0..LANES {
                let first = low(a[lane]) * u64::from(MULTIPLIER[0]);
                let second = low(c[lane]) * u64::from(MULTIPLIER[1]);
                a[lane] = (second >> 32) ^ b[lane] ^ u64::from(key[0]);
                b[lane] = second;
                c[lane] = (first >> 32) ^ d[lane] ^ u64::from(key[1]);
                d[lane] = first;
            }
            key = next_key(key);
        }
        let mut words = [0; LANES * WORDS];
        for lane in 0..LANES {
            words[lane] = a[lane] as u32;
            words[LANES + lane] = b[lane] as u32;
            words[2 * LANES + lane] = c[lane] as u32;
            words[3 * LANES + lane] = d[lane] as u32;
        }
        words
    }
}
