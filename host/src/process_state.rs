//! What a plugin shares with all that runs after it in its process, compared around every call and set back: how this thread's
//! processor rounds (`fesetround`, flushing of subnormals, a library that was linked with `-ffast-math`), which signals it has
//! blocked, and where the standard descriptors and the channel to the parent lead.

use std::os::fd::RawFd;
use std::sync::OnceLock;

/// Rounding, flushing of subnormals and masks of exceptions, without the flags that any operation raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatMode {
    bits: u64,
    /// Of the x87 unit, which `long double` uses.
    old: u16,
}

impl FloatMode {
    /// That of this thread.
    #[cfg(target_arch = "x86_64")]
    pub fn here() -> Self {
        let (mut bits, mut old) = (0u32, 0u16);
        // SAFETY: both instructions only store a register into our variables.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut bits, options(nostack, preserves_flags));
            std::arch::asm!("fnstcw [{}]", in(reg) &mut old, options(nostack, preserves_flags));
        }
        // The lowest six bits are flags.
        FloatMode { bits: u64::from(bits & !0x3f), old }
    }

    /// Sets this thread's.
    #[cfg(target_arch = "x86_64")]
    fn set(self) {
        let (bits, old) = (self.bits as u32, self.old);
        // SAFETY: the values were read by `here`, so that every bit is one that the processor has.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &bits, options(nostack, preserves_flags));
            std::arch::asm!("fldcw [{}]", in(reg) &old, options(nostack, preserves_flags));
        }
    }

    /// That of this thread.
    #[cfg(target_arch = "aarch64")]
    pub fn here() -> Self {
        let bits: u64;
        // SAFETY: it only reads a register.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) bits, options(nomem, nostack, preserves_flags)) };
        FloatMode { bits, old: 0 }
    }

    /// Sets this thread's.
    #[cfg(target_arch = "aarch64")]
    fn set(self) {
        // SAFETY: the value was read by `here`.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) self.bits, options(nomem, nostack, preserves_flags)) };
    }

    /// Whether this thread's mode is another now; then it is set back.
    pub fn restore(self) -> bool {
        let changed = FloatMode::here() != self;
        if changed {
            self.set();
        }
        changed
    }
}

/// Descriptors that a plugin may use and not redirect, with copies of ours far from the numbers that a stray write hits.
static GUARDED: OnceLock<Vec<Guarded>> = OnceLock::new();

struct Guarded {
    number: RawFd,
    copy: RawFd,
    what: (u64, u64),
}

/// Device and file of a descriptor; none where it is closed.
fn leads_to(number: RawFd) -> Option<(u64, u64)> {
    // SAFETY: an all-zero `stat` is a valid value, and `fstat` fills it in.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        (libc::fstat(number, &mut found) == 0).then_some((found.st_dev, found.st_ino))
    }
}

/// Descriptors as they are now, with their copies.
fn guarded(numbers: &[RawFd]) -> Vec<Guarded> {
    let one = |&number: &RawFd| {
        let what = leads_to(number)?;
        // SAFETY: it only makes a new descriptor.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 800) };
        (copy >= 0).then_some(Guarded { number, copy, what })
    };
    numbers.iter().filter_map(one).collect()
}

/// Leads descriptors back to where they led; whether one did not.
fn lead_back(all: &[Guarded]) -> bool {
    let mut led_elsewhere = false;
    for guarded in all {
        // A copy that was closed too cannot set anything back; the channel is then silent, and the worker is lost.
        if leads_to(guarded.number) != Some(guarded.what) && leads_to(guarded.copy) == Some(guarded.what) {
            // SAFETY: both are descriptors of this process; the copy is ours.
            unsafe { libc::dup2(guarded.copy, guarded.number) };
            led_elsewhere = true;
        }
    }
    led_elsewhere
}

/// Watches the standard descriptors and these from now on; called once in a child, before a plugin is opened.
pub fn guard_descriptors(others: &[RawFd]) {
    GUARDED.get_or_init(|| guarded(&[&[0, 1, 2], others].concat()));
}

/// The state of this thread and process before a call into a plugin.
pub struct ProcessState {
    mode: FloatMode,
    signals: libc::sigset_t,
}

impl ProcessState {
    /// As it is now.
    pub fn here() -> Self {
        // SAFETY: an all-zero set is a valid value; without a new set the call only reads this thread's.
        let signals = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
            set
        };
        ProcessState { mode: FloatMode::here(), signals }
    }

    /// Sets back what has changed; says it in words.
    pub fn restore(&self) -> Option<String> {
        let mut changed = Vec::new();
        if self.mode.restore() {
            changed.push("how the processor rounds");
        }
        let now = ProcessState::here();
        let differs = (1..=64).any(|signal| {
            // SAFETY: both sets were filled in by the system.
            unsafe { libc::sigismember(&now.signals, signal) != libc::sigismember(&self.signals, signal) }
        });
        if differs {
            // SAFETY: the set was read by `here`.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.signals, std::ptr::null_mut()) };
            changed.push("which signals are blocked");
        }
        if lead_back(GUARDED.get().map_or(&[], Vec::as_slice)) {
            changed.push("where a descriptor of the program leads");
        }
        (!changed.is_empty()).then(|| changed.join(" and "))
    }

    /// Calls a plugin. One that changes the state fails, and the state is set back.
    pub fn keep<T>(plugin: &str, call: impl FnOnce() -> lightbox_sdk::Result<T>) -> lightbox_sdk::Result<T> {
        let state = ProcessState::here();
        let answer = call();
        match state.restore() {
            None => answer,
            Some(changed) => Err(lightbox_sdk::Error::output(format!(
                "{plugin} changed {changed}; it was set back, and its answer is not used"
            ))),
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_changed_mode_is_seen_and_set_back() {
        let mode = FloatMode::here();
        assert!(!mode.restore());
        // Flushing of subnormals to zero.
        FloatMode { bits: mode.bits | 0x8040, ..mode }.set();
        assert!(mode.restore() && FloatMode::here() == mode);
        // Another rounding of the x87 unit.
        FloatMode { old: mode.old ^ 0x0400, ..mode }.set();
        assert!(mode.restore() && !mode.restore());
    }

    #[test]
    fn blocked_signals_are_set_back() {
        let state = ProcessState::here();
        assert_eq!(state.restore(), None);
        // SAFETY: a set that is filled in here.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
        assert_eq!(state.restore().unwrap(), "which signals are blocked");
        assert_eq!(state.restore(), None);
    }

    /// Not those of the process, which other tests compare meanwhile.
    #[test]
    fn descriptors_lead_where_they_led() {
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let all = guarded(&[number]);
        assert!(!lead_back(&all));
        // SAFETY: the descriptor is this test's; it leads to the other file for a moment.
        unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&other), number) };
        assert_ne!(leads_to(number), Some(all[0].what));
        assert!(lead_back(&all) && leads_to(number) == Some(all[0].what) && !lead_back(&all));
    }
}
