//! Every type and level against a plain f64 product of the dequantised matrix, on random and adversarial shapes and values.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::affine::{Affine, Packed, products};
use super::dense::DMatrix;
use super::fine::FineMatrix;
use super::rows::Input;
use super::{Level, QMatrix, repack};

const TYPES: [GgmlDType; 6] =
    [GgmlDType::Q4_0, GgmlDType::Q5_0, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K];

/// A layer's result for `x` at one level.
fn product(layer: &Affine, x: &[f32], level: Level) -> Vec<f32> {
    let (rows, cols) = layer.shape();
    let mut out = vec![0.0; x.len() / cols * rows];
    products(&[layer], Input::Plain(x), &mut [&mut out], false, level);
    out
}

fn layer(matrix: QMatrix) -> Affine {
    Affine::new(Arc::new(Packed::Quantised(matrix)), None)
}

/// A random matrix quantised by candle, and what candle dequantises it to.
fn matrix(dtype: GgmlDType, rows: usize, cols: usize, rng: &mut StdRng) -> (QMatrix, Vec<f32>) {
    let values: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
    let dense = Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap();
    let quantised = QTensor::quantize(&dense, dtype).unwrap();
    let plain = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (repack(&quantised.data().unwrap(), dtype, rows, cols).unwrap(), plain)
}

fn levels() -> Vec<Level> {
    Level::all()
}

#[test]
fn repacking_is_exact() {
    let mut rng = StdRng::seed_from_u64(1);
    for dtype in TYPES {
        let (packed, plain) = matrix(dtype, 3, 512, &mut rng);
        let ours: Vec<f32> = (0..3).flat_map(|i| packed.values(i)).collect();
        let worst = plain.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 1e-6, "{dtype:?}: {worst}");
    }
}

#[test]
fn products_agree_with_f64() {
    let mut rng = StdRng::seed_from_u64(2);
    for dtype in TYPES {
        for rows in [1, 2, 15, 16, 17, 33] {
            let cols = 256 * rng.random_range(1..4);
            let (packed, plain) = matrix(dtype, rows, cols, &mut rng);
            let packed = layer(packed);
            for n in [1, 2, 3, 4, 5, 8, 13, 17] {
                let scale = 10f32.powi(rng.random_range(-20..20));
                let x: Vec<f32> = (0..n * cols).map(|_| rng.random_range(-1.0..1.0) * scale).collect();
                for level in levels() {
                    agree(&packed, &plain, &x, cols, level);
                }
            }
        }
    }
}

/// Within what rounding activations to 8 bits allows: half a step of each block's scale against each weight.
fn agree(packed: &Affine, plain: &[f32], x: &[f32], cols: usize, level: Level) {
    let rows = plain.len() / cols;
    let ours = product(packed, x, level);
    assert_eq!(ours.len(), x.len() / cols * rows);
    for (j, x) in x.chunks(cols).enumerate() {
        for (i, w) in plain.chunks(cols).enumerate() {
            let (mut exact, mut slack) = (0f64, 0f64);
            for (w, x) in w.chunks(32).zip(x.chunks(32)) {
                let step = f64::from(x.iter().fold(0f32, |a, v| a.max(v.abs()))) / 127.0;
                exact += w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                slack += w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * step * 0.51;
            }
            let got = f64::from(ours[j * rows + i]);
            assert!((got - exact).abs() <= slack + 1e-30, "{level:?} [{j}, {i}]: {got} for {exact} ± {slack}");
        }
    }
}

#[test]
fn levels_differ_by_rounding_alone() {
    let mut rng = StdRng::seed_from_u64(3);
    let packed = layer(matrix(GgmlDType::Q6K, 17, 512, &mut rng).0);
    let x: Vec<f32> = (0..5 * 512).map(|_| rng.random_range(-1.0..1.0)).collect();
    let (a, b) = (product(&packed, &x, Level::Portable), product(&packed, &x, Level::best()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4));
}

/// Invariant I4, at its root: a row's result is bit-equal alone and in any company, its bias and its update included.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let x = numbers(64 * 256);
    let (a, b, bias) = (numbers(5 * 256), numbers(33 * 5), numbers(33));
    let mut layers: Vec<Affine> = TYPES
        .iter()
        .map(|dtype| {
            let (packed, _) = matrix(*dtype, 33, 256, &mut StdRng::seed_from_u64(5));
            Affine::new(Arc::new(Packed::Quantised(packed)), Some(&bias))
        })
        .collect();
    layers.push(Affine::new(Arc::new(Packed::Dense(DMatrix::new(&numbers(33 * 256), 33, 256))), Some(&bias)));
    layers.push(Affine::new(Arc::new(Packed::Fine(FineMatrix::new(&numbers(33 * 256), 33, 256))), Some(&bias)));
    for layer in &mut layers {
        layer.update(&a, &b);
        for level in Level::all() {
            let alone: Vec<f32> = x.chunks_exact(256).flat_map(|row| product(layer, row, level)).collect();
            for n in (1..=17).chain([64]) {
                assert_eq!(product(layer, &x[..n * 256], level), alone[..n * 33], "{layer:?} {level:?}, {n} rows");
            }
        }
    }
}

