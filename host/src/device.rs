//! Which device a run uses, and the trick that lets one binary serve CPU-only and CUDA installs.
//!
//! The binary is linked against libtorch_cpu alone. Where an NVIDIA driver is present, opening `libtorch.so` registers
//! the CUDA backend; this must be the first thing that the process does, since libtorch asks for the backend once.

use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use std::path::PathBuf;
use std::sync::OnceLock;
use tch::Device;

/// Where libtorch_cpu was loaded from.
fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|l| l.ends_with("/libtorch_cpu.so"))?;
    let path = &line[line.find('/')?..];
    PathBuf::from(path).parent().map(PathBuf::from)
}

/// Why libtorch's CUDA part could not be opened although there is a driver.
static TROUBLE: OnceLock<String> = OnceLock::new();

unsafe extern "C" {
    fn lightbox_repeatable() -> bool;
    fn lightbox_tf32(on: bool) -> bool;
    fn lightbox_cpu_capability(text: *mut std::ffi::c_char, length: usize);
}

/// What decides which CPU kernels run: the instruction set that ATen chose, the CPU's maker (MKL looks at it, and DenseNet's
/// folded trunk), the extensions that oneDNN looks for, and the variables that limit them.
pub fn kernels() -> String {
    let mut text = [0 as std::ffi::c_char; 64];
    // SAFETY: the shim writes at most one byte less than the buffer, which began as zeros.
    let aten = unsafe {
        lightbox_cpu_capability(text.as_mut_ptr(), text.len());
        std::ffi::CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    };
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let maker =
        info.lines().find_map(|l| l.strip_prefix("vendor_id")?.split_once(": ").map(|p| p.1)).unwrap_or_default();
    let flags = info.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let known = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile"];
    let flags: Vec<&str> = flags.split_whitespace().filter(|f| known.contains(f)).collect();
    let limits = ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"];
    let limits = limits.iter().filter_map(|name| std::env::var(name).ok().map(|v| format!(", {name}={v}")));
    let plain = if lightbox_core::is_plain() { ", plain" } else { "" };
    format!("ATen {aten}; {maker} {}{}{plain}", flags.join(" "), limits.collect::<String>())
}

/// The models of the NVIDIA cards that the driver knows, each once, separated by commas; empty without a driver.
pub fn gpus() -> String {
    let cards = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let texts = cards.filter_map(|card| std::fs::read_to_string(card.path().join("information")).ok());
    models(texts).join(", ")
}

/// The `Model:` lines of the driver's texts, sorted, each once.
fn models(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut found: Vec<String> = texts
        .filter_map(|text| text.lines().find_map(|l| l.strip_prefix("Model:")).map(|name| name.trim().to_string()))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Asks libtorch for operations that give the same numbers every time. cuDNN and several CUDA kernels otherwise add in an
/// order that varies.
fn repeatable() -> Result<()> {
    // SAFETY: sets switches of libtorch and reads them back.
    match unsafe { lightbox_repeatable() } {
        true => Ok(()),
        false => Err(Error::input("libtorch did not switch to repeatable operations")),
    }
}

/// Whether CUDA computes products of matrices and convolutions of float32 values in TF32. [`choose`] says no, so that a GPU's
/// numbers are a CPU's up to rounding.
pub fn tf32(on: bool) -> Result<()> {
    // SAFETY: sets switches of libtorch and reads them back.
    match unsafe { lightbox_tf32(on) } {
        true => Ok(()),
        false => Err(Error::input("libtorch did not switch between float32 and TF32")),
    }
}

/// Opens libtorch's CUDA part if there is a driver. Call it first in `main`.
pub fn open_cuda() {
    if std::env::var_os("CUBLAS_WORKSPACE_CONFIG").is_none() {
        // Without it cuBLAS may differ from run to run.
        // SAFETY: no other thread is there yet.
        unsafe { std::env::set_var("CUBLAS_WORKSPACE_CONFIG", ":4096:8") };
    }
    // SAFETY: NVIDIA's driver library, whose start-up may run.
    let driver = unsafe { Library::open(Some("libcuda.so.1"), RTLD_LAZY | RTLD_LOCAL) };
    if let (Ok(driver), Some(folder)) = (driver, libtorch_folder()) {
        std::mem::forget(driver);
        // SAFETY: libtorch's own library, as above.
        match unsafe { Library::open(Some(folder.join("libtorch.so")), RTLD_LAZY | RTLD_LOCAL) } {
            Ok(torch) => std::mem::forget(torch),
            Err(e) => drop(TROUBLE.set(e.to_string())),
        }
    }
}

/// Lets glibc keep freed activations for the next batch instead of giving their pages back to the kernel and faulting
/// them in again.
pub fn keep_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub fn choose(name: &str) -> Result<Device> {
    let cuda = |n: usize| {
        let count = tch::Cuda::device_count();
        match (n as i64) < count {
            true => repeatable().and_then(|()| tf32(false)).map(|()| Device::Cuda(n)),
            false => Err(Error::input(format!("device cuda:{n} was asked for, {count} CUDA devices are there"))
                .hint("--device auto, or `cargo xtask setup --cuda` if libtorch was installed without CUDA")),
        }
    };
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "cuda" => cuda(0),
        None if name == "auto" && tch::Cuda::is_available() => cuda(0),
        None if name == "auto" => {
            if let Some(trouble) = TROUBLE.get() {
                eprintln!(
                    "note: there is an NVIDIA driver, but libtorch's CUDA part cannot be opened, so the CPU is used: \
                     {trouble} (hint: cargo xtask setup --cuda)"
                );
            }
            Ok(Device::Cpu)
        }
        Some(("cuda", n)) if n.parse::<usize>().is_ok() => cuda(n.parse().unwrap_or_default()),
        _ => Err(Error::input(format!("device `{name}` is none of auto, cpu, cuda, cuda:N"))),
    }
}

/// The name that plugins and results use.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_chosen_or_refused_by_name() {
        assert_eq!(choose("cpu").unwrap(), Device::Cpu);
        assert!(choose("gpu").unwrap_err().message.contains("`gpu` is none of auto, cpu, cuda, cuda:N"));
        assert!(choose("cuda:99").unwrap_err().message.contains("device cuda:99 was asked for"));
    }

    #[test]
    fn cards_are_named_by_the_driver_each_model_once() {
        let text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 17\n".to_string();
        assert_eq!(models([text.clone(), text, "nothing".into()].into_iter()), ["NVIDIA H100 80GB HBM3"]);
    }

    #[test]
    fn libtorch_takes_its_switches() {
        repeatable().unwrap();
        tf32(true).unwrap();
        tf32(false).unwrap();
    }
}
