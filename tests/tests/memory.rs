//! How much memory a summary of many images takes. Alone in its process, whose greatest memory the system remembers.

use lightbox_core::stats::bootstrap::Bootstrap;

/// The greatest memory that this process has had, in MB.
fn greatest() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[test]
fn intervals_of_twenty_five_thousand_images_take_less_than_500_mb() {
    let n = 25_000usize;
    let columns: Vec<Vec<f64>> =
        (0..40).map(|c| (0..n).map(|i| ((i * 7919 + c) % n) as f64 / n as f64).collect()).collect();
    let columns: Vec<&[f64]> = columns.iter().map(Vec::as_slice).collect();
    let patients: Vec<u32> = (0..n as u32).collect();
    let bootstrap = Bootstrap::new(&patients, &[], 1).unwrap();
    let intervals = bootstrap.intervals(&columns).unwrap();
    // Of a uniform value the mean's deviation is 1 / sqrt(12 n).
    let half = 1.96 / (12.0 * n as f64).sqrt();
    for [low, high] in intervals {
        assert!((low - (0.5 - half)).abs() < 2e-4 && (high - (0.5 + half)).abs() < 2e-4, "{low} {high}");
    }
    let greatest = greatest();
    assert!(greatest < 500.0, "{greatest} MB");
    println!("{greatest:.0} MB");
}