#[test]
fn dense_layers_agree_with_f64_and_add_to_what_is_there() {
    let mut rng = StdRng::seed_from_u64(6);
    for (rows, cols, rank) in [(1, 1, 1), (16, 5, 3), (17, 64, 16), (33, 130, 17)] {
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (w, bias, a, b) = (numbers(rows * cols), numbers(rows), numbers(rank * cols), numbers(rows * rank));
        let mut layer = Affine::new(Arc::new(Packed::Dense(DMatrix::new(&w, rows, cols))), Some(&bias));
        layer.update(&a, &b);
        assert_eq!(layer.shape(), (rows, cols));
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        for n in [1, 2, 7, 16, 19] {
            let x = numbers(n * cols);
            for level in Level::all() {
                let mut out = vec![1f32; n * rows];
                products(&[&layer], Input::Plain(&x), &mut [&mut out], true, level);
                for (i, got) in out.iter().enumerate() {
                    let (x, r) = (&x[i / rows * cols..][..cols], i % rows);
                    let low: Vec<f32> = a.chunks(cols).map(|a| dot(a, x) as f32).collect();
                    let right =
                        1.0 + dot(&w[r * cols..][..cols], x) + f64::from(bias[r]) + dot(&b[r * rank..][..rank], &low);
                    assert!((f64::from(*got) - right).abs() < 1e-4, "{level:?}: {got} for {right}");
                }
            }
        }
    }
}

#[test]
fn fine_layers_agree_with_f64_to_four_digits() {
    let mut rng = StdRng::seed_from_u64(7);
    for (rows, cols) in [(1, 32), (16, 64), (17, 512), (33, 96)] {
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let w = numbers(rows * cols);
        let matrix = FineMatrix::new(&w, rows, cols);
        assert!((0..rows).flat_map(|i| matrix.values(i)).zip(&w).all(|(a, b)| (a - b).abs() < 3.2e-5));
        let layer = Affine::new(Arc::new(Packed::Fine(matrix)), None);
        for n in [1, 2, 7, 8, 9, 16, 19] {
            for scale in [1e-30, 1.0, 1e30] {
                let x: Vec<f32> = numbers(n * cols).iter().map(|x| x * scale).collect();
                for level in Level::all() {
                    for (i, got) in product(&layer, &x, level).iter().enumerate() {
                        let (x, w) = (&x[i / rows * cols..][..cols], &w[i % rows * cols..][..cols]);
                        let right: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        // Half a step of either, and what f32 itself rounds.
                        let sizes: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x.abs() + w.abs() * scale)).sum();
                        let slack = sizes * 3.2e-5;
                        assert!((f64::from(*got) - right).abs() < slack, "{level:?}: {got} for {right}");
                    }
                }
            }
        }
        for level in Level::all() {
            assert!(product(&layer, &vec![0.0; cols], level).iter().all(|y| *y == 0.0));
            // The largest of everything: the integers' sum still fits.
            let ones = Affine::new(Arc::new(Packed::Fine(FineMatrix::new(&vec![-1.0; cols], 1, cols))), None);
            let sum = product(&ones, &vec![1.0; cols], level)[0];
            assert!((sum + cols as f32).abs() < 1e-3 * cols as f32, "{level:?}: {sum}");
        }
    }
}

#[test]
fn zeros_denormals_and_non_numbers_make_no_noise() {
    let mut rng = StdRng::seed_from_u64(5);
    let packed = layer(matrix(GgmlDType::Q5_0, 4, 64, &mut rng).0);
    for level in levels() {
        assert!(product(&packed, &[0.0; 64], level).iter().all(|y| *y == 0.0));
        assert!(product(&packed, &[f32::MIN_POSITIVE / 4.0; 64], level).iter().all(|y| y.is_finite()));
        assert_eq!(product(&packed, &[], level), Vec::<f32>::new());
        // What comes of a NaN is nobody's number, but it is no panic, and it stays in its own row.
        let mut x = vec![f32::NAN; 64];
        x.extend([1.0; 64]);
        assert_eq!(product(&packed, &x, level)[4..], product(&packed, &[1.0; 64], level));
    }
}

#[test]
fn hostile_blocks_are_refused() {
    let nan = half::f16::NAN.to_le_bytes();
    let mut block = vec![0u8; 34];
    block[..2].copy_from_slice(&nan);
    assert!(repack(&block, GgmlDType::Q8_0, 1, 32).unwrap_err().contains("not finite"));
    assert!(repack(&block[..33], GgmlDType::Q8_0, 1, 32).is_err());
    assert!(repack(&block, GgmlDType::Q8_0, 1, 33).is_err());
    assert!(repack(&block, GgmlDType::Q2K, 1, 32).is_err());
}

#[test]
fn a_level_is_chosen_by_name_and_once() {
    let wrong = super::use_level("avx1024").unwrap_err().to_string();
    assert!(wrong.contains("avx1024") && wrong.contains("portable"), "{wrong}");
    // Whichever test came first has fixed it.
    Level::best();
    assert!(super::use_level("portable").unwrap_err().to_string().contains("already"));
}
