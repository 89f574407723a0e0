//! Access to the words of a ring: one implementation on raw shared memory, one on loom's types.

/// One area of a ring (descriptors, driver area, device area) as little-endian words.
///
/// Every access is a single relaxed atomic (or volatile) access; ordering comes from explicit fences in the ring
/// code. Offsets are in bytes from the area's start, aligned to the word's size and inside the area: ring code
/// computes them from checked indexes only.
pub trait Words: Send {
    /// Reads 16 bits.
    fn read_u16(&self, at: usize) -> u16;
    /// Reads 32 bits.
    fn read_u32(&self, at: usize) -> u32;
    /// Reads 64 bits.
    fn read_u64(&self, at: usize) -> u64;
    /// Writes 16 bits.
    fn write_u16(&self, at: usize, value: u16);
    /// Writes 32 bits.
    fn write_u32(&self, at: usize, value: u32);
    /// Writes 64 bits.
    fn write_u64(&self, at: usize, value: u64);
    /// Asks for the line at `at` to be read into the cache.
    #[inline]
    fn prefetch_read(&self, at: usize) {
        let _ = at;
    }
    /// Asks for the line at `at` to be owned by this core's cache.
    #[inline]
    fn prefetch_write(&self, at: usize) {
        let _ = at;
    }
}
