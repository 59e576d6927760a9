//! Content of streams that the receiver can check at any position without having seen what came before.

/// Length of the pattern: prime, so that a block that is lost, doubled or moved never goes unnoticed.
const PERIOD: usize = 65_521;

/// Bytes that depend on their position in the stream.
#[derive(Debug)]
pub struct Pattern {
    twice: Vec<u8>,
}

impl Pattern {
    /// The longest slice that [`Pattern::at`] returns.
    pub const MAX_LEN: usize = PERIOD;

    /// Makes the pattern of this seed.
    pub fn new(seed: u64) -> Self {
        let mut state = seed | 1;
        let once: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // Knuth's MMIX generator; the high bits are the random ones.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        Self { twice: once.repeat(2) }
    }

    /// Returns the bytes that stand at a position of the stream.
    pub fn at(&self, position: u64, len: usize) -> &[u8] {
        let start = (position % PERIOD as u64) as usize;
        &self.twice[start..start + len.min(PERIOD)]
    }

    /// Panics unless these are the bytes that stand at a position of the stream.
    pub fn check(&self, mut position: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (block, rest) = bytes.split_at(bytes.len().min(Self::MAX_LEN));
            assert!(
                block == self.at(position, block.len()),
                "the content is damaged in the {} bytes at {position}",
                block.len()
            );
            position += block.len() as u64;
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_seamless_and_damage_is_noticed() {
        let pattern = Pattern::new(7);
        let mut stream = pattern.at(0, PERIOD).to_vec();
        stream.extend(pattern.at(PERIOD as u64, 1000));
        pattern.check(0, &stream);
        pattern.check(100, &stream[100..]);
        stream[PERIOD] ^= 1;
        assert!(std::panic::catch_unwind(|| pattern.check(0, &stream)).is_err());
    }
}
