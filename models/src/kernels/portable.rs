//! The kernel in plain Rust: what the others are checked against, and what runs where none of them does.

use super::BLOCK;
use super::activations::{Sums, Tile};
use super::pack::{PANEL, Panel, Scheme, Type, integer};

/// All rows of a tile with all rows of a panel.
pub(super) fn tile(kind: Type, panel: Panel<'_>, x: Tile<'_>, sums: &mut Sums) {
    sums[..x.rows].fill([0.0; PANEL]);
    let mut integers = [[0u8; BLOCK]; PANEL];
    for (b, lines) in panel.lines.chunks_exact(kind.bits()).enumerate() {
        for (row, integers) in integers.iter_mut().enumerate() {
            integers.iter_mut().enumerate().for_each(|(j, q)| *q = integer(lines, row, j));
        }
        for (row, integers) in integers.iter().enumerate() {
            let (scales, minimum) = panel.scale(kind, b, row);
            for (c, sums) in sums[..x.rows].iter_mut().enumerate() {
                let at = b * x.rows + c;
                let dot = |from: usize, to: usize| -> i32 {
                    integers[from..to]
                        .iter()
                        .zip(&x.quants[at][from..to])
                        .map(|(w, x)| i32::from(*w) * i32::from(*x))
                        .sum()
                };
                let whole = match kind.scheme() {
                    Scheme::Plain => (dot(0, BLOCK) + x.starts[at]) as f32 * scales[0],
                    Scheme::Minimum => dot(0, BLOCK) as f32 * scales[0] + x.starts[at] as f32 * minimum,
                    Scheme::Halves => {
                        let [a, b] = x.half_starts[at];
                        (dot(0, BLOCK / 2) + a) as f32 * scales[0] + (dot(BLOCK / 2, BLOCK) + b) as f32 * scales[1]
                    }
                };
                sums[row] += whole * x.scales[at];
            }
        }
    }
}
