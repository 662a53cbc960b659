//! Files that are damaged in transit: bytes changed, cut out, doubled or cut off, the same ones every time. A reader says what
//! is wrong or reads what is left; it does not panic, and it does not ask for more memory than there is.

use lightbox_core::data::reader;
use lightbox_core::{checkpoint, results, tensors};
use lightbox_tests::{built, oracle};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// One of `bytes` with some damage.
fn damaged(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut all = bytes.to_vec();
    // Headers are where damage does most.
    let place = |rng: &mut ChaCha8Rng, n: usize| {
        let within = if rng.random::<bool>() { n.min(256) } else { n };
        rng.random_range(0..within.max(1))
    };
    for _ in 0..rng.random_range(1..4) {
        if all.is_empty() {
            break;
        }
        let at = place(rng, all.len());
        match rng.random_range(0..6) {
            0 => all[at] = rng.random(),
            1 => all[at] ^= 1 << rng.random_range(0..8),
            2 => all.truncate(at),
            3 => drop(all.drain(at..(at + rng.random_range(1..64)).min(all.len()))),
            4 => {
                let again = all[at..(at + rng.random_range(1..64)).min(all.len())].to_vec();
                all.splice(at..at, again);
            }
            _ => {
                let end = (at + 4).min(all.len());
                all[at..end].fill(0xff);
            }
        }
    }
    all
}

/// Reads a file with `count` damages of its bytes; how many were errors.
fn check(name: &str, bytes: &[u8], count: usize, read: &dyn Fn(&Path) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut refused = 0;
    for _ in 0..count {
        std::fs::write(&path, damaged(bytes, &mut rng)).unwrap();
        refused += usize::from(!read(&path));
    }
    assert!(refused > 0, "{name}: no damage was noticed");
}

#[test]
fn images() {
    let read = |path: &Path| reader::read(path, false).is_ok_and(|i| i.unit().is_ok());
    let file = |name: &str| std::fs::read(oracle(name)).unwrap();
    for name in ["u16.mha", "u16-zlib.mha", "i16-slice.mha", "mono1.dcm", "mono2.dcm", "u16.png"] {
        check(name, &file(name), 300, &read);
    }
    // Every kind of DICOM file.
    let golden = checkpoint::read(&oracle("dicom.safetensors")).unwrap();
    for (key, bytes) in golden.iter().filter(|(k, _)| k.ends_with(".file")) {
        let name = format!("{}.dcm", key.trim_end_matches(".file"));
        check(&name, &Vec::<u8>::try_from(bytes).unwrap(), 100, &read);
    }
}

#[test]
fn checkpoints_and_batches() {
    let read = |path: &Path| checkpoint::read(path).is_ok();
    for name in
        ["plain.pth", "half.pth", "old-keys.pth", "parameters.pth", "deit.safetensors", "checkpoint.safetensors"]
    {
        check(name, &std::fs::read(oracle(name)).unwrap(), 60, &read);
    }
    let folder = tempfile::tempdir().unwrap();
    let batch = folder.path().join("b.safetensors");
    let images = tch::Tensor::rand([1, 3, 8, 8], (tch::Kind::Float, tch::Device::Cpu));
    checkpoint::write(&batch, &[("images".into(), images)]).unwrap();
    let read = |path: &Path| tensors::read_batch(path).is_ok();
    check("batch.safetensors", &std::fs::read(&batch).unwrap(), 300, &read);
}

#[test]
fn tables_of_results() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.scores.parquet");
    let mut names = results::Names::default();
    let (image, empty) = (names.number("image"), names.number(""));
    let row = results::Row {
        image,
        model: image,
        fold: 0,
        training: 0,
        explainer: image,
        output: empty,
        metric: image,
        target: 1,
        value: Some(0.5),
        status: lightbox_core::metrics::Status::Ok,
        reason: empty,
    };
    results::write_scores(&path, &names, &vec![row; 50]).unwrap();
    let read = |path: &Path| results::read_scores(path, &mut results::Names::default(), &mut |_| {}).is_ok();
    check("d.scores.parquet", &std::fs::read(&path).unwrap(), 300, &read);
}

#[test]
fn plugins_before_they_are_opened() {
    let bytes = std::fs::read(built("plugins/liblightbox_example.so")).unwrap();
    let read = |path: &Path| lightbox::loader::preflight(path).is_ok();
    check("example.so", &bytes, 40, &read);
}
